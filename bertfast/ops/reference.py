"""What every op means, in plain PyTorch.

Not optimized. Each function computes in the dtype it is given (LayerNorm statistics and softmax in at least float32), so float64
arguments give the truth that kernels are tested against. Differentiable (but for int8 and fp8), on any device. Arguments, shapes and
errors: bertfast.ops.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.ops.activations import activated
from bertfast.ops.fp8 import (
    Fp8Rows,
    Fp8Weight,
    Rows,
    Scales,
    dequantize_fp8,
    quantize_fp8_rows,
    readable_rows,
)
from bertfast.ops.int8 import (
    HADAMARD_BLOCK,
    Int8Weight,
    dequantize,
    in_blocks,
    in_groups,
    pad_to_blocks,
    rotate,
    scales_per_block,
    unpack_int8,
)

INT8_ZERO = 2.0**-100  # a group of smaller inputs counts as zeros: 1 / its scale would overflow


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
    for name, ids, table in (
        ("input_ids", input_ids, word_weight),
        ("position_ids", position_ids, position_weight),
        ("token_type_ids", token_type_ids, token_type_weight),
    ):
        if ids is not None and ids.numel():
            low, high = (int(v) for v in torch.aminmax(ids))
            if low < 0 or high >= table.shape[0]:
                raise ValueError(out_of_range(name, low if low < 0 else high, table.shape[0]))
    types = token_type_weight[0] if token_type_ids is None else F.embedding(token_type_ids, token_type_weight)
    x = F.embedding(input_ids, word_weight) + types + F.embedding(position_ids, position_weight)
    return add_layer_norm(x, None, weight, bias, eps)


def out_of_range(name: str, value: int, rows: int) -> str:
    return f"{name}: got {value}, expected 0 <= {name} < {rows}, the rows of its embedding table"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    return activated(F.linear(x, weight, bias), activation)


def linear_concat(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)], dim=-1)


def int8_linear(
    x: Tensor, weights: Sequence[Int8Weight], biases: Sequence[Tensor | None], activation: str | None = None, qmax: int = 127
) -> Tensor:
    """qmax: the largest quantized input. x is quantized from float32, whatever its dtype; the rest is computed in x's dtype."""
    q, input_scales = quantize_inputs(x.float(), qmax)
    blocks = in_blocks(q.to(x.dtype))
    outs = []
    for weight, bias in zip(weights, biases, strict=True):
        w, scales = unpack_int8(weight)
        weight_scales = scales_per_block(scales, blocks.shape[1])
        out = x.new_zeros(x.shape[0], weight.features)
        for i in range(blocks.shape[1]):
            sums = blocks[:, i] @ w[:, i * HADAMARD_BLOCK : (i + 1) * HADAMARD_BLOCK].to(x.dtype).T  # below 2^24: exact in float32 too
            out += sums * weight_scales[:, i].to(x.dtype) * input_scales[:, i, None].to(x.dtype)
        outs.append(out if bias is None else out + bias)
    return activated(torch.cat(outs, dim=-1), activation)


