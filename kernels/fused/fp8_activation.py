"""Bias and activation over the output of a product, emitted in float8 (e4m3) for the product that reads it.

    v = activation(x + bias)
    scale = max |v| / 448 of a row, or of 128 columns of it,  values = v / scale rounded to e4m3

Without bias and activation it quantizes x. Arithmetic in float32, one rounding. A NaN or inf makes the values that share its scale NaN.
Scales of groups lie group by group, [F / 128, T]: the product reads those of many rows at once.

Shape letters: T tokens (packed, no padding), F features.
Definition and contract: fp8_linear in bertfast/ops/reference.py and bertfast/ops/__init__.py, whose input or result this makes.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .math import ACTIVATIONS, E4M3_MAX, GROUP_SIZE, LEAST_MAX, activate


@dataclass(frozen=True)
class Tile:
    """The work of one program, and its share of a multiprocessor."""

    rows: int
    columns: int  # the power of two that holds a row, where a row has one scale
    num_warps: int


@triton.jit(do_not_specialize=["rows"])  # differs from batch to batch: one binary for all
def _fp8_activation_kernel(
    x_ptr,  # [T, F]
    bias_ptr,  # [F]; not read unless HAS_BIAS
    values_ptr,  # [T, F] float8
    scales_ptr,  # [T] or [F / 128, T] float32
    rows,
    F,
    scales_group_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,  # columns that share a scale; COLUMNS where a row has one
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,  # or "none"
    E4M3_MAX: tl.constexpr,
    LEAST_MAX: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * F + col[None, :]
    inside = (row < rows)[:, None] & (col < F)[None, :]
    v = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION != "none":
        v = activate(v, ACTIVATION)  # maps 0 to 0: columns past F raise no maximum

    GROUPS: tl.constexpr = COLUMNS // GROUP_SIZE
    grouped = tl.reshape(v, [ROWS, GROUPS, GROUP_SIZE])
    scale = tl.maximum(tl.max(tl.abs(grouped), axis=2), LEAST_MAX) / E4M3_MAX  # [ROWS, GROUPS]
    values = tl.reshape(grouped / scale[:, :, None], [ROWS, COLUMNS]).to(values_ptr.dtype.element_ty)
    tl.store(values_ptr + at, values, mask=inside)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    scale_at = group.to(tl.int64)[None, :] * scales_group_stride + row[:, None]
    tl.store(scales_ptr + scale_at, scale, mask=(row < rows)[:, None] & (group * GROUP_SIZE < F)[None, :])


def fp8_activation(
    x: torch.Tensor,  # [T, F]
    bias: torch.Tensor | None,  # [F]
    activation: str | None,  # one of ACTIVATIONS, or None
    values: torch.Tensor,  # [T or more, F] float8_e4m3fn, written
    scales: torch.Tensor,  # [1, T or more] float32, or [F / 128, T or more]: a scale for every 128 columns; written
    *,
    tile: Tile,
) -> None:
    """activation(x + bias) in float8 with its scales. All operands contiguous."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"fp8_activation: activation {activation!r}, expected one of {sorted(ACTIVATIONS)}")
    rows, F = x.shape
    if x.numel() == 0:
        return
    by_group = scales.shape[0] > 1
    _fp8_activation_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(F, tile.columns))](
        x,
        x if bias is None else bias,
        values,
        scales,
        rows,
        F,
        scales.stride(0),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        GROUP_SIZE=GROUP_SIZE if by_group else tile.columns,
        HAS_BIAS=bias is not None,
        ACTIVATION="none" if activation is None else activation,
        E4M3_MAX=E4M3_MAX,
        LEAST_MAX=LEAST_MAX,
        num_warps=tile.num_warps,
    )
