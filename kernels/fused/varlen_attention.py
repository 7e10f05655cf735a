"""Attention over sequences laid end to end, without padding and without an [Sq, Sk] matrix in memory.

    out = softmax(q k^T * scale) v        within each sequence, for each head

One program takes BLOCK_M queries of one head of one sequence and loops over the keys in tiles of BLOCK_N, keeping for each query
the running maximum, sum and weighted sum of values (online softmax: Milakov & Gimelshein 2018; FlashAttention-2: Dao 2023). If every
sequence fits one tile of keys there is no loop: one product, one softmax, one product.

Softmax runs in base 2, in float32: exp(x) = exp2(x * log2(e)), with the factor folded into the scale. Rows of q, k and v may be
strided, so slices of one packed QKV matrix are read in place. Lengths are read from cu_seqlens on the device; rows that belong to no
sequence are never read, and programs of an empty sequence return at once.

Shape letters: T tokens, B sequences, N heads, D head size, S length of a sequence; with q or k appended where the two differ.
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

    block_m: int  # queries
    block_n: int  # keys a step
    num_warps: int
    num_stages: int  # key tiles in flight


@triton.jit
def _scores(
    q,  # [BLOCK_M, BLOCK_D]
    k_ptr,  # the first key row of this sequence and head
    k_row_stride,
    key,  # [BLOCK_N]: positions in the sequence
    keys,
    last_key,  # [BLOCK_M]: the last key that each query sees
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,  # not every query of the tile sees every key of it
    PRECISION: tl.constexpr,
):
    d = tl.arange(0, BLOCK_D)
    k_ptrs = k_ptr + key[:, None] * k_row_stride + d[None, :]
    if MASKED:
        k = tl.load(k_ptrs, mask=(key < keys)[:, None] & (d < D)[None, :], other=0.0)
    elif BLOCK_D == D:
        k = tl.load(k_ptrs)
    else:
        k = tl.load(k_ptrs, mask=(d < D)[None, :], other=0.0)

    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
    if MASKED:
        seen = (key < keys)[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= last_key[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@triton.jit
def _values(
    v_ptr, v_row_stride, key, keys, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    v_ptrs = v_ptr + key[:, None] * v_row_stride + d[None, :]
    if MASKED:  # load zeros: 0 * NaN is NaN
        v = tl.load(v_ptrs, mask=(key < keys)[:, None] & (d < D)[None, :], other=0.0)
    elif BLOCK_D == D:
        v = tl.load(v_ptrs)
    else:
        v = tl.load(v_ptrs, mask=(d < D)[None, :], other=0.0)
    return v


@triton.jit
def _loop_over_keys(
    total,  # [BLOCK_M, BLOCK_D]
    row_max,  # [BLOCK_M], in units of log2
    row_sum,  # [BLOCK_M]
    q,
    k_ptr,
    v_ptr,
    k_row_stride,
    v_row_stride,
    begin,
    end,
    keys,
    last_key,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    for start in range(begin, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        scores = _scores(q, k_ptr, k_row_stride, key, keys, last_key, scale_log2, D, BLOCK_D, CAUSAL, MASKED, PRECISION)
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        shift = new_max
        if MASKED:
            shift = tl.where(new_max == float("-inf"), 0.0, new_max)  # no key seen yet: -inf - (-inf) is NaN
        weights = tl.math.exp2(scores - shift[:, None])
        decay = tl.math.exp2(row_max - shift)
        row_sum = row_sum * decay + tl.sum(weights, axis=1)
        v = _values(v_ptr, v_row_stride, key, keys, D, BLOCK_D, MASKED)
        total = tl.dot(weights.to(v.dtype), v, total * decay[:, None], input_precision=PRECISION)
        row_max = new_max
    return total, row_max, row_sum


@triton.jit(do_not_specialize=["tiles"])  # differs from batch to batch: one binary for all
def _varlen_attention_kernel(
    q_ptr,  # [Tq, N, D], rows q_row_stride apart
    k_ptr,  # [Tk, N, D]
    v_ptr,  # [Tk, N, D]
    out_ptr,  # [Tq, N, D], contiguous
    cu_seqlens_q_ptr,  # [B + 1] int32
    cu_seqlens_k_ptr,  # [B + 1] int32
    q_row_stride,
    k_row_stride,
    v_row_stride,
    tiles,  # programs a head: ceil(longest query sequence / BLOCK_M)
    heads,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    ONE_TILE: tl.constexpr,  # no sequence has more than BLOCK_N keys
    PRECISION: tl.constexpr,
):
    # One grid axis, tiles fastest: programs that share keys run side by side, and axis 0 has no limit of 65,535.
    program = tl.program_id(0)
    tile = program % tiles
    head = program // tiles % heads
    sequence = program // tiles // heads

    q_begin = tl.load(cu_seqlens_q_ptr + sequence)
    queries = tl.load(cu_seqlens_q_ptr + sequence + 1) - q_begin
    if tile * BLOCK_M >= queries:
        return
    k_begin = tl.load(cu_seqlens_k_ptr + sequence)
    keys = tl.load(cu_seqlens_k_ptr + sequence + 1) - k_begin

    # 64-bit offsets across the batch, 32-bit within a sequence.
    q_ptr += q_begin.to(tl.int64) * q_row_stride + head * D
    k_ptr += k_begin.to(tl.int64) * k_row_stride + head * D
    v_ptr += k_begin.to(tl.int64) * v_row_stride + head * D
    out_ptr += (q_begin.to(tl.int64) * heads + head) * D

    query = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    last_key = query + (keys - queries)  # aligned at the end: the last query sees every key
    d = tl.arange(0, BLOCK_D)
    inside = (query < queries)[:, None]
    if BLOCK_D != D:
        inside = inside & (d < D)[None, :]
    q = tl.load(q_ptr + query[:, None] * q_row_stride + d[None, :], mask=inside, other=0.0)

    if ONE_TILE:
        key = tl.arange(0, BLOCK_N)
        scores = _scores(q, k_ptr, k_row_stride, key, keys, last_key, scale_log2, D, BLOCK_D, CAUSAL, True, PRECISION)
        row_max = tl.max(scores, axis=1)
        weights = tl.math.exp2(scores - tl.where(row_max == float("-inf"), 0.0, row_max)[:, None])
        row_sum = tl.sum(weights, axis=1)
        v = _values(v_ptr, v_row_stride, key, keys, D, BLOCK_D, True)
        total = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    else:
        whole, end = keys, keys  # every query of the tile sees keys < whole, none sees keys >= end
        if CAUSAL:
            first_query = tile * BLOCK_M
            whole = tl.minimum(keys, tl.maximum(first_query + 1 + keys - queries, 0))
            end = tl.minimum(keys, tl.maximum(first_query + BLOCK_M + keys - queries, 0))
        whole = whole // BLOCK_N * BLOCK_N
        total = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
        total, row_max, row_sum = _loop_over_keys(
            total, row_max, row_sum, q, k_ptr, v_ptr, k_row_stride, v_row_stride, 0, whole,
            keys, last_key, scale_log2, D, BLOCK_D, BLOCK_N, CAUSAL, False, PRECISION,
        )  # fmt: skip
        total, row_max, row_sum = _loop_over_keys(
            total, row_max, row_sum, q, k_ptr, v_ptr, k_row_stride, v_row_stride, whole, end,
            keys, last_key, scale_log2, D, BLOCK_D, BLOCK_N, CAUSAL, True, PRECISION,
        )  # fmt: skip

    out = total / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]  # a query that sees no key: 0 / 1
    tl.store(out_ptr + query[:, None] * (heads * D) + d[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


def varlen_attention(
    q: torch.Tensor,  # [Tq, N, D], rows may be strided
    k: torch.Tensor,  # [Tk, N, D], rows may be strided
    v: torch.Tensor,  # [Tk, N, D], rows may be strided
    cu_seqlens_q: torch.Tensor,  # [B + 1] int32
    cu_seqlens_k: torch.Tensor,  # [B + 1] int32
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None,
    *,
    tile: Tile,
    whole_in_one: bool = True,  # skip the loop if all keys fit one tile; False: the same arithmetic at every length
    allow_tf32: bool = False,  # float32 products on the tensor cores, with 10 bits of mantissa
) -> torch.Tensor:  # [Tq, N, D], contiguous
    """softmax(q k^T scale) v within each sequence; scale None is D ** -0.5. float32, float16 or bfloat16, D up to 128."""
    _, heads, D = q.shape
    if D > MAX_HEAD_SIZE:
        raise ValueError(f"varlen_attention: head size {D}, expected at most {MAX_HEAD_SIZE}; use bertfast.ops.reference")
    out = q.new_empty(q.shape)
    sequences = cu_seqlens_q.shape[0] - 1
    if out.numel() == 0 or sequences == 0 or max_seqlen_q == 0:
        return out
    tiles = triton.cdiv(max_seqlen_q, tile.block_m)
    _varlen_attention_kernel[(tiles * heads * sequences,)](
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        cu_seqlens_k,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        tiles,
        heads,
        (D**-0.5 if scale is None else scale) * LOG2_E,
        D=D,
        BLOCK_D=max(triton.next_power_of_2(D), 16),  # tl.dot takes no fewer
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        CAUSAL=causal,
        ONE_TILE=whole_in_one and max_seqlen_k <= tile.block_n,
        PRECISION="tf32" if allow_tf32 else "ieee",
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out
