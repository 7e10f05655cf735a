"""int8 weights: quantization, the form in files, and the layout for the kernels.

A product x W^T does not change when x and W are rotated by the same orthogonal matrix. A Hadamard rotation of 64 inputs at a time spreads
outliers over the block, so int8 with a scale for every 128 inputs is nearly exact. (QuaRot, arXiv 2404.00456, rotates whole rows; with
blocks of 64 a kernel can quantize the tile it has just computed.) If 64 does not divide the inputs, zeros are appended up to the next
multiple, K'; they add nothing to a product. If 128 does not divide K', the last scale is of 64.

Word embeddings have the same form, so that one matrix serves both ends of a tied language model; a row is rotated back when it is
gathered.

Files hold the result of `quantize_weight`, which is the same for every CPU; kernels read an `Int8Weight`. Shape letters: F outputs and K
inputs of a linear layer, or rows and columns of an embedding table; K' as above, S = ceil(K / 128) scales, W features in a panel.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HADAMARD_BLOCK = 64  # inputs rotated together; also the features in a panel of a product
GROUP_SIZE = 128  # inputs that share a weight's scale
QMAX = 127  # symmetric: -128 is never used


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A quantized [F, K] weight in panels of W features, zeros up to whole panels; one layout for every instruction set.

    Byte [p, k // 4, f, k % 4] of `panels` is the rotated, quantized weight of feature W p + f and input k, plus 128: dot-product
    instructions take one unsigned operand, and a kernel subtracts 128 times the sum of the inputs. W is 64 where a product reads the
    weight, and 1 where rows are only gathered (row-major).
    """

    panels: Tensor  # [ceil(F / W), K' / 4, W, 4] uint8
    scales: Tensor  # [ceil(F / W), S, W] float32
    features: int  # F
    inputs: int  # K

    @property
    def width(self) -> int:  # W
        return self.panels.shape[2]


def rotate(x: Tensor) -> Tensor:
    """Every 64 values of the last dimension, [..., K'], times the 64 x 64 Hadamard matrix over 8, which is its own inverse.

    By sums and differences of halves, quarters and so on. Kernels keep this order, so that they round alike.
    """
    rotated = in_blocks(x)
    half = HADAMARD_BLOCK // 2
    while half > 0:
        a, b = torch.unflatten(rotated, -1, (-1, 2, half)).unbind(-2)
        rotated = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        half //= 2
    return rotated.flatten(-2) * HADAMARD_BLOCK**-0.5


def pad_to_blocks(x: Tensor) -> Tensor:
    """[..., K] -> [..., K']."""
    return F.pad(x, (0, -x.shape[-1] % HADAMARD_BLOCK))


def in_blocks(x: Tensor) -> Tensor:
    """[..., K'] -> [..., K' / 64, 64]."""
    return torch.unflatten(x, -1, (-1, HADAMARD_BLOCK))


def in_groups(x: Tensor) -> Tensor:
    """[..., K'] -> [..., S, 128], zeros appended to a last group of 64."""
    return torch.unflatten(F.pad(x, (0, -x.shape[-1] % GROUP_SIZE)), -1, (-1, GROUP_SIZE))


def scales_per_block(scales: Tensor, blocks: int) -> Tensor:
    """[..., S] -> [..., blocks]: for each block of 64 the scale of its group."""
    return scales.repeat_interleave(GROUP_SIZE // HADAMARD_BLOCK, dim=-1)[..., :blocks]


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight or a table as files hold it: row-major, rotated, int8 with a scale for every 128 inputs.

    weight: [F, K] float32, finite, else ValueError -> [F, K'] int8 in -127..127 and [F, S] float32.
    """
    _check_table("quantize_weight", "weight", weight, "[F, K]")
    rotated = rotate(pad_to_blocks(weight.detach()))
    q, scales = _symmetric(in_groups(rotated))
    return q.flatten(-2)[..., : rotated.shape[-1]].contiguous(), scales


def dequantize(q: Tensor, scales: Tensor, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `quantize_weight`: [..., K'] and [..., S] -> [..., K] of `dtype`. Rotating integers is exact, so a value is rounded
    once."""
    blocks = in_blocks(rotate(q.to(dtype)))
    values = blocks * scales_per_block(scales.to(dtype), blocks.shape[-2])[..., None]
    return values.flatten(-2)[..., :inputs].contiguous()


def pack_int8(q: Tensor, scales: Tensor, inputs: int, width: int = HADAMARD_BLOCK) -> Int8Weight:
    """The result of `quantize_weight`, for a weight of `inputs` inputs, in the layout of the kernels: panels of `width` features.

    Raises ValueError for shapes or dtypes that do not match, and for scales that are negative or not finite.
    """
    _check(q.dim() == 2 and q.dtype == torch.int8, f"q must be [F, K'] int8, got {q.dtype} of shape {tuple(q.shape)}")
    features, padded = q.shape
    expected = -(-inputs // HADAMARD_BLOCK) * HADAMARD_BLOCK
    _check(inputs >= 0 and padded == expected, f"q {tuple(q.shape)} does not match inputs={inputs}: expected {expected} columns")
    shape = (features, -(-inputs // GROUP_SIZE))
    _check(scales.dtype == torch.float32, f"scales must be float32, got {scales.dtype}")
    _check(scales.shape == shape, f"scales {tuple(scales.shape)} do not match q {tuple(q.shape)}: expected {shape}")
    _check(scales.device == q.device, f"scales are on {scales.device}, q on {q.device}")
    _check(bool((scales.isfinite() & (scales >= 0)).all()), "scales must be finite and not negative: this file or tensor is damaged")
    _check(not bool((q == -128).any()), "q holds -128, expected -127 to 127: this file or tensor is damaged")
    more = -features % width
    unsigned = F.pad(q, (0, 0, 0, more)).view(torch.uint8) ^ 128
    panels = torch.unflatten(torch.unflatten(unsigned, 1, (-1, 4)), 0, (-1, width))
    scales = torch.unflatten(F.pad(scales, (0, 0, 0, more)), 0, (-1, width))
    return Int8Weight(panels.transpose(1, 2).contiguous(), scales.transpose(1, 2).contiguous(), features, inputs)


def unpack_int8(weight: Int8Weight) -> tuple[Tensor, Tensor]:
    """The inverse of pack_int8: [F, K'] int8 and [F, S] float32, as files keep them."""
    q = (weight.panels.transpose(1, 2).flatten(2).flatten(0, 1).to(torch.int16) - 128).to(torch.int8)  # torch.jit cannot trace view(dtype)
    return q[: weight.features].contiguous(), weight.scales.transpose(1, 2).flatten(0, 1)[: weight.features].contiguous()


def _symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., n] -> int8 of the same shape and [...] float32: x is about q * scale. The scale of zeros is 0."""
    scales = x.abs().amax(dim=-1) / QMAX
    q = (x / scales.masked_fill(scales == 0, 1.0)[..., None]).round().clamp(-QMAX, QMAX)
    return q.to(torch.int8), scales


def _check_table(op: str, name: str, table: Tensor, shape: str) -> None:
    if table.dim() != 2 or table.dtype != torch.float32:
        raise ValueError(f"{op}: {name} must be {shape} float32, got {table.dtype} of shape {tuple(table.shape)}")
    if not table.isfinite().all():
        raise ValueError(f"{op}: {name} holds inf or nan, which int8 cannot hold")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(f"pack_int8: {message}")
