"""One call of a public class: read what is asked for, take the road, give back transformers' output."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.cache import objects as kv_cache
from bertfast.engine import cpu_plans, eligibility, gradients, shape_cache
from bertfast.engine.call import Arguments, ForwardCall
from bertfast.engine.guard import guard_of
from bertfast.graph.heads import HEADS, Head, HeadOutput
from bertfast.runtime.config_access import setting

FIELDS = {head.output: tuple(field.name for field in fields(head.output)) for head in HEADS.values()}  # in order


def forward(model: Any, base: type, head: Head, arguments: Arguments) -> Any:
    """What base.forward(model, **arguments) returns, by the fast road where it covers the call."""
    reason = eligibility.why_reference(model, arguments)
    cached = reason is None and wants_cache(model.config, head, arguments)
    if cached:
        reason = why_reference_with_cache(model, arguments)
    if reason is None:
        return compute(model, base, head, arguments, cached)
    if arguments.pop("head_mask", None) is not None:
        raise ValueError(
            f"head_mask: transformers' forward no longer knows it, and this call has to take that forward ({reason}); "
            "call the model in eval mode and without hooks inside"
        )
    if reason is not eligibility.INSIDE_REFERENCE:
        eligibility.warn_once(type(model).__name__, f"transformers' own forward is used: {reason}")
    with eligibility.force_reference():  # the model inside a head as well: its padding may count here
        return base.forward(model, **arguments)  # type: ignore[attr-defined]  # base is the transformers class


def compute(model: Any, base: type, head: Head, arguments: Arguments, cached: bool = False) -> Any:
    config = model.config
    hidden, attentions = (arguments.get(name, setting(config, name, False)) for name in ("output_hidden_states", "output_attentions"))
    inputs = flatten_choices(arguments) if head.choices else arguments
    inspected = bool(hidden) or bool(attentions) or inputs.get("head_mask") is not None
    recording = torch.is_grad_enabled()
    differentiated = recording and guard_of(model).wants_gradient(inputs)
    call = None
    if inspected or cached:
        call = ForwardCall(model, head, inputs, bool(hidden), bool(attentions), differentiated and inspected, cached)
    if differentiated and not inspected:
        tensors = recomputed(model, base, head, arguments, inputs, call)
    else:
        with torch.no_grad() if recording and not differentiated else nullcontext():
            tensors = cached_layout_or_graph(model, head, inputs)[0] if call is None else run_graph(call)
    loss = head.loss(model, tensors, inputs)
    return make_output(model, head, call, tensors, loss, hidden, bool(attentions), return_dict(arguments, config))


def cached_layout_or_graph(model: Any, head: Head, inputs: Arguments) -> tuple[dict[str, Tensor], ForwardCall | None]:
    """The outputs of a call of which nothing else is wanted, in the shapes that transformers returns; and how it was computed: None
    where an earlier call was repeated, which had no padding."""
    key = shape_cache.layout_key(inputs, model.base_model.config)
    repeat = shape_cache.lookup(guard_of(model).plans, key)
    if repeat is not None:
        tensors = repeat(inputs)
        return (tensors if head.finish is None else head.finish(tensors, inputs)), None
    call = ForwardCall(model, head, inputs)
    tensors = run_graph(call)
    if key is not None:
        shape_cache.remember(call, key)
    return tensors, call


def recomputed(model: Any, base: Any, head: Head, arguments: Arguments, inputs: Arguments, call: ForwardCall | None) -> dict[str, Tensor]:
    """The fast forward as one autograd node; its backward differentiates transformers' forward. call: where there is one already."""
    names: list[str] = []
    blanks: list[Tensor | None] = []
    cache = None if call is None else call.cache

    def run() -> list[Tensor]:
        tensors, ran = cached_layout_or_graph(model, head, inputs) if call is None else (run_graph(call), call)
        names.extend(tensors)
        blanks.extend([None] * len(tensors) if ran is None else ran.blanks(tensors))
        return list(tensors.values())

    def recompute() -> list[Tensor]:
        if cache is not None and cache.past:
            raise RuntimeError(
                "backward through a step on a KV cache: what the cache holds was computed without gradients; "
                "pass the whole sequence at once, with use_cache=False"
            )
        unlabelled = {k: v for k, v in arguments.items() if k not in NOT_RECOMPUTED}
        if cache is not None:
            unlabelled["use_cache"] = False
        with eligibility.force_reference():
            outputs = base.forward(model, **{**unlabelled, "return_dict": True})
        # What came back as a fill was a constant: no gradient passes there.
        return [
            outputs[name] if blank is None else outputs[name].masked_fill(expand(blank, outputs[name]), 0.0)
            for name, blank in zip(names, blanks, strict=True)
        ]

    tensors = gradients.recomputed(run, recompute, guard_of(model).differentiable_inputs(inputs))
    return dict(zip(names, tensors, strict=True))


def run_graph(call: ForwardCall) -> dict[str, Tensor]:
    """The outputs of a call on our own graph, in the shapes that transformers returns."""
    if call.model.batch_invariant:
        with ops.batch_invariant(call.base.embeddings.position_embeddings.weight):
            call.logits = recorded_or_eager(call)
    else:
        call.logits = recorded_or_eager(call)
    return call.tensors()


