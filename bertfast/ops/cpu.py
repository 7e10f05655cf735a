"""CPU backend: bertfast._C on the addresses of float32 or bfloat16 tensors. bertfast.ops has checked the arguments.

One call into C++ an op. Results are written to tensors made here by torch.empty; a kernel writes every element.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bertfast.ops.activations import ACTIVATIONS
from bertfast.ops.int8 import Int8Weight
from bertfast.ops.reference import fp8_add_layer_norm, fp8_linear  # fp8 has no CPU kernels
from bertfast.runtime.native import _C

__all__ = [
    "activation_code",
    "add_layer_norm",
    "cached_attention",
    "embed_layer_norm",
    "fp8_add_layer_norm",
    "fp8_linear",
    "int8_embed_layer_norm",
    "int8_linear",
    "linear",
    "linear_concat",
    "pack",
    "unpack",
    "varlen_attention",
    "write_cache",
]

_CODES: dict[str | None, int] = {None: _C.ACTIVATIONS["none"], **{row.name: _C.ACTIVATIONS[row.cpp] for row in ACTIVATIONS.values()}}


def activation_code(activation: str | None) -> int:
    """The value of the C++ enum Activation."""
    return _CODES[activation]


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
    T, H = len(input_ids), len(weight)
    out = word_weight.new_empty(T, H)
    _C.embed_layer_norm(
        input_ids.data_ptr(), word_weight.data_ptr(), len(word_weight),
        position_ids.data_ptr(), position_weight.data_ptr(), len(position_weight),
        _address(token_type_ids), token_type_weight.data_ptr(), len(token_type_weight),
        weight.data_ptr(), bias.data_ptr(), eps, out.data_ptr(), T, H, out.dtype is torch.bfloat16,
    )  # fmt: skip
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    return _linear(x, [weight], [bias], activation_code(activation))


def linear_concat(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    return _linear(x, weights, biases, activation_code(None))


def _linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], activation: int) -> Tensor:
    T, K = x.shape
    parts = [(w.data_ptr(), _address(b), len(w)) for w, b in zip(weights, biases, strict=True)]
    out = x.new_empty(T, sum(features for _, _, features in parts))
    _C.linear(x.data_ptr(), parts, activation, out.data_ptr(), T, K, x.dtype is torch.bfloat16)
    return out


def int8_linear(x: Tensor, weights: Sequence[Int8Weight], biases: Sequence[Tensor | None], activation: str | None = None) -> Tensor:
    T, K = x.shape
    parts = [(w.panels.data_ptr(), w.scales.data_ptr(), _address(b), w.features) for w, b in zip(weights, biases, strict=True)]
    out = x.new_empty(T, sum(w.features for w in weights))
    _C.int8_linear(x.data_ptr(), parts, activation_code(activation), out.data_ptr(), T, K)
    return out


def int8_embed_layer_norm(
    input_ids: Tensor,
    words: Int8Weight,
    position_ids: Tensor,
    position_weight: Tensor,
    token_type_ids: Tensor | None,
    token_type_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    T, H = len(input_ids), len(weight)
    out = weight.new_empty(T, H)
    _C.int8_embed_layer_norm(
        input_ids.data_ptr(), words.panels.data_ptr(), words.scales.data_ptr(), words.width, words.features,
        position_ids.data_ptr(), position_weight.data_ptr(), len(position_weight),
        _address(token_type_ids), token_type_weight.data_ptr(), len(token_type_weight),
        weight.data_ptr(), bias.data_ptr(), eps, out.data_ptr(), T, H,
    )  # fmt: skip
    return out


def add_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    T, H = x.shape
    out = torch.empty_like(x)
    operands = x.data_ptr(), _address(residual), weight.data_ptr(), bias.data_ptr()
    _C.add_layer_norm(*operands, eps, out.data_ptr(), T, H, x.dtype is torch.bfloat16)
    return out


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
    Tq, N, D = q.shape
    out = q.new_empty(Tq, N, D)
    _C.varlen_attention(
        q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0),
        cu_seqlens_q.data_ptr(), cu_seqlens_k.data_ptr(), len(cu_seqlens_q) - 1, Tq, len(k), N, D,
        causal, D**-0.5 if scale is None else scale, bfloat16_products, out.data_ptr(), q.dtype is torch.bfloat16,
    )  # fmt: skip
    return out


def write_cache(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> None:
    _C.write_cache(
        k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0), len(k),
        keys.data_ptr(), keys.stride()[:3], values.data_ptr(), values.stride()[:3], keys.shape,
        rows.data_ptr(), positions.data_ptr(), k.dtype is torch.bfloat16,
    )  # fmt: skip


def cached_attention(
    q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, first: Tensor | None, last: Tensor, scale: float | None = None
) -> Tensor:
    T, N, D = q.shape
    out = q.new_empty(T, N, D)
    _C.cached_attention(
        q.data_ptr(), q.stride(0), T, keys.data_ptr(), keys.stride()[:3], values.data_ptr(), values.stride()[:3], keys.shape,
        rows.data_ptr(), _address(first), last.data_ptr(), D**-0.5 if scale is None else scale, out.data_ptr(),
        q.dtype is torch.bfloat16,
    )  # fmt: skip
    return out


def pack(x: Tensor, indices: Tensor) -> Tensor:
    out = x.new_empty(len(indices), x.shape[1])
    _C.pack(x.data_ptr(), len(x), indices.data_ptr(), out.data_ptr(), len(indices), x.shape[1] * x.element_size())
    return out


def unpack(x: Tensor, indices: Tensor, rows: int, fill: float = 0.0) -> Tensor:
    out = x.new_empty(rows, x.shape[1])
    _C.unpack(x.data_ptr(), indices.data_ptr(), len(x), out.data_ptr(), rows, x.shape[1], fill, x.dtype is torch.bfloat16)
    return out


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
