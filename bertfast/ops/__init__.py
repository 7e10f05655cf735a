"""The op contract: what the model graph may call, and what each backend must provide.

A backend is a module with one function per op below, same name, same arguments:

    reference   plain PyTorch, any device and dtype, differentiable but for int8    (always there)
    cpu         bertfast._C                                            (float32, bfloat16 on the CPU)
    cuda        bertfast.kernels, imported on first use                (float32, float16, bfloat16 on CUDA)

Backends may assume the arguments are valid: the checks live here, once. A device or dtype that has no kernels runs
on the reference, and so does int8 elsewhere than on the CPU. The kernels record nothing for autograd; a tensor that requires grad
belongs on the reference.

Shape letters: T tokens (packed, no padding), B sequences, H hidden, N heads, D head size, K inputs and F outputs of a
linear layer, C any number of columns, V / P / Y rows of the word, position and token-type tables.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.ops import reference
from bertfast.ops.int8 import GROUP_SIZE, HADAMARD_BLOCK, Int8Weight, pack_int8, quantize_weight, unpack_int8
from bertfast.ops.protocol import OPS, Ops

__all__ = [
    "ACTIVATIONS",
    "OPS",
    "Int8Weight",
    "Ops",
    "add_layer_norm",
    "batch_invariant",
    "cached_attention",
    "embed_layer_norm",
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

logger = logging.getLogger("bertfast")

if TYPE_CHECKING:  # mypy holds every backend to the contract
    from bertfast.ops import cpu, cuda

    _reference: Ops = reference
    _cpu: Ops = cpu
    _cuda: Ops = cuda

ACTIVATIONS = frozenset(reference.ACTIVATIONS)  # what linear can fuse; any other is applied to its result

_KERNELS = {
    ("cpu", torch.float32): "bertfast.ops.cpu",
    ("cpu", torch.bfloat16): "bertfast.ops.cpu",
    ("cuda", torch.float32): "bertfast.ops.cuda",
    ("cuda", torch.float16): "bertfast.ops.cuda",
    ("cuda", torch.bfloat16): "bertfast.ops.cuda",
}


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors of this kind run on kernels, or on the plain definitions."""
    return (device.type, dtype) in _KERNELS


@cache
def _backend(device_type: str, dtype: torch.dtype) -> Ops:
    name = _KERNELS.get((device_type, dtype))
    if name is not None:
        backend: Ops = import_module(name)
        return backend
    if dtype.is_floating_point:
        logger.warning("no kernels for %s on %s: plain torch operations are used", dtype, device_type)  # once: this function is cached
    return reference


def batch_invariant(like: Tensor) -> AbstractContextManager[None]:
    """Within: the kernels for tensors of this kind give a row the same bits alone and in any batch. Those of the CPU always do; on
    CUDA it costs speed. The plain definitions promise nothing."""
    backend = _backend(like.device.type, like.dtype)
    return backend.batch_invariant() if hasattr(backend, "batch_invariant") else nullcontext()


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
    """LayerNorm(word + token type + position), the rows gathered on the way. An id out of range raises ValueError (on CUDA: at
    the next synchronisation)."""
    op = "embed_layer_norm"
    tables = {"word_weight": word_weight, "position_weight": position_weight, "token_type_weight": token_type_weight}
    _check_embedding(op, input_ids, position_ids, token_type_ids, tables, weight, bias)
    _check_operands(op, word_weight, position_weight=position_weight, token_type_weight=token_type_weight, weight=weight, bias=bias)
    return _backend(word_weight.device.type, word_weight.dtype).embed_layer_norm(
        input_ids, word_weight, position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps
    )


def linear(
    x: Tensor,  # [T, K]
    weight: Tensor,  # [F, K], as nn.Linear keeps it
    bias: Tensor | None,  # [F]
    activation: str | None = None,  # one of ACTIVATIONS
) -> Tensor:  # [T, F], dtype of x
    """activation(x @ weight.T + bias), accumulated in at least float32; "gelu" is the exact one, by erf."""
    _check(activation is None or activation in ACTIVATIONS, "linear", "activation {!r}, expected one of {}", activation, ACTIVATIONS)
    _check_linear("linear", x, weight, bias)
    return _backend(x.device.type, x.dtype).linear(x, weight, bias, activation)


