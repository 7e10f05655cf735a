"""The op contract: what the model graph may call, and what each backend provides.

A backend is a module with one function for each op below, of the same name and arguments:

    reference   plain PyTorch, any device and dtype; differentiable, but for int8 and fp8
    cpu         bertfast._C: float32 and bfloat16 on the CPU
    cuda        bertfast.kernels, imported on first use: float32, float16 and bfloat16 on CUDA

The checks are here (checks.py), so backends assume valid arguments. A device or dtype without kernels runs on the reference, as does
int8 off the CPU and fp8 off CUDA. The kernels record nothing for autograd: a tensor that requires grad belongs on the reference.

Imports torch, bertfast.runtime and bertfast.kernels; everything above may import it.

Shape letters: T tokens (packed, no padding), B sequences, H hidden, N heads, D head size, K inputs and F outputs of a linear layer,
C columns of a matrix or positions of a KV cache, R rows of a KV cache, V / P / Y rows of the word, position and token-type tables.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.ops import reference
from bertfast.ops.activations import ACTIVATIONS
from bertfast.ops.checks import (
    check,
    check_activation,
    check_cache,
    check_embedding,
    check_fp8_linear,
    check_int8_weight,
    check_linear,
    check_no_grad,
    check_norm,
    check_operands,
    check_rows,
    check_token_rows,
    check_varlen,
)
from bertfast.ops.dispatch import backend_of, batch_invariant, has_kernels
from bertfast.ops.fp8 import Fp8Rows, Fp8Weight, Rows, Scales
from bertfast.ops.int8 import HADAMARD_BLOCK, Int8Weight, pack_int8, quantize_weight, unpack_int8
from bertfast.ops.protocol import OPS, Ops

__all__ = [
    "ACTIVATIONS",
    "OPS",
    "Fp8Rows",
    "Fp8Weight",
    "Int8Weight",
    "Ops",
    "Rows",
    "add_layer_norm",
    "batch_invariant",
    "cached_attention",
    "embed_layer_norm",
    "fp8_add_layer_norm",
    "fp8_linear",
    "has_kernels",
    "int8_embed_layer_norm",
    "int8_linear",
    "linear",
    "linear_concat",
    "pack",
    "pack_int8",
    "quantize_weight",
    "unpack",
    "unpack_int8",
    "varlen_attention",
    "write_cache",
]

if TYPE_CHECKING:  # mypy holds every backend to the contract
    from bertfast.ops import cpu, cuda

    _reference: Ops = reference
    _cpu: Ops = cpu
    _cuda: Ops = cuda


def embed_layer_norm(
    input_ids: Tensor,  # [T] int64
    word_weight: Tensor,  # [V, H]; rows of inputs_embeds with input_ids 0 .. T - 1 serve as well
    position_ids: Tensor,  # [T] int64
    position_weight: Tensor,  # [P, H]
    token_type_ids: Tensor | None,  # [T] int64, or None: type 0 everywhere
    token_type_weight: Tensor,  # [Y, H]
    weight: Tensor,  # [H]
    bias: Tensor,  # [H]
    eps: float,
) -> Tensor:  # [T, H], dtype of the tables
    """LayerNorm(word[input_ids] + token_type[token_type_ids] + position[position_ids]). An id out of range raises ValueError (on CUDA:
    after the next synchronisation)."""
    op = "embed_layer_norm"
    tables = {"word_weight": word_weight, "position_weight": position_weight, "token_type_weight": token_type_weight}
    check_embedding(op, input_ids, position_ids, token_type_ids, tables, weight, bias)
    check_operands(op, word_weight, position_weight=position_weight, token_type_weight=token_type_weight, weight=weight, bias=bias)
    return backend_of(word_weight.device.type, word_weight.dtype).embed_layer_norm(
        input_ids, word_weight, position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps
    )


def linear(
    x: Tensor,  # [T, K]
    weight: Tensor,  # [F, K], as nn.Linear keeps it
    bias: Tensor | None,  # [F]
    activation: str | None = None,  # one of ACTIVATIONS
) -> Tensor:  # [T, F], dtype of x
    """activation(x @ weight.T + bias), accumulated in at least float32; "gelu" is the exact one, by erf."""
    check_activation("linear", activation)
    check_linear("linear", x, weight, bias)
    return backend_of(x.device.type, x.dtype).linear(x, weight, bias, activation)


def linear_concat(
    x: Tensor,  # [T, K]
    weights: Sequence[Tensor],  # each [F_i, K]
    biases: Sequence[Tensor | None],  # each [F_i]
) -> Tensor:  # [T, F_0 + F_1 + ...]
    """x @ cat(weights).T + cat(biases), without copying the weights: Q, K and V in one pass over x."""
    check(len(weights) == len(biases) > 0, "linear_concat", "{} weights and {} biases", len(weights), len(biases))
    for weight, bias in zip(weights, biases, strict=True):
        check_linear("linear_concat", x, weight, bias)
    return backend_of(x.device.type, x.dtype).linear_concat(x, weights, biases)


def int8_linear(
    x: Tensor,  # [T, K] float32
    weights: Sequence[Int8Weight],  # each of F_i features and K inputs
    biases: Sequence[Tensor | None],  # each [F_i] float32
    activation: str | None = None,  # one of ACTIVATIONS
) -> Tensor:  # [T, F_0 + F_1 + ...] float32
    """activation(x @ cat(weights).T + cat(biases)) with int8 weights. x is rotated and quantized by the op, with a scale for every 128
    inputs of a row. Sums of 128 products are exact in int32; sums of those are float32.

    Inputs have 8 bits where the instruction set multiplies int8 without saturating, else 7, with a scale for every 64. A row with a value
    that is not finite, or overflows float32 when rotated, gives NaN.
    """
    op = "int8_linear"
    check_activation(op, activation)
    check(x.dim() == 2 and x.dtype == torch.float32, op, "x must be [T, K] float32, got {} of shape {}", x.dtype, x.shape)
    check(len(weights) == len(biases) > 0, op, "{} weights and {} biases", len(weights), len(biases))
    for weight, bias in zip(weights, biases, strict=True):
        F, K = weight.features, weight.inputs
        check(x.shape[1] == K, op, "x {} does not match a weight of {} inputs", x.shape, K)
        check(
            bias is None or bias.shape == (F,),
            op,
            "bias {} does not match a weight of {} features",
            None if bias is None else bias.shape,
            F,
        )
        check_int8_weight(op, weight, HADAMARD_BLOCK)
        check(weight.panels.device == x.device, op, "a weight is on {}, x on {}", weight.panels.device, x.device)
        check_operands(op, x, scales=weight.scales, bias=bias)
    return _int8_backend(x.device.type).int8_linear(x, weights, biases, activation)


def int8_embed_layer_norm(
    input_ids: Tensor,  # [T] int64
    words: Int8Weight,  # V rows of H, in panels of any width
    position_ids: Tensor,  # [T] int64
    position_weight: Tensor,  # [P, H] float32
    token_type_ids: Tensor | None,  # [T] int64, or None: type 0 everywhere
    token_type_weight: Tensor,  # [Y, H] float32
    weight: Tensor,  # [H] float32
    bias: Tensor,  # [H] float32
    eps: float,
) -> Tensor:  # [T, H] float32
    """embed_layer_norm with int8 word embeddings, whose rows are dequantized as they are gathered."""
    op = "int8_embed_layer_norm"
    check_int8_weight(op, words, max(words.width, 1))
    check(weight.dtype == torch.float32, op, "weight must be float32, got {}", weight.dtype)
    check(words.inputs == len(weight), op, "words of {} columns do not match weight {}", words.inputs, weight.shape)
    tables = {"position_weight": position_weight, "token_type_weight": token_type_weight}
    check_embedding(op, input_ids, position_ids, token_type_ids, tables, weight, bias)
    check_operands(op, weight, scales=words.scales, position_weight=position_weight, token_type_weight=token_type_weight, bias=bias)
    check(words.panels.device == weight.device, op, "words are on {}, weight on {}", words.panels.device, weight.device)
    return _int8_backend(weight.device.type).int8_embed_layer_norm(
        input_ids, words, position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps
    )


def fp8_linear(
    x: Rows,  # [T, K] float16 or bfloat16, or in float8
    weights: Sequence[Fp8Weight],  # each [F_i, K], with scales of one kind
    biases: Sequence[Tensor | None],  # each [F_i]
    activation: str | None = None,  # one of ACTIVATIONS
    quantize: Scales | None = None,
) -> Rows:  # [T, F_0 + F_1 + ...] in the dtype x had before it was quantized; in float8 under `quantize`
    """activation(x @ cat(weights).T + cat(biases)) with float8 weights. x is quantized by the op unless it is in float8 already.

    quantize: the result is float8, with a scale for each row, or for each 128 columns of a row ("group"): as the fp8_linear that reads
    it wants. A value of x that is not finite gives NaN.
    """
    check_activation("fp8_linear", activation)
    check_fp8_linear("fp8_linear", x, weights, biases)
    return backend_of(x.device.type, x.dtype).fp8_linear(x, weights, biases, activation, quantize)


def _int8_backend(device_type: str) -> Ops:
    return backend_of(device_type, torch.float32) if device_type == "cpu" else reference


def add_layer_norm(
    x: Tensor,  # [T, H]
    residual: Tensor | None,  # [T, H], or None to skip the add
    weight: Tensor,  # [H]
    bias: Tensor,  # [H]
    eps: float,
) -> Tensor:  # [T, H], dtype of x
    """LayerNorm(x + residual) over the last dimension; the sum and the statistics in at least float32."""
    check_norm("add_layer_norm", x, residual, weight, bias)
    return backend_of(x.device.type, x.dtype).add_layer_norm(x, residual, weight, bias, eps)


def fp8_add_layer_norm(
    x: Tensor,  # [T, H]
    residual: Tensor,  # [T, H]
    weight: Tensor,  # [H]
    bias: Tensor,  # [H]
    eps: float,
) -> Fp8Rows:  # [T, H], a scale for each row; its `unquantized` is what add_layer_norm returns
    """add_layer_norm whose result is quantized for the fp8_linear that reads it, and kept as it is for the next residual."""
    check_norm("fp8_add_layer_norm", x, residual, weight, bias)
    return backend_of(x.device.type, x.dtype).fp8_add_layer_norm(x, residual, weight, bias, eps)


def varlen_attention(
    q: Tensor,  # [Tq, N, D]; rows may be strided (a slice of packed QKV), the last two dimensions lie back to back
    k: Tensor,  # [Tk, N, D]
    v: Tensor,  # [Tk, N, D]
    cu_seqlens_q: Tensor,  # [B + 1] int32: sequence b owns rows cu_seqlens_q[b] : cu_seqlens_q[b + 1] of q
    cu_seqlens_k: Tensor,  # [B + 1] int32, the same for k and v
    max_seqlen_q: int,  # on the host: a launch must not wait for the device
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,  # None: D ** -0.5
    bfloat16_products: bool = False,  # allowed
) -> Tensor:  # [Tq, N, D], contiguous
    """softmax(q k^T scale) v within each sequence, without an [Sq, Sk] matrix in memory.

    causal: query i of a sequence sees key j where j <= i + Sk - Sq (aligned at the end, as in flash-attn), so one query against a cache
    sees all of it. A query that sees no key gets zeros. The kernels take D up to 128 (CUDA) or 256 (CPU); larger D runs on the reference.
    bfloat16_products: q, k, v and softmax weights may be rounded to bfloat16 before they are multiplied (done where the CPU multiplies
    bfloat16); sums and softmax stay float32.
    """
    check_varlen("varlen_attention", q, k, v, cu_seqlens_q, cu_seqlens_k)
    D = q.shape[2]
    backend = backend_of(q.device.type, q.dtype)
    if D > 256 or (D > 128 and q.is_cuda):
        backend = reference
    return backend.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale, bfloat16_products)


def write_cache(
    k: Tensor,  # [T, N, D]; rows may be strided, the last two dimensions lie back to back
    v: Tensor,  # [T, N, D]
    keys: Tensor,  # [R, N, C, D], the last dimension contiguous; written in place
    values: Tensor,  # [R, N, C, D]
    rows: Tensor,  # [T] int64: the cache row of each token
    positions: Tensor,  # [T] int64: its position there; no (row, position) twice
) -> None:
    """keys[rows[t], :, positions[t]] = k[t], and values alike. A row or position outside the cache raises ValueError on the CPU; on CUDA
    the caller must prevent it."""
    op = "write_cache"
    check_cache(op, k, keys, values, rows=rows, positions=positions)
    check(v.shape == k.shape, op, "v {} does not match k {}", v.shape, k.shape)
    check_token_rows(op, k=k, v=v)
    check_no_grad(op, k, v)
    backend_of(k.device.type, k.dtype).write_cache(k, v, keys, values, rows, positions)


def cached_attention(
    q: Tensor,  # [T, N, D]; rows may be strided, the last two dimensions lie back to back
    keys: Tensor,  # [R, N, C, D], the last dimension contiguous
    values: Tensor,  # [R, N, C, D]
    rows: Tensor,  # [T] int64: the cache row that a query reads
    first: Tensor | None,  # [T] int64, or None: 0
    last: Tensor,  # [T] int64: query t reads positions first[t] .. last[t] - 1
    scale: float | None = None,  # None: D ** -0.5
) -> Tensor:  # [T, N, D], contiguous
    """softmax(q k^T scale) v of single queries, each against a range of one row of a KV cache; zeros for an empty range. A range outside
    the cache raises ValueError on the CPU; on CUDA the caller must prevent it."""
    op = "cached_attention"
    ranges = {"rows": rows, "last": last} if first is None else {"rows": rows, "first": first, "last": last}
    check_cache(op, q, keys, values, **ranges)
    check(q.shape[2] > 0, op, "q {} has heads of size 0", q.shape)
    check_token_rows(op, q=q)
    check_no_grad(op, q, keys, values)
    return backend_of(q.device.type, q.dtype).cached_attention(q, keys, values, rows, first, last, scale)


def pack(
    x: Tensor,  # [R, C]
    indices: Tensor,  # [T] int64, each in [0, R)
) -> Tensor:  # [T, C]
    """x[indices]: the rows that hold real tokens."""
    check_rows("pack", x, indices)
    return backend_of(x.device.type, x.dtype).pack(x, indices)


def unpack(
    x: Tensor,  # [T, C]
    indices: Tensor,  # [T] int64, each in [0, rows), all different
    rows: int,
    fill: float = 0.0,
) -> Tensor:  # [rows, C]
    """The inverse of pack: row t of x goes to row indices[t]; every other row is `fill`."""
    check_rows("unpack", x, indices)
    check(x.is_floating_point(), "unpack", "x is {}, expected floating point numbers", x.dtype)
    check(indices.shape[0] == x.shape[0], "unpack", "indices {} do not match x {}", indices.shape, x.shape)
    check(rows >= x.shape[0], "unpack", "rows={} is less than the {} rows of x", rows, x.shape[0])
    return backend_of(x.device.type, x.dtype).unpack(x, indices, rows, fill)
