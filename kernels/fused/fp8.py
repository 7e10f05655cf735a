"""What the kernels before a float8 product do besides their own work: emit their result as float8 (e4m3) with its scales.

    out = LayerNorm(x + residual),  and q, s with q * s = out, s a row's        the input of the next product, and the residual after it
    q, s with q * s = activation(x + bias), s a row's or a group's              the input of the second product of a feed-forward

A scale is max |v| / 448 over its row or its 128 columns, so that the largest value becomes e4m3's largest; a pass of its own over the
matrix would cost about what the product saves. Arithmetic in float32, one rounding to e4m3. What is not finite becomes NaN.

Scales of groups lie group by group, [F / 128, T]: the product reads those of many rows at once.

Shape letters: T tokens (packed, no padding), H hidden, F features.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .gelu import ACTIVATIONS, _activate
from .layernorm import MAX_HIDDEN

GROUP = 128  # columns that share a scale, where a row does not
LARGEST = 448.0  # of e4m3
SMALLEST = 2.0**-60  # of a maximum: a row of zeros has a scale too, and the inverse of one is finite


@dataclass(frozen=True)
class Tile:
    """What one program of the kernel works on, and with how much of the chip."""

    rows: int
    columns: int  # the power of two that holds a row, where a row has one scale
    num_warps: int


@triton.jit
def _add_layer_norm_fp8_kernel(
    x_ptr,  # [T, H]
    residual_ptr,  # [T, H]
    weight_ptr,  # [H]
    bias_ptr,  # [H]
    out_ptr,  # [T, H]
    values_ptr,  # [T, H] float8
    scales_ptr,  # [T] float32
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds H
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = token * H
    col = tl.arange(0, BLOCK)
    inside = col < H
    x = tl.load(x_ptr + row + col, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + row + col, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask=inside, other=0.0).to(tl.float32)

    mean = tl.sum(x, axis=0) / H
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / H
    out = (centred / tl.sqrt(variance + eps) * weight + bias).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row + col, out, mask=inside)

    wide = out.to(tl.float32)  # as the residual has it, so that both speak of the same numbers
    scale = tl.maximum(tl.max(tl.abs(wide), axis=0), SMALLEST) / LARGEST
    tl.store(values_ptr + row + col, (wide / scale).to(values_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + token, scale)


@triton.jit(do_not_specialize=["rows"])  # it differs from batch to batch: one binary for all
def _activation_fp8_kernel(
    x_ptr,  # [T, F]
    bias_ptr,  # [F]; not read unless HAS_BIAS
    values_ptr,  # [T, F] float8
    scales_ptr,  # [T] or [F / GROUP, T] float32
    rows,
    F,
    scales_group_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,  # columns that share a scale; COLUMNS where a row has one
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,  # "none": the values as they are
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * F + col[None, :]
    inside = (row < rows)[:, None] & (col < F)[None, :]
    v = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION != "none":
        v = _activate(v, ACTIVATION)  # 0 stays 0: what lies past F raises no maximum

    GROUPS: tl.constexpr = COLUMNS // GROUP
    grouped = tl.reshape(v, [ROWS, GROUPS, GROUP])
    scale = tl.maximum(tl.max(tl.abs(grouped), axis=2), SMALLEST) / LARGEST  # [ROWS, GROUPS]
    values = tl.reshape(grouped / scale[:, :, None], [ROWS, COLUMNS]).to(values_ptr.dtype.element_ty)
    tl.store(values_ptr + at, values, mask=inside)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    scale_at = group.to(tl.int64)[None, :] * scales_group_stride + row[:, None]
    tl.store(scales_ptr + scale_at, scale, mask=(row < rows)[:, None] & (group * GROUP < F)[None, :])


def add_layer_norm_fp8(
    x: torch.Tensor,  # [T, H]
    residual: torch.Tensor,  # [T, H]
    weight: torch.Tensor,  # [H]
    bias: torch.Tensor,  # [H]
    eps: float,
    values: torch.Tensor,  # [T or more, H] float8_e4m3fn, written
    scales: torch.Tensor,  # [T or more] float32, written
    *,
    num_warps: int,
) -> torch.Tensor:  # [T, H], dtype of x
    """LayerNorm(x + residual), and the same as float8 with a scale a row."""
    tokens, H = x.shape
    if H > MAX_HIDDEN:
        raise ValueError(f"add_layer_norm_fp8: H={H}, expected at most {MAX_HIDDEN}")
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    _add_layer_norm_fp8_kernel[(tokens,)](
        x,
        residual,
        weight,
        bias,
        out,
        values,
        scales,
        eps,
        H=H,
        BLOCK=triton.next_power_of_2(H),
        LARGEST=LARGEST,
        SMALLEST=SMALLEST,
        num_warps=num_warps,
    )
    return out


def activation_fp8(
    x: torch.Tensor,  # [T, F]
    bias: torch.Tensor | None,  # [F]
    activation: str | None,  # one of ACTIVATIONS, or None
    values: torch.Tensor,  # [T or more, F] float8_e4m3fn, written
    scales: torch.Tensor,  # [1, T or more] float32, or [F / 128, T or more]: a scale for every 128 columns; written
    *,
    tile: Tile,
) -> None:
    """activation(x + bias) as float8 with its scales, all operands contiguous."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation_fp8: activation {activation!r}, expected one of {sorted(ACTIVATIONS)}")
    rows, F = x.shape
    if x.numel() == 0:
        return
    by_group = scales.shape[0] > 1
    _activation_fp8_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(F, tile.columns))](
        x,
        x if bias is None else bias,
        values,
        scales,
        rows,
        F,
        scales.stride(0),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        GROUP=GROUP if by_group else tile.columns,
        HAS_BIAS=bias is not None,
        ACTIVATION="none" if activation is None else activation,
        LARGEST=LARGEST,
        SMALLEST=SMALLEST,
        num_warps=tile.num_warps,
    )
