"""Scatter packed rows into a padded batch.

    out[indices[t]] = x[t], every other row = fill

A negative index means "no row" and is skipped. So a batch of fixed size (in a CUDA graph) can hold fewer rows.

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
def _unpack_kernel(
    x_ptr,  # [T, C]
    indices_ptr,  # [T] int64
    out_ptr,  # [R, C]; holds the fill
    rows,  # T
    columns,  # C
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    index = tl.load(indices_ptr + row, mask=row < rows, other=-1)
    real = (index >= 0)[:, None] & (col < columns)[None, :]
    values = tl.load(x_ptr + row.to(tl.int64)[:, None] * columns + col[None, :], mask=real, other=0.0)
    tl.store(out_ptr + index[:, None] * columns + col[None, :], values, mask=real)


def unpack(
    x: torch.Tensor,  # [T, C], contiguous
    indices: torch.Tensor,  # [T] int64, each below rows, all different unless negative
    rows: int,
    fill: float = 0.0,
    *,
    tile: Tile,
) -> torch.Tensor:  # [rows, C]
    """Row t of x goes to row indices[t], or nowhere if that is negative; every other row is `fill`."""
    T, columns = x.shape
    out = x.new_full((rows, columns), fill)
    if T == 0 or columns == 0:
        return out
    _unpack_kernel[(triton.cdiv(T, tile.rows), triton.cdiv(columns, tile.columns))](
        x,
        indices,
        out,
        T,
        columns,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        num_warps=tile.num_warps,
    )
    return out
