"""Which calls compute padded positions, and what stands there where they do not.

transformers computes every position. bertfast leaves padding out where nobody is meant to read it: in the hidden states of an encoder.
Both paths follow the rule, so a model answers alike with and without hooks, adapters or autocast.

Shape letters: B batch, S columns.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bertfast.graph.heads import Head, select_columns
from bertfast.runtime.config_access import is_causal


def computes_padding(model: Any, head: Head, inputs: Mapping[str, Any], hidden: bool) -> bool:
    """Whether padded positions of this call get transformers' values. hidden: hidden states are returned."""
    if model.keep_padding or padding_affects_loss(head, inputs):
        return True
    keep = inputs.get("logits_to_keep", 0)
    if head.shifted and not (isinstance(keep, int) and keep == 0):
        if padding_selected(inputs):
            return True
        if not hidden:  # nothing else is returned
            return False
    return model.keep_padding is None and (head.token_logits or is_causal(model.config))


def padding_affects_loss(head: Head, inputs: Mapping[str, Any]) -> bool:
    """Whether the loss reads logits at padding."""
    if head.span_labels and all(inputs.get(name) is not None for name in head.span_labels):
        return True
    mask = inputs.get("attention_mask")
    for name in head.token_labels:
        labels = inputs.get(name)
        if labels is not None and mask is not None and mask.dim() == 2 and labels.shape == mask.shape:
            padded, counts = mask.eq(0), labels.ne(-100)
            if (padded & counts).any() or (head.shifted and (padded[:, :-1] & counts[:, 1:]).any()):
                return True
    return False


def padding_selected(inputs: Mapping[str, Any]) -> bool:
    """Whether logits_to_keep selects a padded column."""
    mask, tokens = inputs.get("attention_mask"), inputs.get("input_ids")
    tokens = inputs.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return False
    new = mask[:, -tokens.shape[1] :]
    return not bool(select_columns(new[..., None], inputs["logits_to_keep"]).all())


def fills_padding(model: Any, head: Head, arguments: Mapping[str, Any]) -> bool:
    """Whether transformers' forward of this call gets the fast path's fill at padding, where it has any."""
    mask = arguments.get("attention_mask")
    if model.keep_padding or not isinstance(mask, Tensor) or mask.dim() != (3 if head.choices else 2):
        return False
    if model.keep_padding is None:
        return not (head.token_logits or is_causal(model.config))
    return not any(arguments.get(name) is not None for name in (*head.token_labels, *head.span_labels, "logits_to_keep"))


def fill_padding(model: Any, head: Head, mask: Tensor, out: Any) -> Any:
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
