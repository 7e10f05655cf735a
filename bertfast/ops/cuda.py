"""CUDA backend: the Triton kernels and cuBLAS (through torch), gathered under the names of the op contract.

Imported on the first use of a CUDA tensor, so that a machine without a GPU never imports Triton. Nothing here asks for
a GPU by itself: under Triton's interpreter (TRITON_INTERPRET=1) every function takes CPU tensors, which is how the tests run it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.kernels import attention, decode, embedding, fp8, gelu, gemm, layernorm, tuning
from bertfast.kernels import pack as packing
from bertfast.kernels import stage as staging
from bertfast.ops import reference

__all__ = [
    "add_layer_norm",
    "batch_invariant",
    "cached_attention",
    "embed_layer_norm",
    "emitted_fp8",
    "fp8_activation",
    "fp8_add_layer_norm",
    "fp8_linear",
    "fp8_loses",
    "int8_embed_layer_norm",
    "int8_linear",
    "is_batch_invariant",
    "linear",
    "linear_concat",
    "pack",
    "raise_out_of_range",
    "stage",
    "unpack",
    "varlen_attention",
    "write_cache",
]

Op = TypeVar("Op", bound=Callable[..., Any])

# No CUDA kernels for int8: the reference ops.
int8_linear = reference.int8_linear
int8_embed_layer_norm = reference.int8_embed_layer_norm


def on_its_device(op: Op) -> Op:
    """Triton launches on the current device, wherever its operands lie; torch's own ops go where they are. So does this op."""

    @wraps(op)
    def launch(x: Tensor, *others: Any, **named: Any) -> Any:
        if not x.is_cuda or x.device.index == torch.cuda.current_device():
            return op(x, *others, **named)
        with torch.cuda.device(x.device):
            return op(x, *others, **named)

    return cast(Op, launch)


