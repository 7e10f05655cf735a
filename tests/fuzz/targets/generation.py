"""generate() with random strategies, prompts and options, greedy, by beams and sampled with a seed: transformers' tokens and scores.

Two scores closer than NEAR may come out in either order, and a sampled token may fall on either side of a boundary: what differs must
differ again with other random numbers before it counts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from tests import builders
from tests.fuzz.agreement import assert_alike, outcome
from tests.fuzz.case import Case, Target

NEAR = 1e-4
V = 60


@dataclass(frozen=True)
class Generation(Case):
    options: tuple[tuple[str, Any], ...]
    prompts: str  # none, left, right, holes: the mask
    batch: int
    length: int
    std: float
    cross: bool
    seed: int

    def check(self) -> str:
        changes = {
            **builders.SMALL,
            "vocab_size": V,
            "max_position_embeddings": 48,
            "is_decoder": True,
            "use_cache": True,
            "add_cross_attention": self.cross,
        }
        original, fast = builders.pair(
            "BertLMHeadModel", self.seed, std=self.std, bos_token_id=1, eos_token_id=2, pad_token_id=0, **changes
        )
        options = {"max_new_tokens": 8, **dict(self.options)}
        problem = None
        for attempt in range(3):
            arguments = self.arguments(original, attempt)
            results = []
            for model in (fast, original):
                torch.manual_seed(self.seed + attempt)
                results.append(outcome(lambda: model.generate(**arguments, **options)))  # noqa: B023
            if not assert_alike(*results):
                return "an error in both"
            problem = self.difference(*results)
            if problem is None:
                return "equal" if not attempt else "equal with other random numbers"
            if not self.is_near(original, arguments, *results):
                break
        raise AssertionError(problem)

    def arguments(self, model: Any, attempt: int) -> dict[str, Any]:
        torch.manual_seed(self.seed + attempt)
        ids = torch.randint(3, V, (self.batch, self.length))
        mask = builders.mask(self.prompts, self.batch, self.length)
        arguments: dict[str, Any] = {"input_ids": ids if mask is None else ids * mask}
        if mask is not None:
            arguments["attention_mask"] = mask
        if self.cross:
            arguments["encoder_hidden_states"] = torch.randn(self.batch, 4, model.config.hidden_size)
        return arguments

    def difference(self, actual: Any, expected: Any) -> str | None:
        a, b = (getattr(out, "sequences", out) for out in (actual, expected))
        assert type(actual) is type(expected), f"{type(actual).__name__}, expected {type(expected).__name__}"
        if a.shape != b.shape or not torch.equal(a, b):
            return f"tokens {a.tolist()}, expected {b.tolist()}"
        if hasattr(expected, "keys"):
            assert list(actual.keys()) == list(expected.keys()), f"{list(actual.keys())}, expected {list(expected.keys())}"
        for name in ("scores", "logits", "sequences_scores"):
            got, want = (getattr(out, name, None) for out in (actual, expected))
            assert (got is None) == (want is None), f"{name} is {type(got).__name__}, expected {type(want).__name__}"
            for x, y in zip(*((t,) if isinstance(t, torch.Tensor) else t or () for t in (got, want)), strict=True):
                both = x.isfinite() & y.isfinite()
                if not torch.equal(x.isfinite(), y.isfinite()) or (x - y)[both].abs().max() > NEAR * max(1.0, y[both].abs().max().item()):
                    return f"{name} differ"
        return None

    def is_near(self, model: Any, arguments: dict[str, Any], actual: Any, expected: Any) -> bool:
        """Whether a tie may explain it. Greedily: the first differing token of each row had two best scores as good as equal."""
        options = dict(self.options)
        if options.get("do_sample") or options.get("num_beams", 1) > 1:
            return True
        a, b = (getattr(out, "sequences", out) for out in (actual, expected))
        width = min(a.shape[1], b.shape[1])
        for row in range(len(a)):
            different = (a[row, :width] != b[row, :width]).nonzero()
            if len(different):
                at = int(different[0])
                real = torch.ones(at, dtype=torch.bool)
                if "attention_mask" in arguments:
                    real[: self.length] = arguments["attention_mask"][row].bool()
                more = {"encoder_hidden_states": arguments["encoder_hidden_states"][row : row + 1]} if self.cross else {}
                best = model(b[row, :at][None], attention_mask=real[None].long(), use_cache=False, **more).logits[0, -1].topk(2).values
                if best[0] - best[1] > NEAR:
                    return False
        return True


@st.composite
def cases(draw: st.DrawFn) -> Generation:
    options: dict[str, Any] = {"max_new_tokens": draw(st.integers(1, 12))}
    kind = draw(st.sampled_from(["greedy", "greedy", "sample", "beams", "beams", "beam sample"]))
    if "sample" in kind:
        options |= {"do_sample": True, "temperature": draw(st.sampled_from([0.7, 1.0, 3.0]))}
        options |= draw(
            st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"typical_p": 0.9}, {"epsilon_cutoff": 0.01}, {"top_k": 0}])
        )
    if "beam" in kind:
        options |= {
            "num_beams": draw(st.integers(2, 4)),
            "early_stopping": draw(st.sampled_from([True, False, "never"])),
            "length_penalty": draw(st.sampled_from([1.0, 0.0, -0.5, 2.0])),
        }
    more: list[dict[str, Any]] = [
        {"eos_token_id": [2, 3, 4, 5, 6, 7]},
        {"eos_token_id": None},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 4},
        {"bad_words_ids": [[7], [8, 9]]},
        {"suppress_tokens": [10, 11]},
        {"forced_eos_token_id": 2},
        {"num_return_sequences": 2},
        {"use_cache": False},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        {"renormalize_logits": True},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"sequence_bias": {(9,): 2.0}},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"max_time": 100.0},
        {"guidance_scale": 1.5},
        {"prompt_lookup_num_tokens": 2},
        {"max_length": 5},
        {"min_length": 6},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"remove_invalid_values": True},
        {"begin_suppress_tokens": [12]},
        {"max_new_tokens": 0},
        {"pad_token_id": None},
        {"forced_bos_token_id": 9},
        {"use_model_defaults": False},
    ]
    for i in draw(st.lists(st.integers(0, len(more) - 1), max_size=3, unique=True)):
        options |= more[i]
    return Generation(
        tuple(options.items()),
        draw(st.sampled_from(["none", "left", "left", "right", "holes", "full", "unequal"])),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 9)),
        draw(st.sampled_from([0.3, 0.3, 0.05])),
        draw(st.integers(0, 5)) == 0,
        draw(st.integers(0, 999)),
    )


TARGET = Target(cases(), batch=20, share=2.0)
