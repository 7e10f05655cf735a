"""Gather rows out of a padded batch.

    out[t] = x[indices[t]]

A negative index means "no row" and gives zeros. So a batch of fixed size (in a CUDA graph) can hold fewer rows.

Shape letters: R rows of the padded batch, T tokens (packed), C columns.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Tile:
    """The work of one program, and its share of a multiprocessor."""

    rows: int
    columns: int
    num_warps: int


@triton.jit(do_not_specialize=["rows"])  # differs from batch to batch: one binary for all
def _pack_kernel(
    x_ptr,  # [R, C]
    indices_ptr,  # [T] int64
    out_ptr,  # [T, C]
    rows,  # T
    columns,  # C
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    index = tl.load(indices_ptr + row, mask=row < rows, other=-1)
    inside = (row < rows)[:, None] & (col < columns)[None, :]
    real = inside & (index >= 0)[:, None]
    values = tl.load(x_ptr + index[:, None] * columns + col[None, :], mask=real, other=0.0)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * columns + col[None, :], values, mask=inside)


def pack(
    x: torch.Tensor,  # [R, C], contiguous
    indices: torch.Tensor,  # [T] int64, each below R
    *,
    tile: Tile,
) -> torch.Tensor:  # [T, C]
    """x[indices], and zeros where an index is negative."""
    rows, columns = indices.shape[0], x.shape[1]
    out = x.new_empty(rows, columns)
    if rows == 0 or columns == 0:
        return out
    _pack_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns))](
        x,
        indices,
        out,
        rows,
        columns,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        num_warps=tile.num_warps,
    )
    return out
