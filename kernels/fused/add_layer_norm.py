"""Residual add and LayerNorm in one pass over the row.

    out = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias        s = x + residual

One program takes one token, whose row is read once into registers. Sums and statistics in float32.

Shape letters: T tokens (packed, no padding), H hidden.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

import torch
import triton
import triton.language as tl

from .math import MAX_HIDDEN, layer_norm


@triton.jit
def _add_layer_norm_kernel(
    x_ptr,  # [T, H]
    residual_ptr,  # [T, H]; not read unless HAS_RESIDUAL
    weight_ptr,  # [H]
    bias_ptr,  # [H]
    out_ptr,  # [T, H]
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds H
    HAS_RESIDUAL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * H  # overflows 32 bits on long batches
    col = tl.arange(0, BLOCK)
    inside = col < H

    # All loads before the first use, so that they overlap.
    x = tl.load(x_ptr + row + col, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row + col, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask=inside, other=0.0).to(tl.float32)

    out = layer_norm(x, inside, weight, bias, eps, H)
    tl.store(out_ptr + row + col, out.to(out_ptr.dtype.element_ty), mask=inside)


def add_layer_norm(
    x: torch.Tensor,  # [T, H]
    residual: torch.Tensor | None,  # [T, H], or None to skip the add
    weight: torch.Tensor,  # [H]
    bias: torch.Tensor,  # [H]
    eps: float,
    *,
    num_warps: int,
) -> torch.Tensor:  # [T, H], dtype of x
    """LayerNorm(x + residual) over the last dimension, all operands contiguous and of one dtype."""
    tokens, H = x.shape
    if H > MAX_HIDDEN:
        raise ValueError(f"add_layer_norm: H={H}, expected at most {MAX_HIDDEN}; use bertfast.ops.reference")
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    _add_layer_norm_kernel[(tokens,)](
        x,
        x if residual is None else residual,
        weight,
        bias,
        out,
        eps,
        H=H,
        BLOCK=triton.next_power_of_2(H),
        HAS_RESIDUAL=residual is not None,
        num_warps=num_warps,
    )
    return out
