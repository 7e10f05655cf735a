"""CUDA ops in float8: torch's scaled product, and the kernels that quantize its input."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from bertfast.kernels import fp8_activation as activation_kernel
from bertfast.kernels import fp8_add_layer_norm as add_layer_norm_kernel
from bertfast.kernels import tuning
from bertfast.ops import reference
from bertfast.ops.activations import activated
from bertfast.ops.cuda.launch import is_batch_invariant, on_its_device
from bertfast.ops.cuda.products import joined
from bertfast.ops.fp8 import GROUP_SIZE, ROW_MULTIPLE, Fp8Rows, Fp8Weight, Rows, Scales, readable_rows


@on_its_device
def fp8_linear(
    x: Rows,
    weights: Sequence[Fp8Weight],
    biases: Sequence[Tensor | None],
    activation: str | None = None,
    quantize: Scales | None = None,
) -> Rows:
    if is_batch_invariant():
        raise ValueError("batch_invariant: torch's float8 product chooses its kernel by the number of rows; leave quantization or it out")
    rows = readable_rows(x, weights[0])
    if not isinstance(rows, Fp8Rows):
        rows = fp8_activation(rows, None, None, weights[0].scaled_by)
    if quantize is None:
        return activated(_product(rows, weights, biases), activation)
    bias = biases[0] if len(weights) == 1 else None  # one kernel adds the bias, activates and quantizes: one rounding less
    product = _product(rows, weights, [None] if len(weights) == 1 else biases)
    return fp8_activation(product, bias, activation, quantize)


def fp8_activation(x: Tensor, bias: Tensor | None, activation: str | None, scaled_by: Scales) -> Fp8Rows:
    """activation(x + bias) in float8."""
    out = _empty_rows(x, scaled_by)
    tile = tuning.fp8_activation_tile(x.shape[1], scaled_by == "group")
    activation_kernel.fp8_activation(x, bias, activation, out.values, out.scales, tile=tile)
    return out


@on_its_device
def fp8_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Fp8Rows:
    H = x.shape[1]
    if H > add_layer_norm_kernel.MAX_HIDDEN:
        return reference.fp8_add_layer_norm(x, residual, weight, bias, eps)
    rows = _empty_rows(x, "row")
    warps = tuning.layer_norm_warps(H)
    out = add_layer_norm_kernel.fp8_add_layer_norm(x, residual, weight, bias, eps, rows.values, rows.scales, num_warps=warps)
    return Fp8Rows(rows.rows, rows.values, rows.scales, rows.dtype, out)


def _empty_rows(x: Tensor, scaled_by: Scales) -> Fp8Rows:
    rows, K = x.shape
    padded = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
    values = x.new_empty(padded, K, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(K // GROUP_SIZE if scaled_by == "group" else 1, padded, dtype=torch.float32)
    return Fp8Rows(rows, values, scales, x.dtype)


def _product(x: Fp8Rows, weights: Sequence[Fp8Weight], biases: Sequence[Tensor | None]) -> Tensor:  # [T, F_0 + F_1 + ...]
    """x W^T + bias; one scaled product if the weights, and the biases, are consecutive slices of one buffer."""
    if x.rows == 0:
        return x.scales.new_empty(0, sum(weight.values.shape[0] for weight in weights), dtype=x.dtype)
    if len(weights) == 1:
        return scaled_mm(x.values, weights[0].values.t(), x.scales.t(), weights[0].scales, biases[0], x.dtype)[: x.rows]
    values = joined([weight.values for weight in weights])
    bias = joined(cast(Sequence[Tensor], biases)) if all(b is not None for b in biases) else None
    if values is None or (bias is None and any(b is not None for b in biases)):
        return torch.cat([_product(x, [weight], [b]) for weight, b in zip(weights, biases, strict=True)], dim=1)
    scales = joined([weight.scales[0] for weight in weights]) if weights[0].scaled_by == "row" else None
    joined_scales = torch.cat([weight.scales for weight in weights], dim=1) if scales is None else scales[None]
    return scaled_mm(x.values, values.t(), x.scales.t(), joined_scales, bias, x.dtype)[: x.rows]


def scaled_mm(x: Tensor, weight: Tensor, x_scales: Tensor, weight_scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """torch's product of float8 matrices [T, K] and [K, F]. With scales of rows the tensor cores may sum in a narrower format, whose error
    is far below float8's; with scales of groups every sum of 128 is added in float32."""
    by_row = x_scales.shape[1] == 1
    return torch._scaled_mm(x, weight, scale_a=x_scales, scale_b=weight_scales, bias=bias, out_dtype=dtype, use_fast_accum=by_row)
