"""The one schema of what a recorded forward reads: slots of a CPU plan, static buffers of a CUDA graph.

Shape letters: R rows, B sequences, S columns, Tk keys, Re encoder rows, R' rows of inputs_embeds.
"""

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from operator import attrgetter
from typing import Annotated, Any

from torch import Tensor

from bertfast.batch.packed import GraphInputs, PackedBatch


class RowCount(IntEnum):
    """A symbolic size in a plan: an index into the counts passed to each replay."""

    ROWS = 0  # R
    SEQUENCES = 1  # B
    PADDED_ROWS = 2  # B * S
    KEYS = 3  # Tk
    ENCODER_ROWS = 4  # Re
    EMBEDDED_ROWS = 5  # R'


# A tensor of so many rows; None where the call has no such input.
Rows = Annotated[Tensor | None, RowCount.ROWS]
Sequences = Annotated[Tensor | None, RowCount.SEQUENCES]
Keys = Annotated[Tensor | None, RowCount.KEYS]
EncoderRows = Annotated[Tensor | None, RowCount.ENCODER_ROWS]
EmbeddedRows = Annotated[Tensor | None, RowCount.EMBEDDED_ROWS]


@dataclass(slots=True)  # frozen would cost a microsecond a call
class PlanInputs:
    """The tensors a recorded forward reads. Field order is slot order: read slots by SLOT_OF, never by a literal index."""

    input_ids: Rows = None
    position_ids: Rows = None
    cu_seqlens_q: Sequences = None
    cu_seqlens_k: Sequences = None
    token_type_ids: Rows = None
    words: EmbeddedRows = None
    key_rows: Keys = None
    indices: Rows = None
    first_rows: Sequences = None
    first_cu_seqlens: Sequences = None
    encoder_rows: EncoderRows = None
    cross_cu_seqlens_q: Sequences = None
    cross_cu_seqlens_k: Sequences = None
    cache_rows: Rows = None  # of a generation's step
    cache_positions: Rows = None
    cache_lengths: Rows = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """In slot order."""
        return _in_slot_order(self)

    def addresses(self) -> list[int]:
        """In slot order; 0 for None."""
        return [0 if t is None else t.data_ptr() for t in _in_slot_order(self)]

    def cloned(self) -> "PlanInputs":
        return PlanInputs(**{name: None if (t := getattr(self, name)) is None else t.clone() for name in SLOT_OF})


SLOT_OF = {each.name: i for i, each in enumerate(fields(PlanInputs))}
SLOT_COUNTS: list[RowCount] = [PlanInputs.__annotations__[name].__metadata__[0] for name in SLOT_OF]  # of each slot
_COUNT_NAMES = [count.name for count in sorted(RowCount)]
_in_slot_order = attrgetter(*SLOT_OF)


def plan_inputs(batch: PackedBatch) -> PlanInputs:
    """What a recorded forward reads of a batch."""
    rows, attention = batch.rows, batch.rows.require_varlen()
    cross = rows.cross_varlen
    return PlanInputs(
        input_ids=rows.input_ids,
        position_ids=rows.position_ids,
        cu_seqlens_q=attention.cu_seqlens_q,
        cu_seqlens_k=attention.cu_seqlens_k,
        token_type_ids=rows.token_type_ids,
        words=rows.words,
        key_rows=attention.key_rows,
        indices=batch.indices,
        first_rows=batch.first_rows,
        first_cu_seqlens=attention.first_cu_seqlens(),
        encoder_rows=rows.encoder_rows,
        cross_cu_seqlens_q=None if cross is None else cross.cu_seqlens_q,
        cross_cu_seqlens_k=None if cross is None else cross.cu_seqlens_k,
    )


def batch_reading(inputs: PlanInputs, like: PackedBatch) -> PackedBatch:
    """`like`, reading the tensors of `inputs`, which have None only where `like` has."""
    given: Any = inputs
    rows, cross = like.rows, like.rows.cross_varlen
    if cross is not None:
        cross = replace(cross, cu_seqlens_q=given.cross_cu_seqlens_q, cu_seqlens_k=given.cross_cu_seqlens_k)
    attention = replace(
        like.rows.require_varlen(),
        cu_seqlens_q=given.cu_seqlens_q,
        cu_seqlens_k=given.cu_seqlens_k,
        key_rows=given.key_rows,
        first_cu=given.first_cu_seqlens,
    )
    rows = GraphInputs(
        input_ids=given.input_ids,
        words=given.words,
        token_type_ids=given.token_type_ids,
        position_ids=given.position_ids,
        attention=attention,
        encoder_rows=given.encoder_rows,
        cross_attention=cross,
    )
    return replace(like, rows=rows, indices=given.indices, first_rows=given.first_rows)


def row_counts(batch: PackedBatch) -> list[int]:
    """The value of each RowCount for a batch."""
    rows, key_rows = batch.rows, batch.rows.require_varlen().key_rows
    counts = {
        "ROWS": rows.input_ids.shape[0],
        "SEQUENCES": batch.batch,
        "PADDED_ROWS": batch.batch * batch.columns,
        "KEYS": 0 if key_rows is None else key_rows.shape[0],
        "ENCODER_ROWS": 0 if rows.encoder_rows is None else rows.encoder_rows.shape[0],
        "EMBEDDED_ROWS": 0 if rows.words is None else rows.words.shape[0],
    }
    return [counts[name] for name in _COUNT_NAMES]
