"""The static buffers that a CUDA graph reads its batch from, and what it leaves.

Shape letters: T rows of a call, B sequences; Tb and Bb the same of its bucket; C columns.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.packed import GraphInputs, PackedBatch
from bertfast.engine.plan_inputs import PlanInputs, plan_inputs
from bertfast.graph.heads import HeadOutput
from bertfast.ops import Ops

Outputs = dict[str, "CapturedOutput"]


class Bucket(NamedTuple):
    """The sizes that a graph is captured at; it serves every call that is not larger."""

    rows: int
    sequences: int
    longest: int


def bucket_of(rows: int, sequences: int, longest: int) -> Bucket:
    """Rows: multiples of 32 up to 512, then eight steps an octave, so that at most an eighth is padding. Sequences: a power of two.
    Longest: a power of two from 64."""
    step = max(32, 1 << max(rows.bit_length() - 4, 0))
    return Bucket(-(-rows // step) * step, power_of_two(sequences), max(64, power_of_two(longest)))


def power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class CapturedOutput:
    """One output of a head as the graph leaves it."""

    value: Tensor  # [Tb, C], or [Bb, C] where it is one row a sequence; rewritten by every replay
    padded_rows: bool  # its rows become those of the padded batch
    fill: float  # the value of padded ones


@dataclass(slots=True)
class StaticBatch(PackedBatch):
    """A batch whose unpack waits until after the replay: where rows go differs from call to call."""

    fills: dict[int, float] = field(default_factory=dict)  # by the address of what is to be unpacked

    def unpack(self, x: Tensor, O: Ops, fill: float = 0.0) -> Tensor:
        self.fills[x.data_ptr()] = fill
        return x

    def buffers(self) -> list[Tensor]:
        """Each buffer once."""
        return list({t.data_ptr(): t for t in plan_inputs(self).tensors() if t is not None}.values())


def static_batch(bucket: Bucket, like: PackedBatch) -> StaticBatch:
    """Buffers of this bucket's sizes, for calls like this one."""
    device = like.rows.input_ids.device
    with torch.inference_mode(False):  # they outlive the call
        ids, positions, types = (torch.zeros(bucket.rows, dtype=torch.int64, device=device) for _ in range(3))
        cu_seqlens = torch.zeros(bucket.sequences + 1, dtype=torch.int32, device=device)
        first_cu = torch.arange(bucket.sequences + 1, dtype=torch.int32, device=device)
        first_rows = torch.zeros(bucket.sequences, dtype=torch.int64, device=device)
    attention = replace(
        like.rows.require_varlen(),
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=bucket.longest,
        max_seqlen_k=bucket.longest,
        first_cu=first_cu,
    )
    rows = GraphInputs(
        input_ids=ids,
        words=None,
        token_type_ids=None if like.rows.token_type_ids is None else types,
        position_ids=positions,
        attention=attention,
    )
    return StaticBatch(rows, batch=bucket.sequences, columns=1, indices=None, pad_mask=None, first_rows=first_rows)


def staged_inputs(batch: PackedBatch) -> PlanInputs:
    """The inputs that differ between two calls of one graph; the others (first_cu_seqlens) are fixed or absent."""
    return PlanInputs(
        input_ids=batch.rows.input_ids,
        position_ids=batch.rows.position_ids,
        token_type_ids=batch.rows.token_type_ids,
        cu_seqlens_q=batch.rows.require_varlen().cu_seqlens_q,
        first_rows=batch.first_rows,
    )


def stage(batch: PackedBatch, into: PackedBatch) -> None:
    """Copies what a call reads into the buffers of a graph, in one launch."""
    from bertfast.ops import cuda  # imports triton, which a machine without a GPU may not have

    given: Any = staged_inputs(batch)  # Any: none of these is None but token_type_ids
    buffer: Any = staged_inputs(into)
    cuda.stage(
        given.input_ids, ids_out=buffer.input_ids,
        positions=given.position_ids, positions_out=buffer.position_ids,
        types=given.token_type_ids, types_out=buffer.token_type_ids,
        cu_seqlens=given.cu_seqlens_q, cu_seqlens_out=buffer.cu_seqlens_q,
        first_rows=given.first_rows, first_rows_out=buffer.first_rows,
    )  # fmt: skip


def copy_outputs(outputs: Outputs, batch: PackedBatch) -> dict[str, HeadOutput]:
    """The caller's own tensors: the next replay overwrites the graph's."""
    T = batch.rows.input_ids.shape[0]
    copies = {}
    for name, each in outputs.items():
        if not each.padded_rows:
            value = each.value[: batch.batch].clone()
        elif batch.indices is None:
            value = each.value[:T].clone()
        else:
            value = batch.unpack(each.value[:T], ops, each.fill)
        copies[name] = HeadOutput(value, each.padded_rows)
    return copies
