"""CUDA ops of attention and the KV cache."""

from typing import cast

from torch import Tensor

from bertfast.kernels import cached_attention as cached_kernel
from bertfast.kernels import tuning
from bertfast.kernels import varlen_attention as varlen_kernel
from bertfast.kernels import write_cache as write_kernel
from bertfast.ops import reference
from bertfast.ops.cuda.launch import allow_tf32, is_batch_invariant, on_its_device


@on_its_device
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
    bfloat16_products: bool = False,
) -> Tensor:
    if q.shape[2] > varlen_kernel.MAX_HEAD_SIZE:
        return reference.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    fixed, D = is_batch_invariant(), q.shape[2]
    tile = tuning.varlen_attention_invariant_tile(q.dtype, D) if fixed else tuning.varlen_attention_tile(q.dtype, D, *lengths[2:])
    return cast(
        Tensor,
        varlen_kernel.varlen_attention(q, k, v, *lengths, causal, scale, tile=tile, whole_in_one=not fixed, allow_tf32=allow_tf32()),
    )


@on_its_device
def write_cache(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> None:
    write_kernel.write_cache(k, v, keys, values, rows, positions, heads=tuning.write_cache_heads(k.shape[2]), num_warps=4)


@on_its_device
def cached_attention(
    q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, first: Tensor | None, last: Tensor, scale: float | None = None
) -> Tensor:
    T, N, D = q.shape
    if D > cached_kernel.MAX_HEAD_SIZE:
        return reference.cached_attention(q, keys, values, rows, first, last, scale)
    tile = (
        tuning.cached_attention_invariant_tile(q.dtype, D)
        if is_batch_invariant()
        else tuning.cached_attention_tile(q.dtype, D, T * N, keys.shape[2])
    )
    return cast(Tensor, cached_kernel.cached_attention(q, keys, values, rows, first, last, scale, tile=tile))
