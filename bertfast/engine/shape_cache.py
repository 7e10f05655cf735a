"""A call of a shape seen before, replayed without laying it out again.

Without padding, the rows, boundaries and positions of a call depend on its shape and on which inputs it has, not on their values. The
first such call leaves its layout; later ones put their own addresses in. At small sizes the layout is over half of what a call costs
outside the kernels.
"""

from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from bertfast.batch.inputs import Arguments
from bertfast.batch.masks import mask_is_full
from bertfast.engine import cpu_plans
from bertfast.engine.cached_layout import CachedLayout, Key
from bertfast.engine.call import ForwardCall
from bertfast.engine.model_state import ModelState
from bertfast.engine.plan_builder import RecordedPlan
from bertfast.engine.plan_inputs import SLOT_OF, plan_inputs, row_counts
from bertfast.runtime.config_access import is_causal
from bertfast.runtime.model_types import BaseModel

PATCHED_INPUTS = ("input_ids", "token_type_ids", "position_ids")  # arguments whose address is put in per call
DISABLING_INPUTS = ("inputs_embeds", "encoder_hidden_states", "encoder_attention_mask", "head_mask")  # change the rows or what they see


def layout_key(inputs: Arguments, base: BaseModel) -> Key | None:
    """What calls of one layout have in common; None for a call with padding, with inputs other than contiguous int64 ones, or whose default
    positions depend on its ids. base: the model without a head."""
    ids = inputs.get("input_ids")
    if not is_contiguous_int64(ids) or ids.dim() != 2:
        return None
    shape = ids.shape
    types, positions, mask = inputs.get("token_type_ids"), inputs.get("position_ids"), inputs.get("attention_mask")
    if types is not None and not (is_contiguous_int64(types) and types.shape == shape):
        return None
    if positions is None:
        if not base.family.positions_from_shape:
            return None
    elif not (is_contiguous_int64(positions) and positions.shape == shape):
        return None
    if mask is not None and not (isinstance(mask, Tensor) and mask.is_cpu and mask.shape == shape and mask_is_full(mask)):
        return None
    keep = inputs.get("logits_to_keep", 0)
    if not isinstance(keep, int) or keep != 0:
        return None
    for name in DISABLING_INPUTS:
        if inputs.get(name) is not None:
            return None
    return (*shape, types is None, positions is None, is_causal(base.config))


def is_contiguous_int64(t: object) -> TypeGuard[Tensor]:
    return isinstance(t, Tensor) and t.dtype is torch.int64 and t.is_cpu and t.is_contiguous()


def lookup(state: ModelState, key: Key | None) -> CachedLayout | None:
    return None if key is None else state.layouts.entries.get(key)


def remember(call: ForwardCall, state: ModelState, key: Key) -> None:
    """Keeps the layout of `call`, which has just run; nothing where it has no plan."""
    if call.why_eager() is not None or call.batch.rows.input_ids.is_cuda or (kind := cpu_plans.plan_key(call)) is None:
        return
    recorded = state.plans.find(kind)
    if not isinstance(recorded, RecordedPlan):
        return
    inputs, counts = plan_inputs(call.batch), row_counts(call.batch)
    patched = [name for name in PATCHED_INPUTS if call.inputs.get(name) is not None]
    for name in patched:
        read = getattr(inputs, name)
        if read is None or read.data_ptr() != call.inputs[name].data_ptr():  # a copy, which the next call would not make
            return
    inputs = replace(inputs, **dict.fromkeys(patched))
    without_values = torch.empty(1, dtype=recorded.dtype, device="cpu")
    outputs = []
    for out in recorded.outputs:
        rows = (call.batch.batch, call.batch.columns) if out.padded_rows else (counts[out.rows],)
        outputs.append((out.name, without_values.expand(*rows, out.columns)))
    slots = [(name, SLOT_OF[name]) for name in patched]
    state.layouts.put(key, CachedLayout(recorded.plan, counts, inputs.addresses(), slots, outputs, inputs))