def linear_concat(
    x: Tensor,  # [T, K]
    weights: Sequence[Tensor],  # each [F_i, K]
    biases: Sequence[Tensor | None],  # each [F_i]
) -> Tensor:  # [T, F_0 + F_1 + ...]
    """x @ cat(weights).T + cat(biases), each weight read where it lies: Q, K and V in one pass over x."""
    _check(len(weights) == len(biases) > 0, "linear_concat", "{} weights and {} biases", len(weights), len(biases))
    for weight, bias in zip(weights, biases, strict=True):
        _check_linear("linear_concat", x, weight, bias)
    return _backend(x.device.type, x.dtype).linear_concat(x, weights, biases)


def int8_linear(
    x: Tensor,  # [T, K] float32
    weights: Sequence[Int8Weight],  # each of F_i features and K inputs
    biases: Sequence[Tensor | None],  # each [F_i] float32
    activation: str | None = None,  # one of ACTIVATIONS
) -> Tensor:  # [T, F_0 + F_1 + ...] float32
    """activation(x @ cat(weights).T + cat(biases)) by int8 weights; x is turned and quantized on the way, with a scale for every 128
    inputs of a row. Sums of 128 products are exact in int32, sums of those are in float32.

    Inputs keep 8 bits where the instruction set multiplies int8 without saturating, else 7, with a scale for every 64. A row that holds
    something not finite, or too large to be turned in float32, comes out as NaN.
    """
    op = "int8_linear"
    _check(activation is None or activation in ACTIVATIONS, op, "activation {!r}, expected one of {}", activation, ACTIVATIONS)
    _check(x.dim() == 2 and x.dtype == torch.float32, op, "x must be [T, K] float32, got {} of shape {}", x.dtype, x.shape)
    _check(len(weights) == len(biases) > 0, op, "{} weights and {} biases", len(weights), len(biases))
    for weight, bias in zip(weights, biases, strict=True):
        F, K = weight.features, weight.inputs
        _check(x.shape[1] == K, op, "x {} does not match a weight of {} inputs", x.shape, K)
        _check(
            bias is None or bias.shape == (F,),
            op,
            "bias {} does not match a weight of {} features",
            None if bias is None else bias.shape,
            F,
        )
        _check_int8(op, weight, HADAMARD_BLOCK)
        _check(weight.panels.device == x.device, op, "a weight is on {}, x on {}", weight.panels.device, x.device)
        _check_operands(op, x, scales=weight.scales, bias=bias)
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
    """embed_layer_norm with int8 word embeddings, turned back row by row as they are gathered."""
    op = "int8_embed_layer_norm"
    _check_int8(op, words, max(words.width, 1))
    _check(weight.dtype == torch.float32, op, "weight must be float32, got {}", weight.dtype)
    _check(words.inputs == len(weight), op, "words of {} columns do not match weight {}", words.inputs, weight.shape)
    tables = {"position_weight": position_weight, "token_type_weight": token_type_weight}
    _check_embedding(op, input_ids, position_ids, token_type_ids, tables, weight, bias)
    _check_operands(op, weight, scales=words.scales, position_weight=position_weight, token_type_weight=token_type_weight, bias=bias)
    _check(words.panels.device == weight.device, op, "words are on {}, weight on {}", words.panels.device, weight.device)
    return _int8_backend(weight.device.type).int8_embed_layer_norm(
        input_ids, words, position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps
    )


