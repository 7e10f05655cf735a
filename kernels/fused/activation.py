"""Bias and activation over the output of a matrix product, in one pass, optionally in place.

    out = activation(x + bias)

The functions are in math.py. All arithmetic in float32, one rounding at the end.

Shape letters: T tokens (packed, no padding), F features of the layer.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .math import ACTIVATIONS, activate


@dataclass(frozen=True)
class Tile:
    """The work of one program, and its share of a multiprocessor."""

    rows: int
    columns: int
    num_warps: int


@triton.jit(do_not_specialize=["rows"])  # differs from batch to batch: one binary for all
def _bias_activation_kernel(
    x_ptr,  # [T, F]
    bias_ptr,  # [F]; not read unless HAS_BIAS
    out_ptr,  # [T, F]; may be x
    rows,
    F,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * F + col[None, :]
    inside = (row < rows)[:, None] & (col < F)[None, :]
    v = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + at, activate(v, ACTIVATION).to(out_ptr.dtype.element_ty), mask=inside)


def bias_activation(
    x: torch.Tensor,  # [T, F]
    bias: torch.Tensor | None,  # [F]
    activation: str,  # one of ACTIVATIONS
    *,
    tile: Tile,
    in_place: bool = False,
) -> torch.Tensor:  # [T, F], dtype of x; x itself if in_place
    """activation(x + bias), elementwise, all operands contiguous and of one dtype."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"bias_activation: activation {activation!r}, expected one of {sorted(ACTIVATIONS)}")
    rows, F = x.shape
    out = x if in_place else torch.empty_like(x)
    if out.numel() == 0:
        return out
    _bias_activation_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(F, tile.columns))](
        x,
        x if bias is None else bias,
        out,
        rows,
        F,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        HAS_BIAS=bias is not None,
        ACTIVATION=activation,
        num_warps=tile.num_warps,
    )
    return out
