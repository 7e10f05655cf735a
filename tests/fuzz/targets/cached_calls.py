"""Calls of a decoder on a KV cache, with the cache cropped, reordered, repeated and copied in between: transformers' outputs."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from bertfast.cache.objects import CACHE_FIELD
from tests import builders
from tests.fuzz.agreement import assert_alike, assert_close, outcome
from tests.fuzz.case import Case, Target
from tests.fuzz.targets.model_calls import DTYPES

POSITIONS = 32
KINDS = ("dynamic", "static", "none", "encoder-decoder", "early")
MASKS = ("none", "full", "left", "holes", "long", "4-D", "right", "bool", "float")


@dataclass(frozen=True)
class CachedCalls(Case):
    head: str
    dtype: str
    cache: str  # one of KINDS: what the first call gets
    cross: bool
    eager: bool
    batch: int
    steps: tuple[tuple[Any, ...], ...]  # ("call", new columns, mask, further arguments) or an operation on the cache
    grad: bool
    seed: int

    def check(self) -> str:
        dtype = DTYPES[self.dtype]
        config = {
            **builders.SMALL,
            "is_decoder": True,
            "use_cache": True,
            "add_cross_attention": self.cross,
            "attn_implementation": "eager" if self.eager else "sdpa",
        }
        original, fast = builders.pair(self.head, self.seed, dtype=dtype, **config)
        models = (fast, original, copy.deepcopy(original).double())
        caches = [made(self.cache, original.config) for _ in models]
        length, B, errors = 0, self.batch, 0
        states = torch.randn(8, 5, original.config.hidden_size, generator=torch.Generator().manual_seed(self.seed))
        order = list(range(B))  # which of `states` each sequence has
        pad = torch.ones(B, 0, dtype=torch.long)
        for number, step in enumerate(self.steps):
            torch.manual_seed(self.seed + number)
            if step[0] != "call":
                if any(c is None for c in caches) or not length or self.cache == "static":
                    continue
                results = [outcome(lambda c=c: OPERATIONS[step[0]](c, step[1])) for c in caches]  # noqa: B023
                if not assert_alike(results[0], results[1]):
                    return "an operation refused by both"
                caches = [r if r is not None else c for r, c in zip(results, caches, strict=True)]
                if step[0] in ("reorder", "select"):
                    order, pad, B = [order[i] for i in step[1]], pad[list(step[1])], len(step[1])
                elif step[0] == "repeat":
                    order, pad, B = [i for i in order for _ in range(step[1])], pad.repeat_interleave(step[1], 0), B * step[1]
                elif step[0] == "crop":
                    length = max(0, length - step[1])
                    pad = pad[:, :length]
                continue
            _, count, mask, more = step
            arguments: dict[str, Any] = {"input_ids": torch.randint(0, 50, (B, count)), "use_cache": True}
            pad = torch.cat([pad, new_mask(mask, B, count, length)], dim=1)
            given = as_given(mask, pad, count, length, POSITIONS if self.cache == "static" else 0)
            if given is not None:
                arguments["attention_mask"] = given
            if self.cross:
                arguments["encoder_hidden_states"] = states[order]
                if "encoder mask" in more:
                    arguments["encoder_attention_mask"] = (torch.arange(5) < 1 + torch.tensor(order)[:, None] % 5).long()
            if "positions" in more:
                arguments["position_ids"] = torch.randint(0, POSITIONS, (B, count))
            if "types" in more:
                arguments["token_type_ids"] = torch.randint(0, 2, (B, count))
            if "embeds" in more:
                arguments["inputs_embeds"] = torch.randn(*arguments.pop("input_ids").shape, original.config.hidden_size)
            if "hidden" in more:
                arguments["output_hidden_states"] = True
            if "keep" in more and self.head == "BertLMHeadModel":
                arguments["logits_to_keep"] = 1
            if "no cache" in more:
                arguments["use_cache"] = False
            results = []
            for i, model in enumerate(models):
                typed = {
                    name: t.to(model.dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() and name != "attention_mask" else t
                    for name, t in arguments.items()
                }
                if mask == "float" and given is not None:
                    typed["attention_mask"] = given
                with torch.set_grad_enabled(self.grad):
                    results.append(outcome(lambda: model(**typed, **({} if caches[i] is None else {CACHE_FIELD: caches[i]}))))  # noqa: B023
            if not assert_alike(results[0], results[1]):
                errors += 1
                break
            got = [getattr(r, CACHE_FIELD, None) if not isinstance(r, Exception) else None for r in results]
            assert (got[0] is None) == (got[1] is None), f"{CACHE_FIELD}: {type(got[0]).__name__}, expected {type(got[1]).__name__}"
            plain = [type(r)(**{k: v for k, v in r.items() if k != CACHE_FIELD}) if not isinstance(r, Exception) else r for r in results]
            if not (isinstance(plain[2], Exception) or self.dtype in ("float32", "float64")) or self.dtype in ("float32", "float64"):
                real = pad[:, length:]
                # A padded row that sees nothing: eager attention averages over all columns, a static cache's unwritten ones too.
                odd = self.eager and self.cache == "static"
                everywhere = not odd and bool(pad.any(dim=1).all()) and bool(pad[:, length:].any(dim=1).all())
                assert_close(plain[0], plain[1], None if everywhere else real, dtype, lambda: plain[2])  # noqa: B023
            caches = [c if g is None else g for c, g in zip(caches, got, strict=True)]
            if caches[0] is not None:
                assert caches[0].get_seq_length() == caches[1].get_seq_length(), (
                    f"length {caches[0].get_seq_length()}, expected {caches[1].get_seq_length()}"
                )
                length = int(caches[1].get_seq_length())
                pad = pad[:, :length] if length <= pad.shape[1] else pad
            if caches[0] is None:
                pad, length = pad[:, :0], 0
        return "equal" if not errors else "an error in both"


def made(kind: str, config: Any) -> Any:
    if kind == "static":
        return StaticCache(config, max_cache_len=POSITIONS)
    if kind == "dynamic":
        return DynamicCache()
    if kind == "early":
        return DynamicCache(config=config)
    return EncoderDecoderCache(DynamicCache(), DynamicCache()) if kind == "encoder-decoder" else None


def new_mask(kind: str, B: int, count: int, past: int) -> torch.Tensor:
    mask = torch.ones(B, count, dtype=torch.long)
    if kind == "left" and not past:
        mask = builders.mask("left", B, count)
    elif kind == "right":
        mask = builders.mask("right", B, count)
    elif kind == "holes":
        mask[:, 1::3] = 0
    return mask


def as_given(kind: str, pad: torch.Tensor, count: int, past: int, columns: int) -> torch.Tensor | None:
    """columns: of a static cache, which a 4-D mask spans; 0: of another kind."""
    if kind == "none":
        return None
    if kind == "long":
        return torch.cat([pad, torch.ones(len(pad), 4, dtype=torch.long)], dim=1)
    if kind == "4-D":
        causal = torch.ones(count, pad.shape[1], dtype=torch.bool).tril(past)
        visible = (pad[:, None, None, :].bool() & causal).expand(len(pad), 1, count, pad.shape[1])
        return torch.nn.functional.pad(visible, (0, max(0, columns - pad.shape[1])))
    return pad.bool() if kind == "bool" else pad.float() if kind == "float" else pad


OPERATIONS: dict[str, Any] = {
    "crop": lambda cache, n: cache.crop(-n),
    "reorder": lambda cache, order: cache.reorder_cache(torch.tensor(order)),
    "select": lambda cache, order: cache.batch_select_indices(torch.tensor(order)),
    "repeat": lambda cache, n: cache.batch_repeat_interleave(n),
    "deepcopy": lambda cache, n: copy.deepcopy(cache),
    "pickle": lambda cache, n: pickle.loads(pickle.dumps(cache)),
    "look": lambda cache, n: print([layer.keys.shape for layer in getattr(cache, "layers", ())]),
    "reset": lambda cache, n: cache.reset(),
}
arguments = st.lists(
    st.sampled_from(["positions", "types", "embeds", "hidden", "keep", "no cache", "encoder mask"]), max_size=2, unique=True
).map(tuple)


@st.composite
def cases(draw: st.DrawFn) -> CachedCalls:
    batch = first = draw(st.integers(1, 3))
    eager = draw(st.booleans())
    masks = [mask for mask in MASKS if not (eager and mask == "4-D")]  # eager attention adds True as 1
    mask = draw(st.sampled_from(masks))
    steps: list[tuple[Any, ...]] = [("call", draw(st.integers(1, 8)), mask, draw(arguments))]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["call", "call", "call", *OPERATIONS]))
        if kind == "call":
            steps.append(("call", draw(st.sampled_from([1, 1, 1, 2, 4])), draw(st.sampled_from([mask, mask, *masks])), draw(arguments)))
        elif kind in ("reorder", "select"):
            order = draw(st.lists(st.integers(0, batch - 1), min_size=1 if kind == "select" else batch, max_size=batch))
            steps.append((kind, tuple(order)))
            batch = len(order)
        elif kind == "repeat":
            steps.append((kind, 2 if batch < 3 else 1))
            batch *= steps[-1][1]
        else:
            steps.append((kind, draw(st.integers(1, 6))))
    cross = draw(st.integers(0, 3)) == 0
    return CachedCalls(
        draw(st.sampled_from(["BertLMHeadModel", "BertLMHeadModel", "BertModel"])),
        draw(st.sampled_from(["float32", "float32", *DTYPES])),
        draw(st.sampled_from(KINDS)),
        cross,
        eager,
        first,
        tuple(steps),
        draw(st.booleans()),
        draw(st.integers(0, 999)),
    )


TARGET = Target(cases(), batch=40, share=2.0)