def _check_int8(op: str, weight: Int8Weight, width: int) -> None:
    panels, groups, spans = -(-weight.features // width), -(-weight.inputs // HADAMARD_BLOCK), -(-weight.inputs // GROUP_SIZE)
    _check(weight.panels.shape == (panels, groups * HADAMARD_BLOCK // 4, width, 4), op, "panels {}: use pack_int8", weight.panels.shape)
    _check(weight.scales.shape == (panels, spans, width), op, "scales {}: use pack_int8", weight.scales.shape)
    _check(weight.panels.dtype == torch.uint8 and weight.panels.is_contiguous(), op, "panels are damaged: use pack_int8")


def _int8_backend(device_type: str) -> Ops:
    return _backend(device_type, torch.float32) if device_type == "cpu" else reference


def add_layer_norm(
    x: Tensor,  # [T, H]
    residual: Tensor | None,  # [T, H], or None to skip the add
    weight: Tensor,  # [H]
    bias: Tensor,  # [H]
    eps: float,
) -> Tensor:  # [T, H], dtype of x
    """LayerNorm(x + residual) over the last dimension; the sum and the statistics in at least float32."""
    op = "add_layer_norm"
    _check(x.dim() == 2, op, "x must be [T, H], got {}", x.shape)
    if residual is not None:
        _check(residual.shape == x.shape, op, "residual {} does not match x {}", residual.shape, x.shape)
    _check(weight.shape == x.shape[1:], op, "weight {} does not match H={}", weight.shape, x.shape[1])
    _check(bias.shape == x.shape[1:], op, "bias {} does not match H={}", bias.shape, x.shape[1])
    _check_operands(op, x, residual=residual, weight=weight, bias=bias)
    return _backend(x.device.type, x.dtype).add_layer_norm(x, residual, weight, bias, eps)


def varlen_attention(
    q: Tensor,  # [Tq, N, D]; rows may be strided (a slice of packed QKV), the last two dimensions lie back to back
    k: Tensor,  # [Tk, N, D]
    v: Tensor,  # [Tk, N, D]
    cu_seqlens_q: Tensor,  # [B + 1] int32: sequence b owns rows cu_seqlens_q[b] : cu_seqlens_q[b + 1] of q
    cu_seqlens_k: Tensor,  # [B + 1] int32, the same for k and v
    max_seqlen_q: int,  # known on the host: a launch must not wait for the device
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,  # None: D ** -0.5
    bfloat16_products: bool = False,  # allowed
) -> Tensor:  # [Tq, N, D], contiguous
    """softmax(q k^T scale) v within each sequence, without an [Sq, Sk] matrix in memory.

    causal: query i of a sequence sees key j where j <= i + Sk - Sq (aligned at the end, as in flash-attn), so one query against
    a cache sees all of it. A query that sees no key gets zeros. The kernels take D up to 128 (CUDA) or 256 (CPU); larger runs on
    the reference. bfloat16_products: q, k, v and the softmax's weights may be rounded to bfloat16 before they are multiplied, which is
    done where the CPU multiplies those; sums and softmax are float32 all the same.
    """
    op = "varlen_attention"
    _check(q.dim() == 3, op, "q must be [Tq, N, D], got {}", q.shape)
    _check(k.shape == v.shape, op, "k {} does not match v {}", k.shape, v.shape)
    _check(k.dim() == 3 and k.shape[1:] == q.shape[1:], op, "k {} does not match N and D of q {}", k.shape, q.shape)
    D = q.shape[2]
    for name, t in (("q", q), ("k", k), ("v", v)):
        stride = t.stride()
        _check(t.numel() == 0 or (stride[2] == 1 and stride[1] == D), op, "rows of {} must be contiguous, got strides {}", name, stride)
        _check(t.device == q.device and t.dtype == q.dtype, op, "{} is {} on {}, q is {} on {}", name, t.dtype, t.device, q.dtype, q.device)
    _check(cu_seqlens_q.shape == cu_seqlens_k.shape, op, "cu_seqlens_q {}, cu_seqlens_k {}", cu_seqlens_q.shape, cu_seqlens_k.shape)
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        _check(cu.dtype == torch.int32 and cu.dim() == 1, op, "{} must be [B + 1] int32, got {} {}", name, cu.shape, cu.dtype)
        _check(cu.device == q.device and cu.is_contiguous() and len(cu) > 0, op, "{} must lie contiguous on {}", name, q.device)
    _check_no_grad(op, q, k, v)
    backend = _backend(q.device.type, q.dtype)
    if D > 256 or (D > 128 and q.is_cuda):
        backend = reference
    return backend.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale, bfloat16_products)


def write_cache(
    k: Tensor,  # [T, N, D]; rows may be strided, the last two dimensions lie back to back
    v: Tensor,  # [T, N, D]
    keys: Tensor,  # [R, N, C, D], the last dimension contiguous; written in place
    values: Tensor,  # [R, N, C, D]
    rows: Tensor,  # [T] int64: the cache row of each token
    cells: Tensor,  # [T] int64: its cell there; no (row, cell) twice
) -> None:
    """keys[rows[t], :, cells[t]] = k[t], and values alike. A row or cell outside of the cache raises ValueError (on CUDA it is the
    caller's to prevent)."""
    op = "write_cache"
    _check_cache(op, k, keys, values, rows=rows, cells=cells)
    _check(v.shape == k.shape, op, "v {} does not match k {}", v.shape, k.shape)
    _check_token_rows(op, k=k, v=v)
    _check_no_grad(op, k, v)
    _backend(k.device.type, k.dtype).write_cache(k, v, keys, values, rows, cells)


def cached_attention(
    q: Tensor,  # [T, N, D]; rows may be strided, the last two dimensions lie back to back
    keys: Tensor,  # [R, N, C, D], the last dimension contiguous
    values: Tensor,  # [R, N, C, D]
    rows: Tensor,  # [T] int64: the cache row that a query reads
    first: Tensor | None,  # [T] int64, or None: 0
    last: Tensor,  # [T] int64: query t reads cells first[t] .. last[t] - 1
    scale: float | None = None,  # None: D ** -0.5
) -> Tensor:  # [T, N, D], contiguous
    """softmax(q k^T scale) v of single queries, each against a range of one row of a KV cache; zeros for an empty range. A range
    outside of the cache raises ValueError (on CUDA it is the caller's to prevent)."""
    op = "cached_attention"
    ranges = {"rows": rows, "last": last} if first is None else {"rows": rows, "first": first, "last": last}
    _check_cache(op, q, keys, values, **ranges)
    _check_token_rows(op, q=q)
    _check_no_grad(op, q, keys, values)
    return _backend(q.device.type, q.dtype).cached_attention(q, keys, values, rows, first, last, scale)


def _check_cache(op: str, x: Tensor, keys: Tensor, values: Tensor, **per_token: Tensor) -> None:
    _check(x.dim() == 3, op, "the first operand must be [T, N, D], got {}", x.shape)
    T, N, D = x.shape
    _check(keys.dim() == 4 and keys.shape[1] == N and keys.shape[3] == D, op, "keys {} do not match N={} and D={}", keys.shape, N, D)
    _check(values.shape == keys.shape, op, "values {} do not match keys {}", values.shape, keys.shape)
    for name, t in (("keys", keys), ("values", values)):
        _check(t.numel() == 0 or t.stride(3) == 1, op, "the last dimension of {} must be contiguous, got strides {}", name, t.stride())
        same = t.dtype == x.dtype and t.device == x.device
        _check(same, op, "{} are {} on {}, expected {} on {}", name, t.dtype, t.device, x.dtype, x.device)
    for name, t in per_token.items():
        _check(t.shape == (T,) and t.dtype == torch.int64, op, "{} must be [{}] int64, got {} {}", name, T, t.shape, t.dtype)
        _check(t.device == x.device and t.is_contiguous(), op, "{} must lie contiguous on {}", name, x.device)


def _check_token_rows(op: str, **operands: Tensor) -> None:
    for name, t in operands.items():
        stride = t.stride()
        _check(t.numel() == 0 or stride[1:] == (t.shape[2], 1), op, "rows of {} must be contiguous, got strides {}", name, stride)


def pack(
    x: Tensor,  # [R, C]
    indices: Tensor,  # [T] int64, each in [0, R)
) -> Tensor:  # [T, C]
    """x[indices]: the rows that hold real tokens."""
    _check_rows("pack", x, indices)
    return _backend(x.device.type, x.dtype).pack(x, indices)


def unpack(
    x: Tensor,  # [T, C]
    indices: Tensor,  # [T] int64, each in [0, rows), all different
    rows: int,
    fill: float = 0.0,
) -> Tensor:  # [rows, C]
    """The inverse of pack: row t of x goes to row indices[t]; every other row is `fill`."""
    _check_rows("unpack", x, indices)
    _check(indices.shape[0] == x.shape[0], "unpack", "indices {} do not match x {}", indices.shape, x.shape)
    _check(rows >= x.shape[0], "unpack", "rows={} is less than the {} rows of x", rows, x.shape[0])
    return _backend(x.device.type, x.dtype).unpack(x, indices, rows, fill)


def _check_rows(op: str, x: Tensor, indices: Tensor) -> None:
    _check(x.dim() == 2 and x.is_contiguous(), op, "x must be a contiguous matrix, got {} with strides {}", x.shape, x.stride())
    _check(indices.dim() == 1 and indices.is_contiguous(), op, "indices must be a contiguous vector, got {}", indices.shape)
    _check(indices.dtype == torch.int64, op, "indices must be int64, got {}", indices.dtype)
    _check(indices.device == x.device, op, "indices are on {}, x on {}", indices.device, x.device)
    _check_no_grad(op, x)


def _check_linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _check(x.dim() == 2 and weight.dim() == 2, op, "x must be [T, K] and weight [F, K], got {} and {}", x.shape, weight.shape)
    _check(x.shape[1] == weight.shape[1], op, "x {} and weight {} differ in K", x.shape, weight.shape)
    if bias is not None:
        _check(bias.shape == weight.shape[:1], op, "bias {} does not match weight {}", bias.shape, weight.shape)
    _check_operands(op, x, weight=weight, bias=bias)


def _check_embedding(
    op: str, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None, tables: dict[str, Tensor], weight: Tensor, bias: Tensor
) -> None:
    _check(input_ids.dim() == 1, op, "input_ids must be [T], got {}", input_ids.shape)
    for name, ids in (("input_ids", input_ids), ("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if ids is not None:
            _check(ids.dtype == torch.int64, op, "{} must be int64, got {}", name, ids.dtype)
            _check(ids.is_contiguous(), op, "{} must be contiguous, got strides {}", name, ids.stride())
            _check(ids.shape == input_ids.shape, op, "{} {} does not match input_ids {}", name, ids.shape, input_ids.shape)
            _check(ids.device == weight.device, op, "{} is on {}, weight on {}", name, ids.device, weight.device)
    for name, table in tables.items():
        _check(table.dim() == 2, op, "{} must be [rows, H], got {}", name, table.shape)
        _check(table.shape[1:] == weight.shape, op, "{} {} does not match H of weight {}", name, table.shape, weight.shape)
    _check(bias.shape == weight.shape, op, "bias {} does not match weight {}", bias.shape, weight.shape)


def _check_operands(op: str, x: Tensor, **others: Tensor | None) -> None:
    """All on x's device and in its dtype, rows back to back; nothing that autograd expects us to remember."""
    device, dtype = x.device, x.dtype
    _check(x.is_contiguous(), op, "the first operand must be contiguous, got strides {}", x.stride())
    for name, t in others.items():
        if t is not None:
            _check(t.is_contiguous(), op, "{} must be contiguous, got strides {}", name, t.stride())
            _check(t.dtype == dtype and t.device == device, op, "{} is {} on {}, expected {} on {}", name, t.dtype, t.device, dtype, device)
    _check_no_grad(op, x, *others.values())


def _check_no_grad(op: str, *operands: Tensor | None) -> None:
    if torch.is_grad_enabled():
        for t in operands:
            if t is not None and t.requires_grad:
                raise ValueError(f"{op}: the kernels do not differentiate; call it under torch.no_grad(), or bertfast.ops.reference.{op}")


def _check(ok: bool, op: str, message: str, *values: object) -> None:
    if not ok:
        raise ValueError(f"{op}: " + message.format(*(tuple(v) if isinstance(v, tuple) else v for v in values)))
