"""Which calls compute padded positions, and what stands there where they do not.

transformers computes every position. bertfast leaves padding out where nobody is meant to read it: in the hidden states of an encoder.
Both paths follow the rule, so a model answers alike with and without hooks, adapters or autocast.

Shape letters: B batch, S columns.
"""

from torch import Tensor
from transformers.utils import ModelOutput

from bertfast.batch.inputs import Arguments
from bertfast.cache.objects import from_legacy, given_cache
from bertfast.graph.heads import Head, select_columns
from bertfast.runtime.config_access import is_causal
from bertfast.runtime.model_types import Model


def computes_padding(model: Model, head: Head, inputs: Arguments, hidden: bool) -> bool:
    """Whether padded positions of this call get transformers' values. hidden: hidden states are returned."""
    if model.keep_padding or padding_affects_loss(head, inputs):
        return True
    keep = inputs.get("logits_to_keep", 0)
    if head.shifted and not (isinstance(keep, int) and keep == 0):
        if padding_selected(inputs):
            return True
        if not hidden:  # nothing else is returned
            return False
    return not leaves_padding_out(model, head)


def leaves_padding_out(model: Model, head: Head) -> bool:
    """Whether keep_padding lets a call of this head do without padded positions, where the call itself does not read them."""
    if model.keep_padding is None:
        return not (head.token_logits or is_causal(model.config))
    return not model.keep_padding


def padding_affects_loss(head: Head, inputs: Arguments) -> bool:
    """Whether the loss reads logits at padding."""
    if head.span_labels and all(inputs.get(name) is not None for name in head.span_labels):
        return True
    mask = inputs.get("attention_mask")
    for name in head.token_labels:
        labels = inputs.get(name)
        if isinstance(labels, Tensor) and isinstance(mask, Tensor) and mask.dim() == 2 and labels.shape == mask.shape:
            padded, counts = mask.eq(0), labels.ne(-100)
            if (padded & counts).any() or (head.shifted and (padded[:, :-1] & counts[:, 1:]).any()):
                return True
    return False


def padding_selected(inputs: Arguments) -> bool:
    """Whether logits_to_keep selects a padded column."""
    mask, tokens, keep = inputs.get("attention_mask"), inputs.get("input_ids"), inputs.get("logits_to_keep")
    tokens = inputs.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return False
    if not isinstance(keep, int | Tensor):
        return False
    new = mask[:, -tokens.shape[1] :]
    return not bool(select_columns(new[..., None], keep).all())


def mask_to_fill(model: Model, head: Head, arguments: Arguments) -> Tensor | None:
    """The call's own columns of the attention_mask, where transformers' forward of it gets the fast path's fill at padding; else None."""
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != (3 if head.choices else 2) or not leaves_padding_out(model, head):
        return None
    read = () if model.keep_padding is None else (*head.token_labels, *head.span_labels, "logits_to_keep")
    return None if any(arguments.get(name) is not None for name in read) else of_new_columns(mask, arguments)


def of_new_columns(mask: Tensor, arguments: Arguments) -> Tensor | None:
    """The part of a mask that belongs to the tokens of this call; None for a mask of another shape, which transformers overlooks or
    refuses."""
    tokens, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    shape = embeds.shape[:-1] if isinstance(embeds, Tensor) else tokens.shape if isinstance(tokens, Tensor) else mask.shape
    if mask.shape[-1] != shape[-1] and (cache := given_cache(arguments)) is not None:
        past = from_legacy(cache).get_seq_length()
        mask = mask[:, past : past + shape[-1]]
    return mask if mask.shape == shape else None


def shows_gradients(out: ModelOutput) -> bool:
    """Whether the caller can ask for the gradient of a returned state or attention: a filled one would be a copy without it, so no padding
    is filled."""
    shown = [x for name in ("hidden_states", "attentions", "cross_attentions") for x in out.get(name) or ()]
    return any(isinstance(x, Tensor) and x.requires_grad for x in shown)


def fill_padding(model: Model, head: Head, mask: Tensor, out: ModelOutput) -> ModelOutput:
    """A ModelOutput of transformers' forward with the fast path's fill at padding. Only tensors decide, so that tracers pass."""
    padded = mask.reshape(-1, mask.shape[-1]).eq(0)
    # As bertfast.batch.padding has it: a row without a token, or a pooled column 0 that is padding, and all is computed.
    padded = padded & ~padded.all(dim=1).any()
    if head.pooled and model.base_model.pooler is not None:
        padded = padded & ~padded[:, 0].any()
    for name, fill in head.position_fill.items():
        if isinstance(out[name], Tensor):
            out[name] = out[name].masked_fill(padded if out[name].dim() == 2 else padded[..., None], fill)
    if out.get("hidden_states") is not None:
        states = [None if x is None else x.masked_fill(padded[..., None], 0.0) for x in out["hidden_states"]]
        out["hidden_states"] = tuple(states)
    for name in ("attentions", "cross_attentions"):
        if out.get(name):
            out[name] = tuple(x.masked_fill(padded[:, None, :, None], 0.0) for x in out[name])
    return out