@on_its_device
def embed_layer_norm(
    input_ids: Tensor,
    word_weight: Tensor,
    position_ids: Tensor,
    position_weight: Tensor,
    token_type_ids: Tensor | None,
    token_type_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    H = word_weight.shape[1]
    raise_out_of_range(word_weight.device)  # what an earlier call left, where nobody has asked since
    if H > embedding.MAX_HIDDEN:
        return reference.embed_layer_norm(
            input_ids, word_weight, position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps
        )
    tables = (input_ids, word_weight, position_ids, position_weight, token_type_ids, token_type_weight)
    report = _report(word_weight.device)
    out = cast(Tensor, embedding.embed_layer_norm(*tables, weight, bias, eps, report=report, num_warps=tuning.layer_norm_warps(H)))
    if not word_weight.is_cuda:  # the interpreter is done when it returns
        raise_out_of_range(word_weight.device)
    return out


def raise_out_of_range(device: torch.device) -> None:
    """ValueError if an embedding on this device has met an id out of range since the last time: call it after a synchronisation.

    Costs no device time and waits for nothing: the kernel writes into pinned host memory, and only when an id is wrong.
    """
    report = _report(device)
    if not report.any():
        return
    rows = report.tolist()
    report.zero_()
    name, (_, value, limit) = next((name, row) for name, row in zip(embedding.REPORTED, rows, strict=True) if row[0])
    raise ValueError(reference.out_of_range(name, value, limit) + (f" (in an earlier call on {device})" if device.type == "cuda" else ""))


@cache
def _report(device: torch.device) -> Tensor:
    shape = (len(embedding.REPORTED), embedding.REPORT_COLUMNS)
    return torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")


_local = threading.local()


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Within, in this thread: one tile for every product and every attention, so that a row's bits are the same alone and in any batch.

    cuBLAS chooses its kernels, and whether it splits a sum, by the number of rows; so the Triton GEMM does all products. The row-wise
    kernels are invariant as they are.
    """
    before = is_batch_invariant()
    _local.invariant = True
    try:
        yield
    finally:
        _local.invariant = before


def is_batch_invariant() -> bool:
    return getattr(_local, "invariant", False)


@on_its_device
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    fixed = is_batch_invariant()
    if activation in (None, "gelu") and (fixed or _triton_gemm_wins(x, weight)):
        return _triton_linear(x, weight, bias, activation == "gelu", fixed)
    if activation is None:
        return F.linear(x, weight, bias)
    # The bias joins the activation: one rounding less.
    out = _triton_linear(x, weight, None, False, fixed) if fixed else F.linear(x, weight)
    return cast(Tensor, gelu.bias_activation(out, bias, activation, tile=tuning.activation_tile(out.shape[1]), in_place=True))


def _triton_linear(x: Tensor, weight: Tensor, bias: Tensor | None, with_gelu: bool, fixed: bool) -> Tensor:
    tile = tuning.gemm_invariant_tile(x.dtype) if fixed else tuning.gemm_tile(x.dtype, x.shape[0])
    return cast(Tensor, gemm.linear(x, weight, bias, gelu=with_gelu, tile=tile, allow_tf32=_allow_tf32()))


@on_its_device
def linear_concat(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """One product where the weights lie back to back in one buffer, otherwise one for each into its columns of the result."""
    sizes = [weight.shape[0] for weight in weights]
    fused = _back_to_back(weights)
    if fused is not None:
        if all(bias is None for bias in biases):
            return linear(x, fused, None)
        parts = [x.new_zeros(size) if bias is None else bias for size, bias in zip(sizes, biases, strict=True)]
        bias = _back_to_back(parts)
        return linear(x, fused, torch.cat(parts) if bias is None else bias)
    if is_batch_invariant():
        return torch.cat([linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)], dim=1)
    out = x.new_empty(x.shape[0], sum(sizes))
    with torch.no_grad():  # out= is refused under grad mode, and nothing here is recorded anyway
        for weight, bias, columns in zip(weights, biases, torch.split(out, sizes, dim=1), strict=True):
            if bias is None:
                torch.mm(x, weight.t(), out=columns)
            else:
                torch.addmm(bias, x, weight.t(), out=columns)
    return out


def _back_to_back(tensors: Sequence[Tensor]) -> Tensor | None:
    """The one tensor that these are consecutive slices of, along dimension 0, or None where they are not."""
    first = tensors[0]
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for t in tensors:
        if t.untyped_storage().data_ptr() != storage or t.storage_offset() != offset:
            return None
        offset += t.numel()
    return first.as_strided((sum(t.shape[0] for t in tensors), *first.shape[1:]), first.stride())


@on_its_device
def add_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    H = x.shape[1]
    if H > layernorm.MAX_HIDDEN:
        return reference.add_layer_norm(x, residual, weight, bias, eps)
    return cast(Tensor, layernorm.add_layer_norm(x, residual, weight, bias, eps, num_warps=tuning.layer_norm_warps(H)))


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
    if q.shape[2] > attention.MAX_HEAD_SIZE:
        return reference.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    fixed = is_batch_invariant()
    tile = tuning.attention_invariant_tile(q.dtype, q.shape[2]) if fixed else tuning.attention_tile(q.dtype, q.shape[2], *lengths[2:])
    return cast(
        Tensor,
        attention.varlen_attention(q, k, v, *lengths, causal, scale, tile=tile, whole_in_one=not fixed, allow_tf32=_allow_tf32()),
    )


@on_its_device
def write_cache(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: Tensor, cells: Tensor) -> None:
    decode.write_cache(k, v, keys, values, rows, cells, heads=tuning.write_cache_heads(k.shape[2]), num_warps=4)


@on_its_device
def cached_attention(
    q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, first: Tensor | None, last: Tensor, scale: float | None = None
) -> Tensor:
    T, N, D = q.shape
    if D > decode.MAX_HEAD_SIZE:
        return reference.cached_attention(q, keys, values, rows, first, last, scale)
    tile = tuning.decode_invariant_tile(q.dtype, D) if is_batch_invariant() else tuning.decode_tile(q.dtype, D, T * N, keys.shape[2])
    return cast(Tensor, decode.cached_attention(q, keys, values, rows, first, last, scale, tile=tile))


# --- float8 ---


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """[T, K] in float8: the values of a matrix are `values` times the scale of their row, or of their 128 columns of it.

    There may be places for more rows, which hold anything: the scaled product wants multiples of 16.
    """

    rows: int  # T
    values: Tensor  # [T or more, K] float8_e4m3fn
    scales: Tensor  # [1, T or more] float32, or [K / 128, T or more]

    @property
    def by_group(self) -> bool:
        return self.scales.shape[0] > 1


def _fp8_places(x: Tensor, by_group: bool) -> Fp8Rows:
    rows, K = x.shape
    places = -(-rows // 16) * 16
    values = x.new_empty(places, K, dtype=torch.float8_e4m3fn)
    return Fp8Rows(rows, values, x.new_empty(K // fp8.GROUP if by_group else 1, places, dtype=torch.float32))


@on_its_device
def fp8_activation(x: Tensor, bias: Tensor | None, activation: str | None, by_group: bool) -> Fp8Rows:
    """activation(x + bias) in float8."""
    out = _fp8_places(x, by_group)
    fp8.activation_fp8(x, bias, activation, out.values, out.scales, tile=tuning.fp8_activation_tile(x.shape[1], by_group))
    return out


@on_its_device
def fp8_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm(x + residual), which emitted_fp8 has in float8 as well."""
    if x.shape[1] > layernorm.MAX_HIDDEN:
        return reference.add_layer_norm(x, residual, weight, bias, eps)
    rows = _fp8_places(x, by_group=False)
    warps = tuning.layer_norm_warps(x.shape[1])
    out = cast(Tensor, fp8.add_layer_norm_fp8(x, residual, weight, bias, eps, rows.values, rows.scales, num_warps=warps))
    out.fp8_rows = rows  # type: ignore[attr-defined]  # it goes where the tensor goes
    return out


def emitted_fp8(x: Tensor) -> Fp8Rows | None:
    """The same matrix in float8, where the kernel that made it emitted that."""
    return getattr(x, "fp8_rows", None)


def fp8_linear(
    x: Fp8Rows, weights: Sequence[Tensor], scales: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: torch.dtype
) -> Tensor:  # [T, F_0 + F_1 + ...]
    """x W^T + bias in `dtype`; one product where the weights lie back to back. Scales as of x: [1, F] or [K / 128, F] each."""
    if is_batch_invariant():
        raise ValueError("batch_invariant: torch's float8 product chooses its kernel by the number of rows; leave quantization or it out")
    if x.rows == 0:
        return x.scales.new_empty(0, sum(weight.shape[0] for weight in weights), dtype=dtype)
    weight, bias = _back_to_back(weights), None
    if len(weights) > 1 and weight is not None and all(b is not None for b in biases):
        bias = _back_to_back(cast(Sequence[Tensor], biases))
    if len(weights) > 1 and (weight is None or (bias is None and any(b is not None for b in biases))):
        return torch.cat([fp8_linear(x, [w], [s], [b], dtype) for w, s, b in zip(weights, scales, biases, strict=True)], dim=1)
    if len(weights) == 1:
        weight, bias = weights[0], biases[0]
    assert weight is not None, "several weights that lie apart were taken one by one"
    joined = _back_to_back([scale[0] for scale in scales]) if len(scales) > 1 else None
    scale = scales[0] if len(scales) == 1 else torch.cat(list(scales), dim=1) if joined is None else joined[None]
    return scaled_mm(x.values, weight.t(), x.scales.t(), scale, bias, dtype)[: x.rows]


def scaled_mm(x: Tensor, weight: Tensor, x_scales: Tensor, weight_scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """torch's product of float8 matrices, [T, K] and [K, F]. By rows the tensor cores may sum in their own, narrower format, whose error is
    far below that of float8; by groups every sum of 128 is added up in float32."""
    by_row = x_scales.shape[1] == 1
    return torch._scaled_mm(x, weight, scale_a=x_scales, scale_b=weight_scales, bias=bias, out_dtype=dtype, use_fast_accum=by_row)


def fp8_loses(device_name: str, H: int) -> str | None:
    """How a GPU is measured to lose by fp8 at this hidden size; None where it is not, or nobody has measured."""
    return tuning.FP8_LOSES.get((device_name, H))


@on_its_device
def pack(x: Tensor, indices: Tensor) -> Tensor:
    return cast(Tensor, packing.pack(x, indices, tile=tuning.pack_tile(x.shape[1])))


@on_its_device
def unpack(x: Tensor, indices: Tensor, rows: int, fill: float = 0.0) -> Tensor:
    return cast(Tensor, packing.unpack(x, indices, rows, fill, tile=tuning.pack_tile(x.shape[1])))


@on_its_device
def stage(
    ids: Tensor, positions: Tensor, types: Tensor | None, cu_seqlens: Tensor, first_rows: Tensor,
    ids_out: Tensor, positions_out: Tensor, types_out: Tensor | None, cu_seqlens_out: Tensor, first_rows_out: Tensor,
) -> None:  # fmt: skip
    """The inputs of a call, copied into the buffers of a recorded forward: see bertfast.kernels.stage."""
    staging.stage(ids, positions, types, cu_seqlens, first_rows, ids_out, positions_out, types_out, cu_seqlens_out, first_rows_out)


def _triton_gemm_wins(x: Tensor, weight: Tensor) -> bool:
    if not tuning.GEMM_WINS or not x.is_cuda:
        return False
    return tuning.triton_gemm_wins(torch.cuda.get_device_name(x.device), x.dtype, x.shape[0], weight.shape[1], weight.shape[0])


def _allow_tf32() -> bool:
    matmul = torch.backends.cuda.matmul  # one switch under two names; reading the older one can raise once the newer is set
    return bool(getattr(matmul, "fp32_precision", None) == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32)
