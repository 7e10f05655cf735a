"""Residual add and LayerNorm, with the result also in float8 (e4m3) for the product that reads it.

    out = LayerNorm(x + residual)
    scale = max |out| / 448 of a row,  values = out / scale rounded to e4m3

A separate quantizing pass over the matrix would cost about what the float8 product saves. One program takes one token. A row that
holds NaN or inf gives NaN.

Shape letters: T tokens (packed, no padding), H hidden.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

import torch
import triton
import triton.language as tl

from .math import E4M3_MAX, LEAST_MAX, MAX_HIDDEN, layer_norm


@triton.jit
def _fp8_add_layer_norm_kernel(
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
    E4M3_MAX: tl.constexpr,
    LEAST_MAX: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = token * H
    col = tl.arange(0, BLOCK)
    inside = col < H
    x = tl.load(x_ptr + row + col, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + row + col, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask=inside, other=0.0).to(tl.float32)
    out = layer_norm(x, inside, weight, bias, eps, H).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row + col, out, mask=inside)

    rounded = out.to(tl.float32)  # as stored, so that both results stand for the same numbers
    scale = tl.maximum(tl.max(tl.abs(rounded), axis=0), LEAST_MAX) / E4M3_MAX
    tl.store(values_ptr + row + col, (rounded / scale).to(values_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + token, scale)


def fp8_add_layer_norm(
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
    """LayerNorm(x + residual), and the same in float8 with a scale for each row. All operands contiguous."""
    tokens, H = x.shape
    if H > MAX_HIDDEN:
        raise ValueError(f"fp8_add_layer_norm: H={H}, expected at most {MAX_HIDDEN}; use bertfast.ops.reference")
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    _fp8_add_layer_norm_kernel[(tokens,)](
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
        E4M3_MAX=E4M3_MAX,
        LEAST_MAX=LEAST_MAX,
        num_warps=num_warps,
    )
    return out
