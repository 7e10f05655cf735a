"""int8 weights: how they are made, kept in files, and laid out for the kernels.

A product x W^T does not change when x and W are both turned by an orthogonal matrix. Turned by a Hadamard matrix, 64 inputs at a
time, no single large value is left to set the scale of its neighbours, and int8 with a scale for every 128 inputs is then nearly
exact (QuaRot, arXiv 2404.00456, turns whole rows; blocks of 64 let a kernel quantize a tile's outputs where it made them). Where 64
does not divide the inputs, zeros are appended up to the next multiple, K': they add nothing to any product. Where 128 does not
divide K', the last scale is of 64.

Word embeddings are kept in the same form, so that one matrix serves both ends of a language model: a row is turned back where it is
gathered.

Files hold what `quantize_weight` gives, which has no layout of any CPU in it; kernels read an `Int8Weight`. Shape letters: F outputs
and K inputs of a linear layer, or the rows and columns of an embedding table; K' as above, S = ceil(K / 128) scales, W features in
a panel.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HADAMARD_BLOCK = 64  # inputs that are turned together; also the features in a panel of a product
GROUP_SIZE = 128  # inputs that share a weight's scale
QMAX = 127  # symmetric: -128 is never used


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A quantized [F, K] weight in panels of W features, zeros up to whole panels; one layout for every instruction set.

    Byte [p, k // 4, f, k % 4] of `panels` is the turned, quantized weight of feature W p + f and input k, plus 128: dot-product
    instructions want one operand without a sign, and a kernel takes 128 times the sum of the inputs off again. W is 64 where a product
    reads it, and 1 where rows are only gathered: then they lie one after the other.
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

    By sums and differences of halves, quarters and so on. Kernels keep this order, so that their rotation rounds as this one does.
    """
    turned = in_blocks(x)
    half = HADAMARD_BLOCK // 2
    while half > 0:
        a, b = torch.unflatten(turned, -1, (-1, 2, half)).unbind(-2)
        turned = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        half //= 2
    return turned.flatten(-2) * HADAMARD_BLOCK**-0.5


def pad_to_blocks(x: Tensor) -> Tensor:
    """[..., K] -> [..., K']."""
    return F.pad(x, (0, -x.shape[-1] % HADAMARD_BLOCK))


def in_blocks(x: Tensor) -> Tensor:
    """[..., K'] -> [..., K' / 64, 64]."""
    return torch.unflatten(x, -1, (-1, HADAMARD_BLOCK))


def in_groups(x: Tensor) -> Tensor:
    """[..., K'] -> [..., S, 128], zeros appended to a last span of 64."""
    return torch.unflatten(F.pad(x, (0, -x.shape[-1] % GROUP_SIZE)), -1, (-1, GROUP_SIZE))


def scales_per_block(scales: Tensor, groups: int) -> Tensor:
    """[..., S] -> [..., groups]: each scale for every group that it is of."""
    return scales.repeat_interleave(GROUP_SIZE // HADAMARD_BLOCK, dim=-1)[..., :groups]


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight or a table as files keep it: row-major, turned, int8 with a scale for every 128 inputs.

    weight: [F, K] float32, finite -> [F, K'] int8 in -127..127 and [F, S] float32. ValueError where it is not.
    """
    _check_table("quantize_weight", "weight", weight, "[F, K]")
    turned = rotate(pad_to_blocks(weight.detach()))
    q, scales = _symmetric(in_groups(turned))
    return q.flatten(-2)[..., : turned.shape[-1]].contiguous(), scales


def dequantize(q: Tensor, scales: Tensor, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What rows as `quantize_weight` gives them, [..., K'] and [..., S], stand for: [..., K] of `dtype`. Whole numbers are turned
    back exactly, so a value is rounded once."""
    groups = in_blocks(rotate(q.to(dtype)))
    turned = groups * scales_per_block(scales.to(dtype), groups.shape[-2])[..., None]
    return turned.flatten(-2)[..., :inputs].contiguous()


def pack_int8(q: Tensor, scales: Tensor, inputs: int, width: int = HADAMARD_BLOCK) -> Int8Weight:
    """What `quantize_weight` gave for a weight of `inputs` inputs, or a file holds, in the layout of the kernels, in panels of `width`.

    ValueError for shapes or dtypes that do not fit together, and for scales that are negative or not finite.
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
    q = (weight.panels.transpose(1, 2).flatten(2).flatten(0, 1).to(torch.int16) - 128).to(torch.int8)  # torch.jit traces no view of a dtype
    return q[: weight.features].contiguous(), weight.scales.transpose(1, 2).flatten(0, 1)[: weight.features].contiguous()


def _symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., n] -> int8 of the same shape and [...] float32: x is nearly q * scale. All zeros have scale 0."""
    scales = x.abs().amax(dim=-1) / QMAX
    q = (x / scales.masked_fill(scales == 0, 1.0)[..., None]).round().clamp(-QMAX, QMAX)
    return q.to(torch.int8), scales


def _check_table(op: str, name: str, table: Tensor, shape: str) -> None:
    if table.dim() != 2 or table.dtype != torch.float32:
        raise ValueError(f"{op}: {name} must be {shape} float32, got {table.dtype} of shape {tuple(table.shape)}")
    if not table.isfinite().all():
        raise ValueError(f"{op}: {name} holds inf or nan, which int8 cannot stand for")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(f"pack_int8: {message}")
