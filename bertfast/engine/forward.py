"""One call of a public class: fast path or reference path, replayed or laid out, and transformers' output."""

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.inputs import Arguments
from bertfast.engine import cpu_plans, eligibility, shape_cache
from bertfast.engine.call import ForwardCall
from bertfast.engine.model_state import ModelState, current_state
from bertfast.engine.outputs import make_output, output_options
from bertfast.engine.padding_policy import fill_padding, mask_to_fill, shows_gradients
from bertfast.engine.recompute import differentiable
from bertfast.graph.heads import Head, HeadOutput
from bertfast.runtime.model_types import Model
from bertfast.runtime.threads import follow_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput


def forward(model: Model, base: type["PreTrainedModel"], head: Head, arguments: dict[str, object]) -> "ModelOutput | tuple[object, ...]":
    """What base.forward(model, **arguments) returns, on the fast path where that covers the call. base: the transformers class."""
    follow_torch()
    reason, cached = eligibility.why_call_reference(arguments), False
    if reason is None:
        state = current_state(model)
        reason = state.guard.why_reference(model)
        if reason is None:
            cached = eligibility.wants_cache(model.config, head, arguments)
            if cached:
                reason = eligibility.why_reference_with_cache(model, state.guard, arguments)
        if reason is None:
            return compute(model, state, base, head, arguments, cached)
    if arguments.pop("head_mask", None) is not None:
        raise ValueError(
            f"head_mask: transformers' forward no longer knows it, and this call has to take that forward ({reason}); "
            "call the model in eval mode and without hooks inside"
        )
    if reason is not eligibility.INSIDE_REFERENCE:
        eligibility.warn_once(type(model).__name__, f"transformers' own forward is used: {reason}")
    with eligibility.force_reference():  # for the model inside a head as well: its padding may count here
        mask = None if reason is eligibility.INSIDE_REFERENCE else mask_to_fill(model, head, arguments)
        if mask is None:
            return base.forward(model, **arguments)
        returned = output_options(arguments, model.config)
        out = base.forward(model, **{**arguments, "return_dict": True})
    if not shows_gradients(out):
        out = fill_padding(model, head, mask, out)
    return out if returned.return_dict else out.to_tuple()


def compute(
    model: Model, state: ModelState, base: type["PreTrainedModel"], head: Head, arguments: Arguments, cached: bool
) -> "ModelOutput | tuple[object, ...]":
    """The call on the fast path. cached: it reads or writes a KV cache."""
    options = output_options(arguments, model.config)
    inputs = flatten_choices(arguments) if head.choices else arguments
    inspected = bool(options.hidden_states) or options.attentions or inputs.get("head_mask") is not None
    grad_mode = torch.is_grad_enabled()
    differentiated = grad_mode and state.guard.wants_gradient(inputs)
    call: ForwardCall | None = None
    if inspected or cached:
        call = ForwardCall(
            model, head, inputs, bool(options.hidden_states), options.attentions, differentiated and inspected, cached, state
        )

    if differentiated and not inspected:
        compute_tensors = partial(cached_layout_or_graph, model, state, head, inputs) if call is None else partial(run_call, call)
        tensors = differentiable(model, base, state.guard, arguments, inputs, call, compute_tensors)
    else:
        with torch.no_grad() if grad_mode and not differentiated else nullcontext():
            tensors = cached_layout_or_graph(model, state, head, inputs)[0] if call is None else run_graph(call)
    loss = head.loss(model, tensors, inputs)
    return make_output(model, head, call, tensors, loss, options)


def cached_layout_or_graph(model: Model, state: ModelState, head: Head, inputs: Arguments) -> tuple[dict[str, Tensor], ForwardCall | None]:
    """The tensors of a call that returns nothing else, in transformers' shapes; and the call, or None where a cached layout served it,
    which has no padding."""
    key = shape_cache.layout_key(inputs, model.base_model)
    layout = shape_cache.lookup(state, key)
    if layout is not None:
        tensors = layout(inputs)
        return (tensors if head.finish is None else head.finish(tensors, inputs)), None
    call = ForwardCall(model, head, inputs, state=state)
    tensors = run_graph(call)
    if key is not None:
        shape_cache.remember(call, state, key)
    return tensors, call


def run_call(call: ForwardCall) -> tuple[dict[str, Tensor], ForwardCall]:
    return run_graph(call), call


def run_graph(call: ForwardCall) -> dict[str, Tensor]:
    """The tensors of a call on the model graph, in transformers' shapes."""
    if call.model.batch_invariant:
        with ops.batch_invariant(call.base.embeddings.position_embeddings.weight):
            call.logits = recorded_or_eager(call)
    else:
        call.logits = recorded_or_eager(call)
    return call.tensors()


def recorded_or_eager(call: ForwardCall) -> dict[str, HeadOutput]:
    reason = call.why_eager()
    return cpu_plans.run(call) if reason is None else cpu_plans.run_eagerly(call, reason)


def flatten_choices(arguments: Arguments) -> Arguments:
    """[B, choices, S] inputs as a batch of B * choices. ValueError for inputs of fewer dimensions."""
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = embeds if ids is None else ids
    if not isinstance(given, Tensor) or given.dim() < 3:
        got = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"input_ids: got {got}, expected a tensor [batch, choices, length] (or inputs_embeds with one more dimension)")
    flat = dict(arguments, num_choices=given.shape[1])
    for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        if isinstance(t := flat.get(name), Tensor):
            flat[name] = t.reshape(-1, t.shape[-1])
    if isinstance(embeds, Tensor):
        flat["inputs_embeds"] = embeds.reshape(-1, *embeds.shape[-2:])
    return flat
