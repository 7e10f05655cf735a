"""Attention of single queries on a KV cache: one step of generation.

    out[t] = softmax(q[t] K^T * scale) V        K, V = positions first[t] .. last[t] - 1 of cache row rows[t], for each head

A query is one row, so tensor cores would idle: products are float32 sums on the ordinary units, and the time is that of reading each
cache position once, 16 bytes a thread. One program takes one head of one query and loops over its positions in blocks, with a running
maximum (softmax in base 2, as in varlen_attention.py). With too few queries to fill the chip, `splits` programs share the positions of a
query and a second kernel combines their results (flash-decoding: Dao, Haziza, Massa & Sizov 2023).

Positions outside a query's range are never read; an empty range gives zeros. How a range is cut into blocks depends on the range and the
tile alone: with a fixed tile, a query has the same bits alone and in any batch.

Shape letters: T queries, R rows and C positions of the cache, N heads, D head size.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .math import LOG2_E, MAX_HEAD_SIZE


@dataclass(frozen=True)
class Tile:
    """The work of one program, and its share of a multiprocessor."""

    block_c: int  # positions a step
    splits: int  # programs that share the positions of a query
    num_warps: int


@triton.jit
def _cached_attention_kernel(
    q_ptr,  # [T, N, D], rows q_row_stride apart
    keys_ptr,  # [R, N, C, D]
    values_ptr,  # [R, N, C, D]
    rows_ptr,  # [T] int64
    first_ptr,  # [T] int64; not read unless HAS_FIRST
    last_ptr,  # [T] int64
    out_ptr,  # [T, N, D] contiguous; with SPLITS > 1 [T, N, SPLITS, D] float32: sums of weighted values
    state_ptr,  # [T, N, SPLITS, 2] float32: maximum of the scores, in units of log2, and sum of the weights; only with SPLITS > 1
    q_row_stride,
    keys_row_stride,
    keys_head_stride,
    keys_position_stride,
    values_row_stride,
    values_head_stride,
    values_position_stride,
    heads,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    program = tl.program_id(0)
    split = program % SPLITS
    head = program // SPLITS % heads
    token = (program // SPLITS // heads).to(tl.int64)

    begin = tl.full([], 0, tl.int32)
    if HAS_FIRST:
        begin = tl.load(first_ptr + token).to(tl.int32)
    end = tl.load(last_ptr + token).to(tl.int32)
    if SPLITS > 1:  # whole blocks, as even as possible
        share = tl.cdiv(tl.cdiv(end - begin, BLOCK_C), SPLITS) * BLOCK_C
        begin += split * share
        end = tl.minimum(begin + share, end)

    row = tl.load(rows_ptr + token)
    keys_ptr += row * keys_row_stride + head.to(tl.int64) * keys_head_stride
    values_ptr += row * values_row_stride + head.to(tl.int64) * values_head_stride
    d = tl.arange(0, BLOCK_D)
    q = tl.load(q_ptr + token * q_row_stride + head * D + d, mask=d < D, other=0.0).to(tl.float32) * scale_log2

    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    row_max = tl.full([], float("-inf"), dtype=tl.float32)
    row_sum = tl.full([], 0.0, dtype=tl.float32)
    for start in range(begin, end, BLOCK_C):
        position = start + tl.arange(0, BLOCK_C)
        inside = (position < end)[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + position.to(tl.int64)[:, None] * keys_position_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        v = tl.load(values_ptr + position.to(tl.int64)[:, None] * values_position_stride + d[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        scores = tl.where(position < end, tl.sum(q[None, :] * k, axis=1), float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=0))  # finite: a block holds a position of the range
        weights = tl.math.exp2(scores - new_max)
        decay = tl.math.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.sum(weights, axis=0)
        total = total * decay + tl.sum(weights[:, None] * v, axis=0)
        row_max = new_max

    if SPLITS == 1:
        out = total / tl.where(row_sum == 0.0, 1.0, row_sum)  # an empty range: 0 / 1
        tl.store(out_ptr + (token * heads + head) * D + d, out.to(out_ptr.dtype.element_ty), mask=d < D)
    else:
        part = (token * heads + head) * SPLITS + split
        tl.store(out_ptr + part * D + d, total, mask=d < D)
        tl.store(state_ptr + part * 2, row_max)
        tl.store(state_ptr + part * 2 + 1, row_sum)


@triton.jit
def _join_splits_kernel(
    parts_ptr,  # [T, N, SPLITS, D] float32
    state_ptr,  # [T, N, SPLITS, 2] float32
    out_ptr,  # [T, N, D]
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, BLOCK_D)
    part = program * SPLITS + split
    split_max = tl.load(state_ptr + part * 2)
    split_sum = tl.load(state_ptr + part * 2 + 1)
    totals = tl.load(parts_ptr + part[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    most = tl.max(split_max, axis=0)
    weights = tl.math.exp2(split_max - tl.where(most == float("-inf"), 0.0, most))  # an empty split: exp2(-inf) = 0
    row_sum = tl.sum(weights * split_sum, axis=0)
    out = tl.sum(weights[:, None] * totals, axis=0) / tl.where(row_sum == 0.0, 1.0, row_sum)
    tl.store(out_ptr + program * D + d, out.to(out_ptr.dtype.element_ty), mask=d < D)


def cached_attention(
    q: torch.Tensor,  # [T, N, D], rows may be strided
    keys: torch.Tensor,  # [R, N, C, D], the last dimension contiguous
    values: torch.Tensor,  # [R, N, C, D]
    rows: torch.Tensor,  # [T] int64, each below R
    first: torch.Tensor | None,  # [T] int64, or None: 0
    last: torch.Tensor,  # [T] int64, at most C
    scale: float | None,
    *,
    tile: Tile,
) -> torch.Tensor:  # [T, N, D], contiguous
    """softmax(q k^T scale) v against a range of one row of the cache; scale None is D ** -0.5. float32, float16 or bfloat16."""
    T, heads, D = q.shape
    if D > MAX_HEAD_SIZE:
        raise ValueError(f"cached_attention: head size {D}, expected at most {MAX_HEAD_SIZE}; use bertfast.ops.reference")
    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    splits, block_d = tile.splits, triton.next_power_of_2(D)
    parts = q.new_empty(T, heads, splits, D, dtype=torch.float32) if splits > 1 else out
    state = q.new_empty(T, heads, splits, 2, dtype=torch.float32) if splits > 1 else out
    _cached_attention_kernel[(T * heads * splits,)](
        q,
        keys,
        values,
        rows,
        last if first is None else first,
        last,
        parts,
        state,
        q.stride(0),
        *keys.stride()[:3],
        *values.stride()[:3],
        heads,
        (D**-0.5 if scale is None else scale) * LOG2_E,
        D=D,
        BLOCK_D=block_d,
        BLOCK_C=tile.block_c,
        SPLITS=splits,
        HAS_FIRST=first is not None,
        num_warps=tile.num_warps,
    )
    if splits > 1:
        _join_splits_kernel[(T * heads,)](parts, state, out, D=D, BLOCK_D=block_d, SPLITS=splits, num_warps=1)
    return out