def recorded_or_eager(call: ForwardCall) -> dict[str, HeadOutput]:
    reason = call.reason_against_recording()
    return cpu_plans.run(call) if reason is None else cpu_plans.run_eagerly(call, reason)


# What a recomputed forward does without: its outputs are logits alone, and the loss is taken outside.
NOT_RECOMPUTED = frozenset(
    (
        *("labels", "next_sentence_label", "start_positions", "end_positions", "num_items_in_batch", "shift_labels"),
        *("output_hidden_states", "output_attentions", "use_cache", "cache", "past_key_values"),
    )
)


def expand(blank: Tensor, like: Tensor) -> Tensor:
    return blank.view(*blank.shape, *(1 for _ in range(like.dim() - blank.dim())))


def wants_cache(config: Any, head: Head, arguments: Arguments) -> bool:
    """Whether the call reads or writes a KV cache."""
    if kv_cache.given_cache(arguments) is not None:
        return True
    if not setting(config, "is_decoder") or kv_cache.CACHE_FIELD not in FIELDS[head.output]:
        return False
    if head.shifted and arguments.get("labels") is not None:
        return False
    use_cache = arguments.get("use_cache")
    return bool(setting(config, "use_cache") if use_cache is None else use_cache)


def why_reference_with_cache(model: Any, arguments: Arguments) -> str | None:
    """Why a call with a cache takes transformers' forward; None where the fast road covers it.

    Under grad mode the fast road stays: its keys and values carry no gradient, and a backward that would need one raises. Where the
    gradient shows in what a call returns (hidden states and attentions), it is transformers' forward that has it.
    """
    inspected = any(arguments.get(name, setting(model.config, name, False)) for name in ("output_hidden_states", "output_attentions"))
    if inspected and torch.is_grad_enabled() and guard_of(model).wants_gradient(arguments):
        return "hidden states or attentions under grad mode, and a KV cache"
    given = kv_cache.given_cache(arguments)
    return None if given is None else kv_cache.why_unsupported(kv_cache.from_legacy(given), model.config)


def flatten_choices(arguments: Arguments) -> Arguments:
    """[B, choices, S] inputs as a batch of B * choices."""
    given = arguments.get("input_ids") if arguments.get("input_ids") is not None else arguments.get("inputs_embeds")
    if not isinstance(given, Tensor) or given.dim() < 3:
        raise ValueError("input_ids: expected a tensor [batch, choices, length] (or inputs_embeds with one more dimension)")
    flat = dict(arguments, num_choices=given.shape[1])
    for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        if flat.get(name) is not None:
            flat[name] = flat[name].reshape(-1, flat[name].shape[-1])
    if flat.get("inputs_embeds") is not None:
        flat["inputs_embeds"] = flat["inputs_embeds"].reshape(-1, *flat["inputs_embeds"].shape[-2:])
    return flat


def return_dict(arguments: Arguments, config: Any) -> bool:
    asked = arguments.get("return_dict")
    return bool(setting(config, "return_dict", True) if asked is None else asked)


def make_output(
    model: Any, head: Head, call: ForwardCall | None, tensors: Mapping[str, Tensor], loss: Tensor | None,
    hidden: bool | int | Sequence[int] | None, attentions: bool, as_dict: bool,
) -> Any:  # fmt: skip
    """The head's ModelOutput; fields and order as transformers fills them. call: where more than `tensors` is wanted of it."""
    cache: dict[str, Any] = {} if call is None or call.cache is None else {kv_cache.CACHE_FIELD: call.cache.output()}
    inside: dict[str, Any] = {}
    if hidden and call is not None:
        inside["hidden_states"] = select_hidden(call.hidden_states(), hidden)
    if attentions and call is not None:
        rows = call.batch.rows
        inside["attentions"] = call.probabilities(rows.attention)
        inside["cross_attentions"] = call.probabilities(rows.cross_attention)
    if model.base_model is model:
        if inside.get("hidden_states") and inside["hidden_states"][-1] is not None:
            inside["hidden_states"] = (*inside["hidden_states"][:-1], tensors["last_hidden_state"])
        out = fast_model_output(head.output, {**tensors, **cache})
        for name, value in inside.items():  # transformers adds these to the finished output, so they come last in its tuple
            out[name] = value
    else:
        known = {name: value for name, value in inside.items() if name in FIELDS[head.output]}
        out = fast_model_output(head.output, {"loss": loss, **tensors, **cache, **known})
    return out if as_dict else out.to_tuple()


def fast_model_output(cls: Any, values: Mapping[str, Any]) -> Any:
    """cls(**values), a ModelOutput, without what that costs: its __setattr__ looks through all of its fields for each of them."""
    fields_of_it = FIELDS[cls]
    out = cls.__new__(cls)
    out.__dict__.update(dict.fromkeys(fields_of_it))
    out.__dict__.update(values)
    for name in fields_of_it:
        value = values.get(name)
        if value is not None:
            OrderedDict.__setitem__(out, name, value)
    return out


def select_hidden(states: list[Tensor], wanted: bool | int | Sequence[int]) -> tuple[Tensor | None, ...]:
    """All of them; or, for an index or a list of indices, None in the place of every other, as transformers 5.23 and later do."""
    if isinstance(wanted, bool):
        return tuple(states)
    indices = {i % len(states) for i in ([wanted] if isinstance(wanted, int) else wanted) if -len(states) <= i < len(states)}
    return tuple(state if i in indices else None for i, state in enumerate(states))
