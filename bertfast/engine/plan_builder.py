"""From recorded ops to a plan of the C++ side (csrc/plan).

Each operand becomes a reference: an input (its slot), a weight (its address), or the result of an earlier op (a buffer in the arena).
Sizes are row counts, whose values each replay passes, so one plan serves every batch size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bertfast.engine.arena import NO_REF, Buffer, Ref, assign_offsets
from bertfast.engine.plan_inputs import SLOT_COUNTS, SLOT_OF, PlanInputs, RowCount
from bertfast.graph.heads import HeadOutput
from bertfast.runtime.native import _C

# An operand as the Recorder gives it: a tensor, the parts of a linear op, sizes and strides, or a number.
Part = tuple[Tensor | int | None, ...]
Operand = Tensor | list[Part] | tuple[int, ...] | float | None


class CannotRecordError(Exception):
    """The forward does something that a plan cannot hold; the message says what."""


@dataclass(frozen=True, slots=True)
class PlanOutput:
    name: str
    padded_rows: bool  # its rows are those of the padded batch, [B * S]
    rows: int  # a RowCount
    columns: int


@dataclass(frozen=True, slots=True)
class RecordedPlan:
    plan: _C.Plan
    outputs: list[PlanOutput]
    dtype: torch.dtype


@dataclass(slots=True)
class PlanBuilder:
    """The ops of one forward in the order they ran, with what each operand is."""

    inputs: PlanInputs
    weights: frozenset[int]  # addresses that stay valid while the plan does
    buffers: dict[int, Buffer] = field(default_factory=dict)  # by storage address
    calls: list[tuple[str, dict[str, Operand]]] = field(default_factory=list)  # method of _C.Plan, operands
    alive: list[Tensor] = field(default_factory=list)  # keeps storage addresses unique
    int8_rows: dict[int | None, Tensor] = field(default_factory=dict)  # a result's quantized rows, by its storage address
    trouble: str | None = None  # why no plan can hold this forward

    def add(self, op: str, out: Tensor, row_count: int, columns: int, /, **operands: Operand) -> None:
        index = len(self.calls)
        if out.numel() == 0:
            self.trouble = self.trouble or f"an empty result of {op}, which has no address"
        self.add_without_result(op, **operands, out=out)
        self.buffers[storage(out)] = Buffer(row_count, columns, index, index)
        self.alive.append(out)

    def add_without_result(self, op: str, /, **operands: Operand) -> None:
        index = len(self.calls)
        for operand in operands.values():
            for t in operand if isinstance(operand, list) else [operand]:
                if isinstance(t, Tensor) and (buffer := self.buffers.get(storage(t))) is not None:
                    buffer.last = index
        self.calls.append((op, operands))

    def rows_of(self, t: Tensor) -> int:
        """The RowCount of a result or an input."""
        buffer = self.buffers.get(storage(t))
        if buffer is not None:
            return buffer.rows
        slot = self.slot_of(t)
        if slot is None:
            self.trouble = self.trouble or unknown(t)
            return RowCount.ROWS
        return SLOT_COUNTS[slot]

    def stride_of(self, t: Tensor) -> int:
        """Elements from one row to the next; torch may report another stride where there is one row only."""
        buffer = self.buffers.get(storage(t))
        return int(t.stride(0)) if buffer is None else buffer.columns

    def slot_of(self, t: Tensor) -> int | None:
        address = t.data_ptr()
        return next((i for i, known in enumerate(self.inputs.tensors()) if known is not None and known.data_ptr() == address), None)

    def finish(self, logits: dict[str, HeadOutput]) -> RecordedPlan:
        """The plan whose outputs are `logits`. Raises CannotRecordError where something in the forward was no op."""
        if self.trouble is not None:
            raise CannotRecordError(self.trouble)
        dtype = next(iter(logits.values())).value.dtype
        plan = _C.Plan(bfloat16=dtype is torch.bfloat16)
        outputs: list[PlanOutput] = []
        for name, each in logits.items():
            buffer = self.buffers.get(storage(each.value))
            if buffer is None or each.value.shape[1:] != (buffer.columns,) or each.value.storage_offset() or buffer.ref != NO_REF:
                raise CannotRecordError(f"the output {name} is not the whole result of an op")
            buffer.ref = (_C.REF_SLOT, len(SLOT_OF) + len(outputs), 0)
            outputs.append(PlanOutput(name, each.padded_rows, buffer.rows, buffer.columns))
        self._drop_float_results()
        for buffer, offset in assign_offsets([b for b in self.buffers.values() if b.ref == NO_REF]):
            buffer.ref = (_C.REF_BUFFER, plan.add_buffer(buffer.rows, offset, buffer.columns), 0)
        for op, operands in self.calls:
            getattr(plan, op)(**{name: self._resolved(value) for name, value in operands.items()})
        return RecordedPlan(plan, outputs, dtype)

    def _drop_float_results(self) -> None:
        """int8_linear writes no floats where every reader takes the quantized rows."""
        for op, operands in self.calls:
            out = operands.get("out")
            if op != "int8_linear" or operands["quantized"] is None or not isinstance(out, Tensor):
                continue
            address = storage(out)
            if (buffer := self.buffers[address]).last == buffer.first and buffer.ref == NO_REF:
                operands["out"] = None
                del self.buffers[address]

    def _resolved(self, value: Operand) -> object:
        if isinstance(value, list):
            return [tuple(self._ref(t) if t is None or isinstance(t, Tensor) else t for t in part) for part in value]
        return self._ref(value) if value is None or isinstance(value, Tensor) else value

    def _ref(self, t: Tensor | None) -> Ref:
        if t is None:
            return NO_REF
        buffer = self.buffers.get(storage(t))
        if buffer is not None:
            kind, value, _ = buffer.ref
            if t.storage_offset() >= buffer.columns or (t.shape[0] > 1 and t.stride(0) != buffer.columns):
                raise CannotRecordError("an op reads rows out of the middle of a result")
            return kind, value, int(t.storage_offset())
        if t.data_ptr() in self.weights:
            return _C.REF_CONSTANT, t.data_ptr(), 0
        slot = self.slot_of(t)
        if slot is None:
            raise CannotRecordError(unknown(t))
        return _C.REF_SLOT, slot, 0


def storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def unknown(t: Tensor) -> str:
    return f"an op reads a tensor of shape {tuple(t.shape)} that no op made"
