"""A linear layer in one kernel: the product, with bias and GELU in its epilogue.

    out = gelu(x W^T + bias)        or        out = x W^T + bias

One program computes a tile of BLOCK_M rows and BLOCK_F features and loops over k; both operands are row-major along k (W [F, K] as in
nn.Linear), and the next tiles are loaded while the tensor cores work. Sums stay in float32 through the epilogue: one rounding. Programs
are numbered so that GROUP row tiles reuse the same rows of W from L2.

k is never split between programs, and the order of a row's sum depends on the tile alone: with a fixed tile, a row has the same bits
alone and in any batch.

Shape letters: T tokens (packed, no padding), K inputs and F outputs of the layer.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .math import gelu as exact_gelu


@dataclass(frozen=True)
class Tile:
    """The work of one program, and its share of a multiprocessor."""

    block_m: int  # rows
    block_f: int  # features
    block_k: int  # inputs a step
    num_warps: int
    num_stages: int  # steps in flight
    group: int = 8  # row tiles that share columns of W


@triton.jit(do_not_specialize=["rows"])  # differs from batch to batch: one binary for all
def _linear_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [F, K]
    bias_ptr,  # [F]; not read unless HAS_BIAS
    out_ptr,  # [T, F]
    rows,
    features,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,  # BLOCK_K divides K
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0)
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_f = tl.cdiv(features, BLOCK_F)
    first_m = program // (GROUP * tiles_f) * GROUP
    group = tl.minimum(tiles_m - first_m, GROUP)
    tile_m = first_m + program % (GROUP * tiles_f) % group
    tile_f = program % (GROUP * tiles_f) // group

    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = tile_f * BLOCK_F + tl.arange(0, BLOCK_F)
    k = tl.arange(0, BLOCK_K)
    # Rows past the edge are clamped, not masked: their sums are not stored, and the loop needs no masks.
    x_ptrs = x_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * K + k[None, :]
    weight_ptrs = weight_ptr + tl.minimum(feature, features - 1).to(tl.int64)[:, None] * K + k[None, :]

    total = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            weight = tl.load(weight_ptrs)
        else:
            x = tl.load(x_ptrs, mask=(k < K - start)[None, :], other=0.0)
            weight = tl.load(weight_ptrs, mask=(k < K - start)[None, :], other=0.0)
        total = tl.dot(x, tl.trans(weight), total, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K

    if HAS_BIAS:
        total += tl.load(bias_ptr + feature, mask=feature < features, other=0.0).to(tl.float32)[None, :]
    if GELU:
        total = exact_gelu(total)
    at = row.to(tl.int64)[:, None] * features + feature[None, :]
    inside = (row < rows)[:, None] & (feature < features)[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


def linear(
    x: torch.Tensor,  # [T, K]
    weight: torch.Tensor,  # [F, K]
    bias: torch.Tensor | None,  # [F]
    *,
    gelu: bool = False,  # the exact one, by erf
    tile: Tile,
    allow_tf32: bool = False,  # float32 products on the tensor cores, with 10 bits of mantissa
) -> torch.Tensor:  # [T, F], dtype of x
    """gelu(x @ weight.T + bias), or without gelu, all operands contiguous and of one dtype."""
    (rows, K), features = x.shape, weight.shape[0]
    out = x.new_empty(rows, features)
    if out.numel() == 0:
        return out
    _linear_kernel[(triton.cdiv(rows, tile.block_m) * triton.cdiv(features, tile.block_f),)](
        x,
        weight,
        x if bias is None else bias,
        out,
        rows,
        features,
        K,
        BLOCK_M=tile.block_m,
        BLOCK_F=tile.block_f,
        BLOCK_K=tile.block_k,
        GROUP=tile.group,
        EVEN_K=K % tile.block_k == 0,
        HAS_BIAS=bias is not None,
        GELU=gelu,
        PRECISION="tf32" if allow_tf32 else "ieee",
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out
