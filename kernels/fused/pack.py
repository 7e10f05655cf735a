"""Gather rows out of a padded batch, and scatter them back.

    pack      out[t] = x[indices[t]]
    unpack    out[indices[t]] = x[t], every other row = fill

A negative index means "no row": pack writes zeros, unpack skips it. So a batch of fixed size (in a CUDA graph) can hold fewer rows.

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
def _move_rows_kernel(
    x_ptr,  # pack: [R, C]; unpack: [T, C]
    indices_ptr,  # [T] int64
    out_ptr,  # pack: [T, C]; unpack: [R, C]
    rows,  # T
    columns,  # C
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATHER: tl.constexpr,  # pack; else unpack
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    index = tl.load(indices_ptr + row, mask=row < rows, other=-1)
    packed = row.to(tl.int64)[:, None] * columns + col[None, :]
    padded = index[:, None] * columns + col[None, :]
    inside = (row < rows)[:, None] & (col < columns)[None, :]
    real = inside & (index >= 0)[:, None]
    if GATHER:
        tl.store(out_ptr + packed, tl.load(x_ptr + padded, mask=real, other=0.0), mask=inside)
    else:
        tl.store(out_ptr + padded, tl.load(x_ptr + packed, mask=real, other=0.0), mask=real)


def _move_rows(x: torch.Tensor, indices: torch.Tensor, out: torch.Tensor, gather: bool, tile: Tile) -> torch.Tensor:
    rows, columns = indices.shape[0], x.shape[1]
    if rows == 0 or columns == 0:
        return out
    _move_rows_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns))](
        x,
        indices,
        out,
        rows,
        columns,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        GATHER=gather,
        num_warps=tile.num_warps,
    )
    return out


def pack(
    x: torch.Tensor,  # [R, C], contiguous
    indices: torch.Tensor,  # [T] int64, each below R
    *,
    tile: Tile,
) -> torch.Tensor:  # [T, C]
    """x[indices], and zeros where an index is negative."""
    return _move_rows(x, indices, x.new_empty(indices.shape[0], x.shape[1]), True, tile)


def unpack(
    x: torch.Tensor,  # [T, C], contiguous
    indices: torch.Tensor,  # [T] int64, each below rows, all different unless negative
    rows: int,
    fill: float = 0.0,
    *,
    tile: Tile,
) -> torch.Tensor:  # [rows, C]
    """Row t of x goes to row indices[t], or nowhere if that is negative; every other row is `fill`."""
    return _move_rows(x, indices, x.new_full((rows, x.shape[1]), fill), False, tile)
