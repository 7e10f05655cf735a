"""Where the results of a plan's ops lie: buffers in an arena, which results that are not alive together share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bertfast.runtime.native import _C

CACHE_LINE = 32  # elements: offsets are multiples of it

Ref = tuple[int, int, int]  # kind, value, column: see csrc/plan/plan.h
NO_REF: Ref = (_C.REF_NONE, 0, 0)


@dataclass(slots=True)
class Buffer:
    """The result of an op: `columns` wide, as many rows as the row count says."""

    rows: int  # a RowCount
    columns: int
    first: int  # index of the op that writes it
    last: int  # index of the last op that reads it
    ref: Ref = NO_REF  # set once offsets are assigned


def assign_offsets(buffers: Iterable[Buffer]) -> Iterator[tuple[Buffer, int]]:
    """The first column of each buffer in the arena of its row count: first fit among the buffers alive at the same time."""
    assigned: list[tuple[Buffer, int]] = []
    for buffer in buffers:
        columns = -(-buffer.columns // CACHE_LINE) * CACHE_LINE
        offset = 0
        for other, start in sorted(assigned, key=lambda pair: pair[1]):
            if other.rows != buffer.rows or other.last < buffer.first or buffer.last < other.first:
                continue
            if offset + columns <= start:
                break
            offset = max(offset, start + -(-other.columns // CACHE_LINE) * CACHE_LINE)
        assigned.append((buffer, offset))
        yield buffer, offset
