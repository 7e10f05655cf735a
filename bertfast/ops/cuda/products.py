"""CUDA matrix products: cuBLAS (through torch) with the activation kernel, or the Triton linear kernel."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.kernels import activation as activation_kernel
from bertfast.kernels import linear as linear_kernel
from bertfast.kernels import tuning
from bertfast.ops.cuda.launch import allow_tf32, is_batch_invariant, on_its_device


@on_its_device
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    fixed = is_batch_invariant()
    if activation in (None, "gelu") and (fixed or _triton_linear_wins(x, weight)):
        return _triton_linear(x, weight, bias, activation == "gelu", fixed)
    if activation is None:
        return F.linear(x, weight, bias)
    # The activation kernel adds the bias: one rounding less.
    out = _triton_linear(x, weight, None, False, fixed) if fixed else F.linear(x, weight)
    return cast(Tensor, activation_kernel.bias_activation(out, bias, activation, tile=tuning.activation_tile(out.shape[1]), in_place=True))


def _triton_linear(x: Tensor, weight: Tensor, bias: Tensor | None, with_gelu: bool, fixed: bool) -> Tensor:
    tile = tuning.linear_invariant_tile(x.dtype) if fixed else tuning.linear_tile(x.dtype, x.shape[0])
    return cast(Tensor, linear_kernel.linear(x, weight, bias, gelu=with_gelu, tile=tile, allow_tf32=allow_tf32()))


def _triton_linear_wins(x: Tensor, weight: Tensor) -> bool:
    if not tuning.TRITON_LINEAR_WINS or not x.is_cuda:
        return False
    return tuning.triton_linear_wins(torch.cuda.get_device_name(x.device), x.dtype, x.shape[0], weight.shape[1], weight.shape[0])


@on_its_device
def linear_concat(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """One product if the weights are consecutive slices of one buffer, else one for each into its columns of the result."""
    sizes = [weight.shape[0] for weight in weights]
    fused = joined(weights)
    if fused is not None:
        if all(bias is None for bias in biases):
            return linear(x, fused, None)
        parts = [x.new_zeros(size) if bias is None else bias for size, bias in zip(sizes, biases, strict=True)]
        bias = joined(parts)
        return linear(x, fused, torch.cat(parts) if bias is None else bias)
    if is_batch_invariant():
        return torch.cat([linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)], dim=1)
    out = x.new_empty(x.shape[0], sum(sizes))
    with torch.no_grad():  # torch refuses out= under grad mode
        for weight, bias, columns in zip(weights, biases, torch.split(out, sizes, dim=1), strict=True):
            if bias is None:
                torch.mm(x, weight.t(), out=columns)
            else:
                torch.addmm(bias, x, weight.t(), out=columns)
    return out


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensor that these are consecutive slices of along dimension 0; None where they are not."""
    first = tensors[0]
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for t in tensors:
        if t.untyped_storage().data_ptr() != storage or t.storage_offset() != offset:
            return None
        offset += t.numel()
    return first.as_strided((sum(t.shape[0] for t in tensors), *first.shape[1:]), first.stride())
