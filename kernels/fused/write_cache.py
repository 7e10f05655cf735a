"""Keys and values of new tokens, written into a KV cache.

    keys[rows[t], :, positions[t]] = k[t],  values alike

One program takes some heads of one token.

Shape letters: T tokens, R rows and C positions of the cache, N heads, D head size.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _write_cache_kernel(
    k_ptr,  # [T, N, D], rows k_row_stride apart
    v_ptr,  # [T, N, D]
    keys_ptr,  # [R, N, C, D]
    values_ptr,  # [R, N, C, D]
    rows_ptr,  # [T] int64
    positions_ptr,  # [T] int64
    k_row_stride,
    v_row_stride,
    keys_row_stride,
    keys_head_stride,
    keys_position_stride,
    values_row_stride,
    values_head_stride,
    values_position_stride,
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEADS: tl.constexpr,  # a program
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, BLOCK_D)
    row, position = tl.load(rows_ptr + token), tl.load(positions_ptr + token)
    inside = (head < heads)[:, None] & (d < D)[None, :]
    k = tl.load(k_ptr + token * k_row_stride + head[:, None] * D + d[None, :], mask=inside)
    v = tl.load(v_ptr + token * v_row_stride + head[:, None] * D + d[None, :], mask=inside)
    keys_ptr += row * keys_row_stride + position * keys_position_stride
    values_ptr += row * values_row_stride + position * values_position_stride
    tl.store(keys_ptr + head.to(tl.int64)[:, None] * keys_head_stride + d[None, :], k, mask=inside)
    tl.store(values_ptr + head.to(tl.int64)[:, None] * values_head_stride + d[None, :], v, mask=inside)


def write_cache(
    k: torch.Tensor,  # [T, N, D], rows may be strided
    v: torch.Tensor,  # [T, N, D], rows may be strided
    keys: torch.Tensor,  # [R, N, C, D], the last dimension contiguous; written in place
    values: torch.Tensor,  # [R, N, C, D]
    rows: torch.Tensor,  # [T] int64, each below R
    positions: torch.Tensor,  # [T] int64, each below C; no (row, position) twice
    *,
    heads: int,  # a program, a power of two
    num_warps: int,
) -> None:
    """keys[rows[t], :, positions[t]] = k[t], and values alike."""
    T, N, D = k.shape
    if k.numel() == 0:
        return
    _write_cache_kernel[(T, triton.cdiv(N, heads))](
        k,
        v,
        keys,
        values,
        rows,
        positions,
        k.stride(0),
        v.stride(0),
        *keys.stride()[:3],
        *values.stride()[:3],
        N,
        D=D,
        BLOCK_D=triton.next_power_of_2(D),
        HEADS=heads,
        num_warps=num_warps,
    )