def quantize_inputs(x: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """x [T, K] float32 as int8_linear reads it: rotated, int8 [T, K'] in -qmax..qmax, and a float32 scale for every 64, [T, K' / 64].

    With qmax 127, 128 inputs share a scale (which comes twice); with 63, one bit less, 64 do. If one of them is not finite, before or
    after rotation, the scale is NaN and the integers are zeros.
    """
    rotated = rotate(pad_to_blocks(x))
    groups = in_groups(rotated) if qmax == 127 else in_blocks(rotated)
    finite = groups.isfinite().all(dim=-1, keepdim=True)
    groups = groups.masked_fill(~finite, 0.0)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    largest = largest.masked_fill(largest < INT8_ZERO, 0.0)
    most = largest.new_tensor(qmax)  # torch divides a Python number by multiplying it with a rounded reciprocal
    q = (groups * (most / largest).masked_fill(largest == 0, 0.0)).round()
    scales = (largest / most).masked_fill(~finite, math.nan)[..., 0]
    if qmax == 127:
        scales = scales_per_block(scales, rotated.shape[-1] // HADAMARD_BLOCK)
    return q.to(torch.int8).flatten(-2)[..., : rotated.shape[-1]], scales


def fp8_linear(
    x: Rows,
    weights: Sequence[Fp8Weight],
    biases: Sequence[Tensor | None],
    activation: str | None = None,
    quantize: Scales | None = None,
) -> Rows:
    """Computed in at least float32 on what the float8 values stand for, rounded to x.dtype once (and to float8 under `quantize`)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    outs = []
    for weight, bias in zip(weights, biases, strict=True):
        rows = readable_rows(x, weight)
        quantized = rows if isinstance(rows, Fp8Rows) else quantize_fp8_rows(rows, weight.scaled_by)
        outs.append(F.linear(dequantize_fp8(quantized, wide), dequantize_fp8(weight, wide), None if bias is None else bias.to(wide)))
    out = activated(torch.cat(outs, dim=-1), activation).to(x.dtype)
    return out if quantize is None else quantize_fp8_rows(out, quantize)


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
    table = dequantize(*unpack_int8(words), words.inputs, weight.dtype)
    return embed_layer_norm(input_ids, table, position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    mean = total.mean(dim=-1, keepdim=True)
    variance = (total - mean).square().mean(dim=-1, keepdim=True)
    return ((total - mean) / torch.sqrt(variance + eps) * weight.to(wide) + bias.to(wide)).to(x.dtype)


def fp8_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Fp8Rows:
    out = add_layer_norm(x, residual, weight, bias, eps)
    rows = quantize_fp8_rows(out)
    return Fp8Rows(rows.rows, rows.values, rows.scales, rows.dtype, out)


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
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    rows = []
    for b in range(len(bounds_q) - 1):
        Q = q[bounds_q[b] : bounds_q[b + 1]].transpose(0, 1)  # [N, Sq, D]
        K = k[bounds_k[b] : bounds_k[b + 1]].transpose(0, 1)
        V = v[bounds_k[b] : bounds_k[b + 1]].transpose(0, 1)
        visible = None
        if causal:
            visible = torch.ones(Q.shape[1], K.shape[1], dtype=torch.bool, device=q.device).tril(K.shape[1] - Q.shape[1])
        rows.append(attention(Q, K, V, visible, scale)[0].transpose(0, 1))
    return torch.cat(rows) if rows else q.new_zeros(q.shape)


def write_cache(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> None:
    keys[rows, :, positions] = k
    values[rows, :, positions] = v


def cached_attention(
    q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, first: Tensor | None, last: Tensor, scale: float | None = None
) -> Tensor:
    position = torch.arange(keys.shape[2], device=q.device)
    visible = position < last[:, None]
    if first is not None:
        visible &= position >= first[:, None]
    # Other positions may never have been written: 0 * NaN is NaN, in the sums here and in those of a backward.
    k, v = (t[rows].masked_fill(~visible[:, None, :, None], 0.0) for t in (keys, values))
    return attention(q[:, :, None], k, v, visible[:, None, None], scale)[0][:, :, 0]


def attention(
    q: Tensor,  # [..., N, Sq, D]
    k: Tensor,  # [..., N, Sk, D]
    v: Tensor,  # [..., N, Sk, D]
    mask: Tensor | None,  # broadcast to [..., N, Sq, Sk]: bool, True sees; or float, added to the scores
    scale: float | None = None,
    head_mask: Tensor | None = None,  # broadcast to [..., N, Sq, Sk], multiplies the probabilities
) -> tuple[Tensor, Tensor]:  # [..., N, Sq, D] and the probabilities [..., N, Sq, Sk]
    """softmax(q k^T scale + mask) v, and the probabilities. A query that sees no key gets zeros, as from torch's sdpa."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-1, -2)).to(wide) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    sees_nothing = (scores == -math.inf).all(dim=-1, keepdim=True)
    probabilities = torch.softmax(scores.masked_fill(sees_nothing, 0.0), dim=-1).masked_fill(sees_nothing, 0.0).to(q.dtype)
    if head_mask is not None:
        probabilities = probabilities * head_mask
    return probabilities @ v, probabilities


def pack(x: Tensor, indices: Tensor) -> Tensor:
    return x[indices]


def unpack(x: Tensor, indices: Tensor, rows: int, fill: float = 0.0) -> Tensor:
    return x.new_full((rows, *x.shape[1:]), fill).index_copy(0, indices, x)
