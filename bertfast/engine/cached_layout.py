"""What a repeated call of one shape reuses: its plan, its row counts and the addresses that its layout left.

Shape letters: B batch, S length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bertfast.batch.inputs import CheckedArguments
from bertfast.engine.plan_inputs import PlanInputs
from bertfast.runtime.locks import make_lock
from bertfast.runtime.native import _C

Key = tuple[int, int, bool, bool, bool]  # B, S, no token_type_ids, no position_ids, causal

MAX_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class CachedLayout:
    plan: _C.Plan
    counts: list[int]
    addresses: list[int]  # in slot order; those of patched inputs are replaced in each call
    patched: list[tuple[str, int]]  # argument, slot
    outputs: list[tuple[str, Tensor]]  # shape and dtype of each, padded where its rows are those of the batch; no values
    inputs: PlanInputs  # owns the memory at the other addresses

    def __call__(self, arguments: CheckedArguments) -> dict[str, Tensor]:
        """The outputs in their padded shapes."""
        addresses = self.addresses.copy()
        for name, slot in self.patched:
            addresses[slot] = arguments[name].data_ptr()
        outputs = {name: torch.empty_like(like, memory_format=torch.contiguous_format) for name, like in self.outputs}
        addresses.extend([out.data_ptr() for out in outputs.values()])
        self.plan.run(self.counts, addresses)
        return outputs


class LayoutCache:
    """The latest MAX_ENTRIES layouts of one model. Dropped with the model's state, so never older than their plans."""

    def __init__(self) -> None:
        self.entries: dict[Key, CachedLayout] = {}
        self._lock = make_lock()

    def put(self, key: Key, layout: CachedLayout) -> None:
        with self._lock:
            newest = list(self.entries.items())[-MAX_ENTRIES + 1 :]
            self.entries = {**dict(newest), key: layout}
