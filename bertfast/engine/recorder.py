"""A forward written down as it is computed, for the C++ host to run again as a flat plan (csrc/plan).

The Recorder stands in the place of the ops. What it writes down says for every operand what it is: an input (a slot), a weight (its
address) or the result of an earlier op, which gets a place in an arena. Sizes are row counts that a plan is told at each replay, so one
plan holds for every batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.graph.heads import HeadOutput
from bertfast.ops import Fp8Rows, Fp8Weight, Int8Weight, Rows
from bertfast.ops.cpu import activation_code
from bertfast.ops.fp8 import Scales
from bertfast.runtime.native import _C

Ref = tuple[int, int, int]  # kind, value, column: see csrc/plan/plan.h
NOTHING: Ref = (_C.REF_NONE, 0, 0)

# Row counts a plan is told at each replay.
ROWS, SEQUENCES, CELLS, KEYS, ENCODER, WORDS = range(6)

QUANTIZING_OPS = ("embed_layer_norm", "add_layer_norm", "int8_linear")  # ops of a plan that can quantize what they make

CACHE_LINE = 32  # numbers: places in the arena start on a cache line


class CannotRecordError(Exception):
    """Something in the graph that a plan cannot hold; the message says what."""


@dataclass(frozen=True, slots=True)
class Slot:
    name: str
    rows: int  # the row count it has


SLOTS = [
    Slot("input_ids", ROWS),
    Slot("position_ids", ROWS),
    Slot("cu_seqlens_q", SEQUENCES),
    Slot("cu_seqlens_k", SEQUENCES),
    Slot("token_type_ids", ROWS),
    Slot("words", WORDS),
    Slot("key_rows", KEYS),
    Slot("indices", ROWS),
    Slot("first_rows", SEQUENCES),
    Slot("first_cu_seqlens", SEQUENCES),
    Slot("encoder_rows", ENCODER),
    Slot("cross_cu_seqlens_q", SEQUENCES),
    Slot("cross_cu_seqlens_k", SEQUENCES),
    Slot("cache_rows", ROWS),
    Slot("cells", ROWS),
    Slot("last", ROWS),
]


@dataclass(slots=True)
class Buffer:
    """What an op left: `columns` wide, as many rows as the row count says."""

    rows: int
    columns: int
    first: int  # the op that made it
    last: int  # the last op that reads it
    ref: Ref = NOTHING  # once places are given out


@dataclass(frozen=True, slots=True)
class PlanOutput:
    name: str
    cells: bool
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class RecordedPlan:
    plan: Any
    outputs: list[PlanOutput]
    dtype: torch.dtype


@dataclass(slots=True)
class Recorder:
    """The ops, computed and written down."""

    inputs: Sequence[Tensor | None]
    weights: frozenset[int]
    results: dict[int, Buffer] = field(default_factory=dict)  # by the address of their storage
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # so that no address is used twice
    int8_rows: dict[int | None, Tensor] = field(default_factory=dict)  # the quantized rows of a result, by the address of its storage
    trouble: str | None = None

    def embed_layer_norm(
        self, input_ids: Tensor, word_weight: Tensor, position_ids: Tensor, position_weight: Tensor,
        token_type_ids: Tensor | None, token_type_weight: Tensor, weight: Tensor, bias: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        tables = position_ids, position_weight, token_type_ids, token_type_weight, weight, bias
        return self._embed(ops.embed_layer_norm(input_ids, word_weight, *tables, eps), input_ids, word_weight, *tables, eps)

    def int8_embed_layer_norm(
        self, input_ids: Tensor, words: Int8Weight, position_ids: Tensor, position_weight: Tensor,
        token_type_ids: Tensor | None, token_type_weight: Tensor, weight: Tensor, bias: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        tables = position_ids, position_weight, token_type_ids, token_type_weight, weight, bias
        return self._embed(ops.int8_embed_layer_norm(input_ids, words, *tables, eps), input_ids, words, *tables, eps)

    def _embed(
        self, out: Tensor, input_ids: Tensor, table: Tensor | Int8Weight, position_ids: Tensor, positions: Tensor,
        type_ids: Tensor | None, types: Tensor, weight: Tensor, bias: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        words, scales, width = (table.panels, table.scales, table.width) if isinstance(table, Int8Weight) else (table, None, 0)
        known = table.features if isinstance(table, Int8Weight) else len(table)
        given = words.data_ptr() not in self.weights
        self.note("embed_layer_norm", out, ROWS, out.shape[1],
            input_ids=input_ids, words=words, word_scales=scales, word_width=width, word_rows=WORDS if given else known,
            position_ids=position_ids, positions=positions, position_rows=positions.shape[0],
            type_ids=type_ids, types=types, type_rows=types.shape[0],
            weight=weight, bias=bias, eps=eps, rows=ROWS, hidden=out.shape[1], quantized=None,
        )  # fmt: skip
        return out

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
        return self._linear(ops.linear(x, weight, bias, activation), x, [weight], [bias], activation)

    def linear_concat(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
        return self._linear(ops.linear_concat(x, weights, biases), x, weights, biases, None)

    def _linear(self, out: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], activation: str | None) -> Tensor:
        rows = self.rows_of(x)
        self.note("linear", out, rows, out.shape[1],
            x=x, x_stride=self.stride_of(x), parts=[(w, b, w.shape[0]) for w, b in zip(weights, biases, strict=True)],
            activation=activation_code(activation), rows=rows, inputs=x.shape[1],
        )  # fmt: skip
        return out

    def int8_linear(
        self, x: Tensor, weights: Sequence[Int8Weight], biases: Sequence[Tensor | None], activation: str | None = None
    ) -> Tensor:
        out = ops.int8_linear(x, weights, biases, activation)
        rows = self.rows_of(x)
        self.note("int8_linear", out, rows, out.shape[1],
            x=self.quantized(x), parts=[(w.panels, w.scales, b, w.features) for w, b in zip(weights, biases, strict=True)],
            activation=activation_code(activation), rows=rows, inputs=x.shape[1], quantized=None,
        )  # fmt: skip
        return out

    def fp8_linear(
        self, x: Rows, weights: Sequence[Fp8Weight], biases: Sequence[Tensor | None], activation: str | None = None,
        quantize: Scales | None = None,
    ) -> Rows:  # fmt: skip
        self.trouble = self.trouble or "fp8, which has no CPU kernels"
        return ops.fp8_linear(x, weights, biases, activation, quantize)

    def fp8_add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Fp8Rows:
        self.trouble = self.trouble or "fp8, which has no CPU kernels"
        return ops.fp8_add_layer_norm(x, residual, weight, bias, eps)

    def quantized(self, x: Tensor) -> Tensor:
        """A stand-in for the rows of x as int8 products read them: left by the op that makes x where that op can, once for all."""
        result = self.results.get(x.untyped_storage().data_ptr())
        whole = result is not None and x.storage_offset() == 0 and x.shape[1] == result.columns
        key = x.untyped_storage().data_ptr() if whole else None
        if key in self.int8_rows:
            return self.int8_rows[key]
        rows, words = self.rows_of(x), _C.int8_row_bytes(x.shape[1]) // 4
        made = x.new_empty(x.shape[0], words)
        if (
            result is not None
            and whole
            and (maker := self.calls[result.first])[0] in QUANTIZING_OPS
            and len(maker[1].get("parts", [0])) == 1
        ):
            maker[1]["quantized"] = made
            self.results[made.untyped_storage().data_ptr()] = Buffer(rows, words, result.first, result.first)
            self.kept.append(made)
        else:
            self.note("int8_rows", made, rows, words, x=x, x_stride=self.stride_of(x), rows=rows, inputs=x.shape[1])
        if key is not None:
            self.int8_rows[key] = made
        return made

    def add_layer_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out = ops.add_layer_norm(x, residual, weight, bias, eps)
        rows = self.rows_of(x)
        self.note("add_layer_norm", out, rows, out.shape[1],
            x=x, residual=residual, weight=weight, bias=bias, eps=eps, rows=rows, hidden=x.shape[1], quantized=None,
        )  # fmt: skip
        return out

    def varlen_attention(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, causal: bool = False, scale: float | None = None, bfloat16_products: bool = False,
    ) -> Tensor:  # fmt: skip
        out = ops.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale, bfloat16_products)
        N, D = q.shape[1:]
        if D > 256:
            self.trouble = self.trouble or f"attention of head size {D}"
        rows = self.rows_of(q)
        self.note("varlen_attention", out, rows, N * D,
            q=q, q_stride=self.stride_of(q), k=k, k_stride=self.stride_of(k), v=v, v_stride=self.stride_of(v),
            cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, q_rows=rows, k_rows=self.rows_of(k), sequences=SEQUENCES,
            heads=N, head_size=D, scale=D**-0.5 if scale is None else scale, causal=causal,
            bfloat16_products=bfloat16_products,
        )  # fmt: skip
        return out

    def pack(self, x: Tensor, indices: Tensor) -> Tensor:
        out = ops.pack(x, indices)
        rows = self.rows_of(indices)
        self.note("pack", out, rows, out.shape[1], x=x, indices=indices, from_rows=self.rows_of(x), rows=rows, columns=x.shape[1])
        return out

    def unpack(self, x: Tensor, indices: Tensor, rows: int, fill: float = 0.0) -> Tensor:
        out = ops.unpack(x, indices, rows, fill)
        self.note("unpack", out, CELLS, out.shape[1],
            x=x, indices=indices, from_rows=self.rows_of(x), rows=CELLS, columns=x.shape[1], fill=fill,
        )  # fmt: skip
        return out

    def write_cache(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: Tensor, cells: Tensor) -> None:
        ops.write_cache(k, v, keys, values, rows, cells)
        self.note_operands("write_cache",
            k=k, k_stride=self.stride_of(k), v=v, v_stride=self.stride_of(v), **strides(keys, values), cache_rows=rows, cells=cells,
            rows=self.rows_of(k),
        )  # fmt: skip

    def cached_attention(
        self, q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, first: Tensor | None, last: Tensor, scale: float | None = None
    ) -> Tensor:
        out = ops.cached_attention(q, keys, values, rows, first, last, scale)
        N, D = q.shape[1:]
        self.note("cached_attention", out, self.rows_of(q), N * D,
            q=q, q_stride=self.stride_of(q), **strides(keys, values), cache_rows=rows, first=first, last=last,
            scale=D**-0.5 if scale is None else scale, rows=self.rows_of(q),
        )  # fmt: skip
        return out

    def note(self, op: str, out: Tensor, row_count: int, width: int, /, **operands: Any) -> None:
        at = len(self.calls)
        self.note_operands(op, **operands, out=out)
        self.results[out.untyped_storage().data_ptr()] = Buffer(row_count, width, at, at)
        self.kept.append(out)

    def note_operands(self, op: str, /, **operands: Any) -> None:
        at = len(self.calls)
        for operand in operands.values():
            for t in operand if isinstance(operand, list) else [operand]:
                if isinstance(t, Tensor) and (result := self.results.get(t.untyped_storage().data_ptr())) is not None:
                    result.last = at
        self.calls.append((op, operands))

    def rows_of(self, t: Tensor) -> int:
        result = self.results.get(t.untyped_storage().data_ptr())
        if result is not None:
            return result.rows
        slot = self.slot_of(t)
        if slot is None:
            self.trouble = self.trouble or f"an op reads a tensor of shape {tuple(t.shape)} that no op made"
            return ROWS
        return SLOTS[slot].rows

    def stride_of(self, t: Tensor) -> int:
        """From one row to the next, for any number of rows: of a single row torch may report another stride."""
        result = self.results.get(t.untyped_storage().data_ptr())
        return int(t.stride(0)) if result is None else result.columns

    def slot_of(self, t: Tensor) -> int | None:
        address = t.data_ptr()
        return next((i for i, known in enumerate(self.inputs) if known is not None and known.data_ptr() == address), None)

    def finish(self, logits: dict[str, HeadOutput]) -> RecordedPlan:
        """The plan. Raises CannotRecordError where something in the graph was no op."""
        if self.trouble is not None:
            raise CannotRecordError(self.trouble)
        dtype = next(iter(logits.values())).value.dtype
        plan = _C.Plan(bfloat16=dtype is torch.bfloat16)
        outputs: list[PlanOutput] = []
        for name, each in logits.items():
            result = self.results.get(each.value.untyped_storage().data_ptr())
            if result is None or each.value.shape[1:] != (result.columns,) or each.value.storage_offset() or result.ref != NOTHING:
                raise CannotRecordError(f"the output {name} is not the whole result of an op")
            result.ref = (_C.REF_SLOT, len(SLOTS) + len(outputs), 0)
            outputs.append(PlanOutput(name, each.cells, result.rows, result.columns))
        for op, operands in self.calls:
            if op == "int8_linear" and operands["quantized"] is not None:
                key = operands["out"].untyped_storage().data_ptr()
                if (result := self.results[key]).last == result.first and result.ref == NOTHING:  # it is read as int8 alone
                    operands["out"] = None
                    del self.results[key]
        for result, place in assign_offsets([r for r in self.results.values() if r.ref == NOTHING]):
            result.ref = (_C.REF_BUFFER, plan.add_buffer(result.rows, place, result.columns), 0)
        for op, operands in self.calls:
            getattr(plan, op)(**{name: self.resolved(value) for name, value in operands.items()})
        return RecordedPlan(plan, outputs, dtype)

    def resolved(self, value: Any) -> Any:
        if isinstance(value, list):
            return [tuple(self.operand(t) if t is None or isinstance(t, Tensor) else t for t in part) for part in value]
        return self.operand(value) if value is None or isinstance(value, Tensor) else value

    def operand(self, t: Tensor | None) -> Ref:
        if t is None:
            return NOTHING
        result = self.results.get(t.untyped_storage().data_ptr())
        if result is not None:
            kind, value, _ = result.ref
            if t.storage_offset() >= result.columns or (t.shape[0] > 1 and t.stride(0) != result.columns):
                raise CannotRecordError("an op reads rows out of the middle of a result")
            return kind, value, int(t.storage_offset())
        if t.data_ptr() in self.weights:
            return _C.REF_CONSTANT, t.data_ptr(), 0
        slot = self.slot_of(t)
        if slot is None:
            raise CannotRecordError(f"an op reads a tensor of shape {tuple(t.shape)} that no op made")
        return _C.REF_SLOT, slot, 0


def strides(keys: Tensor, values: Tensor) -> dict[str, Any]:
    """A KV cache, as the plan's ops take it."""
    key_strides, value_strides = keys.stride()[:3], values.stride()[:3]
    return {"keys": keys, "key_strides": key_strides, "values": values, "value_strides": value_strides, "shape": tuple(keys.shape)}


def assign_offsets(results: list[Buffer]) -> Iterator[tuple[Buffer, int]]:
    """Where each result lies among the columns of its arena: the lowest place that no result needed at the same time takes."""
    given: list[tuple[Buffer, int]] = []
    for result in results:
        wanted = -(-result.columns // CACHE_LINE) * CACHE_LINE
        place = 0
        for other, at in sorted(given, key=lambda pair: pair[1]):
            if other.rows != result.rows or other.last < result.first or result.last < other.first:
                continue
            if place + wanted <= at:
                break
            place = max(place, at + -(-other.columns // CACHE_LINE) * CACHE_LINE)
        given.append((result, place))
        yield result, place
