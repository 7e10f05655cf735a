"""Random calls of random models, ours against transformers': the same outputs, or an error in both."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers.utils import output_capturing

from bertfast.graph.heads import HEADS
from tests import builders
from tests.fuzz.agreement import assert_alike, assert_close, in_float64, outcome
from tests.fuzz.case import Case, Target

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Call(Case):
    """One call. What is in `pass_`, tensors for the most part, is drawn from `seed`."""

    head: str
    config: dict[str, Any]
    B: int
    S: int
    mask: str  # one of builders.MASKS, or a form of MORE_MASKS
    pass_: tuple[str, ...]  # further arguments, by name
    output_hidden_states: Any
    output_attentions: bool
    return_dict: bool | None
    keep_padding: bool | None
    grad: bool
    seed: int
    dtype: str = "float32"
    more: tuple[tuple[int, int], ...] = ()  # B and S of further calls of the same two models

    def arguments(self, model: Any) -> dict[str, Any]:
        torch.manual_seed(self.seed)
        config, B, S = model.config, self.B, self.S
        arguments = builders.batch(self.head, model, B, S, self.mask if self.mask in builders.MASKS else "none", choices=2)
        shape = arguments["input_ids"].shape
        if self.mask in MORE_MASKS:
            arguments["attention_mask"] = MORE_MASKS[self.mask](shape, S, config.num_attention_heads)
        extra = {
            "position_ids": torch.randint(0, config.max_position_embeddings, shape),
            "shared positions": torch.randint(0, config.max_position_embeddings, (1, S)),
            "encoder_hidden_states": torch.randn(B, 5, config.hidden_size),
            "encoder_attention_mask": builders.mask("right", B, 5),
            "logits_to_keep": 1 + S // 2,
            "a wrong token": config.vocab_size,
            "a wrong mask": builders.mask("holes", B, S + 1),
        }
        for name in self.pass_:
            if name == "labels":
                arguments.update(builders.labels(self.head, model, arguments))
            elif name == "inputs_embeds":
                arguments["inputs_embeds"] = torch.randn(*arguments.pop("input_ids").shape, config.hidden_size)
            elif name == "both":
                arguments["inputs_embeds"] = torch.randn(*shape, config.hidden_size)
            elif name == "no types":
                arguments.pop("token_type_ids")
            elif name == "shared positions":
                arguments["position_ids"] = extra[name]
            elif name == "a wrong token":
                arguments["input_ids"] = torch.full(shape, extra[name])  # everywhere: in padding alone it would not be read
            elif name == "a wrong mask":
                arguments["attention_mask"] = extra[name]
            else:
                arguments[name] = extra[name]
        options = {"output_hidden_states": self.output_hidden_states, "output_attentions": self.output_attentions}
        arguments.update({name: value for name, value in options.items() if value})
        if self.return_dict is not None:
            arguments["return_dict"] = self.return_dict
        return arguments

    def check(self) -> str:
        # Attentions are real under sdpa as well; transformers has them under eager only.
        attention = {"attn_implementation": "eager"} if self.output_attentions else {}
        dtype = DTYPES[self.dtype]
        original, fast = builders.pair(self.head, self.seed, dtype=dtype, **{**self.config, **attention})
        fast.keep_padding = self.keep_padding
        happened = [self.check_call(original, fast, dtype)]
        for i, (B, S) in enumerate(self.more):
            again = replace(self, B=B, S=min(S, self.config["max_position_embeddings"]), seed=self.seed + i)
            happened.append(again.check_call(original, fast, dtype))
        return happened[0]

    def check_call(self, original: Any, fast: Any, dtype: torch.dtype) -> str:
        arguments = {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.arguments(fast).items()
        }
        actual, expected = (self.call(model, arguments) for model in (fast, original))
        if not assert_alike(actual, expected, ValueError):
            return "an error in both"
        real = arguments.get("attention_mask")
        logits_everywhere = self.keep_padding is None and HEADS[self.head].token_logits
        everywhere = (
            self.keep_padding or logits_everywhere or real is None or real.dim() != arguments_dim(self.head) or real.shape[-1] != self.S
        )
        if not everywhere and bool(real.reshape(-1, self.S).eq(0).all(dim=-1).any()):
            everywhere = True  # a row masked whole is computed as transformers computes it
        if "logits_to_keep" in self.pass_ and not everywhere:
            actual, expected = (cut(out, self.S, arguments["logits_to_keep"]) for out in (actual, expected))
        assert_close(actual, expected, None if everywhere else real, dtype, in_float64(original, arguments))
        return "equal"

    def call(self, model: Any, arguments: dict[str, Any]) -> Any:
        with torch.set_grad_enabled(self.grad):
            return outcome(lambda: model(**copy.deepcopy(arguments)))


def arguments_dim(head: str) -> int:
    return 3 if head == "BertForMultipleChoice" else 2


def cut(out: Any, S: int, keep: int) -> Any:
    """The logits put back where they belong, so that the mask says which of them are real."""
    items = out.items() if hasattr(out, "items") else enumerate(out)
    padded = {
        name: torch.nn.functional.pad(t, (0, 0, S - keep, 0)) if isinstance(t, torch.Tensor) and t.dim() == 3 and t.shape[1] == keep else t
        for name, t in items
    }
    return type(out)(**padded) if hasattr(out, "items") else tuple(padded.values())


MORE_MASKS = {
    "float": lambda shape, S, N: (torch.rand(shape) < 0.8).float(),
    "ones of another shape": lambda shape, S, N: torch.ones(shape[0], S + 3, dtype=torch.long),
    "bool": lambda shape, S, N: torch.rand(shape) < 0.8,
    "4-D bool": lambda shape, S, N: torch.rand(shape[0], 1, S, S) < 0.8,
    "4-D float": lambda shape, S, N: torch.randn(shape[0], 1, S, S),
    "4-D by head": lambda shape, S, N: torch.randn(shape[0], N, S, S),
    "4-D shared": lambda shape, S, N: torch.randn(1, 1, S, S),
}


@st.composite
def calls(draw: st.DrawFn) -> Call:
    head = draw(st.sampled_from(builders.HEADS))
    heads, size = draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([3, 8, 16, 17]))
    config: dict[str, Any] = {
        "vocab_size": 53,
        "hidden_size": heads * size,
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(0, 3)),
        "intermediate_size": draw(st.sampled_from([1, 19, 64])),
        "max_position_embeddings": draw(st.sampled_from([24, 40])),
        "hidden_act": draw(st.sampled_from(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh", "gelu_10", "quick_gelu"])),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5])),
        "attn_implementation": draw(st.sampled_from(["sdpa", "eager"])),
        "is_decoder": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }
    allowed = ["labels", "position_ids", "no types", "inputs_embeds"]
    if head != "BertForMultipleChoice":
        allowed.append("shared positions")
    if head in builders.DECODERS:
        config["add_cross_attention"] = config["is_decoder"] and draw(st.booleans())
        if config.get("add_cross_attention"):
            allowed += ["encoder_hidden_states", "encoder_attention_mask"]
    if head == "BertLMHeadModel":
        allowed.append("logits_to_keep")
    chosen = draw(st.lists(st.sampled_from(allowed), unique=True, max_size=4))
    if "logits_to_keep" in chosen and "labels" in chosen:
        chosen.remove("labels")
    wrong = draw(st.sampled_from([None] * 9 + ["both", "a wrong token", "a wrong mask"]))
    if wrong is not None:
        chosen = [*(name for name in chosen if name != "inputs_embeds"), wrong]
    S = draw(st.integers(1, 24))
    if wrong == "a wrong mask":  # transformers overlooks one that it does not read, or that happens to broadcast
        S, config["num_hidden_layers"] = max(S, 2), max(config["num_hidden_layers"], 1)
    masks = [*builders.MASKS, *(MORE_MASKS if head != "BertForMultipleChoice" else ("float", "bool"))]
    if config["is_decoder"] and "ones of another shape" in masks:
        masks.remove("ones of another shape")  # refused, but where transformers does not read it or it happens to broadcast
    attentions = draw(st.sampled_from([False, False, False, True]))
    if (config["attn_implementation"] == "eager" or attentions) and "4-D bool" in masks:
        masks.remove("4-D bool")  # eager attention adds True as 1
    states = [None, None, True, *([[0, -1], [1], -1] if hasattr(output_capturing, "selected_hidden_states") else [])]
    if config["num_hidden_layers"] == 0 and not hasattr(output_capturing, "selected_hidden_states"):
        states = [None]  # transformers then took them from its layers, and has none, not even the embeddings, of a model without any
    return Call(
        head=head,
        config=config,
        B=draw(st.integers(1, 4)),
        S=S,
        mask=draw(st.sampled_from(masks)),
        pass_=tuple(chosen),
        output_hidden_states=draw(st.sampled_from(states)),
        output_attentions=attentions,
        return_dict=draw(st.sampled_from([None, True, False])),
        keep_padding=draw(st.sampled_from([None, True, False])),
        grad=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
        dtype=draw(st.sampled_from(["float32", "float32", *DTYPES])),
        more=() if wrong else tuple(draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 24)), max_size=2))),
    )


TARGET = Target(calls(), batch=40, share=3.0)
