"""A call like an earlier one, replayed without being laid out again.

Where every token is real, the rows, boundaries and positions that bertfast.batch.layout makes of a call depend on its shape and on which
inputs it brings, not on their values. So such a call leaves what its plan was given, and the next one like it puts its own
addresses in their places: laying out a small call takes longer than half of what is left of it outside of the kernels.

A repeat lives and dies with the plan it replays: with the model's guard, which is asked before every call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from bertfast.batch.masks import mask_is_full
from bertfast.engine import cpu_plans
from bertfast.engine.call import ForwardCall
from bertfast.engine.recorder import SLOTS, RecordedPlan
from bertfast.runtime.config_access import is_causal

Key = tuple[int, int, bool, bool, bool]

MAX_ENTRIES = 64  # kinds of call, each a shape

# What such a call brings itself, and in which of SLOTS the plan reads it.
PATCHED_INPUTS = {name: [slot.name for slot in SLOTS].index(name) for name in ("input_ids", "token_type_ids", "position_ids")}
# What it may not bring: it changes the rows, or what they attend to.
DISABLING_INPUTS = ("inputs_embeds", "encoder_hidden_states", "encoder_attention_mask", "head_mask")


@dataclass(frozen=True, slots=True)
class CachedLayout:
    plan: Any
    counts: list[int]
    addresses: list[int]  # of SLOTS; those of what a call brings are put in
    brought: list[tuple[str, int]]
    outputs: list[tuple[str, Tensor]]  # of what shape and dtype each is, padded where it is cells: without values
    kept: list[Tensor | None]  # what lies at the other addresses

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The outputs in their padded shapes."""
        addresses = self.addresses.copy()
        for name, slot in self.brought:
            addresses[slot] = inputs[name].data_ptr()
        outputs = {name: torch.empty_like(like, memory_format=torch.contiguous_format) for name, like in self.outputs}
        addresses.extend([out.data_ptr() for out in outputs.values()])
        self.plan.run(self.counts, addresses)
        return outputs


def layout_key(inputs: Mapping[str, Any], config: Any) -> Key | None:
    """What calls have in common that repeat one another. None for one that has to be laid out: it has padding, or is none of the
    plainest kind, int64 rows that lie one after the other."""
    ids = inputs.get("input_ids")
    if not is_plain_int64(ids) or ids.dim() != 2:
        return None
    shape = ids.shape
    types, positions, mask = inputs.get("token_type_ids"), inputs.get("position_ids"), inputs.get("attention_mask")
    if types is not None and not (is_plain_int64(types) and types.shape == shape):
        return None
    if positions is not None and not (is_plain_int64(positions) and positions.shape == shape):
        return None
    if mask is not None and not (isinstance(mask, Tensor) and mask.is_cpu and mask.shape == shape and mask_is_full(mask)):
        return None
    kept = inputs.get("logits_to_keep", 0)
    if not isinstance(kept, int) or kept != 0:
        return None
    for name in DISABLING_INPUTS:
        if inputs.get(name) is not None:
            return None
    return (*shape, types is None, positions is None, is_causal(config))


def is_plain_int64(t: Any) -> TypeGuard[Tensor]:
    return isinstance(t, Tensor) and t.dtype is torch.int64 and t.is_cpu and t.is_contiguous()


def lookup(plans: cpu_plans.PlanCache | None, key: Key | None) -> CachedLayout | None:
    found: CachedLayout | None = None if plans is None or key is None else plans.find_repeat(key)
    return found


def remember(call: ForwardCall, key: Key) -> None:
    """Remembers how `call`, which has just run, was laid out; nothing if it has no plan."""
    if call.reason_against_recording() is not None or call.batch.rows.input_ids.is_cuda or (kind := cpu_plans.plan_key(call)) is None:
        return
    plans = cpu_plans.plans_of(call.model)
    recorded = plans.find(kind)
    if not isinstance(recorded, RecordedPlan):
        return
    inputs, counts = cpu_plans.inputs_of(call.batch), cpu_plans.counts_of(call.batch)
    brought = [(name, slot) for name, slot in PATCHED_INPUTS.items() if call.inputs.get(name) is not None]
    for name, slot in brought:
        read = inputs[slot]
        if read is None or read.data_ptr() != call.inputs[name].data_ptr():  # read from a copy, which the next call would not make
            return
        inputs[slot] = None
    without_values = torch.empty(1, dtype=recorded.dtype, device="cpu")
    outputs = []
    for out in recorded.outputs:
        rows = (call.batch.batch, call.batch.columns) if out.cells else (counts[out.rows],)
        outputs.append((out.name, without_values.expand(*rows, out.columns)))
    addresses = [0 if t is None else t.data_ptr() for t in inputs]
    plans.keep_repeat(key, CachedLayout(recorded.plan, counts, addresses, brought, outputs, inputs), MAX_ENTRIES)
