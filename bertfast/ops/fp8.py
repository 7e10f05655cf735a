"""float8 (e4m3) weights and rows, and how they are quantized.

A scale is max |v| / 448 over the values that share it: a row, or 128 columns of a row where torch's scaled product takes that. Scales of
groups lie group by group, as the product reads them.

Shape letters: T rows, K inputs and F outputs of a linear layer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3_MAX = 448.0  # of float8_e4m3fn
LEAST_MAX = 2.0**-60  # lower bound of max |v|: a row of zeros gets a scale with a finite inverse
GROUP_SIZE = 128  # columns that share a scale under Scales "group"
ROW_MULTIPLE = 16  # the scaled product takes row counts that it divides

Scales = Literal["row", "group"]


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A quantized [F, K] weight."""

    values: Tensor  # [F, K] float8_e4m3fn
    scales: Tensor  # [1, F] float32, or [K / 128, F]

    @property
    def scaled_by(self) -> Scales:
        return "group" if self.scales.shape[0] > 1 else "row"


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """A quantized [T, K] matrix. The buffers have P rows, T rounded up to 16 as the scaled product wants; the last are undefined."""

    rows: int  # T
    values: Tensor  # [P, K] float8_e4m3fn
    scales: Tensor  # [1, P] float32, or [K / 128, P]
    dtype: torch.dtype  # of the matrix before it was quantized, and of a product of it
    unquantized: Tensor | None = None  # [T, K] of `dtype`: that matrix, if its maker keeps it (for a residual)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def scaled_by(self) -> Scales:
        return "group" if self.scales.shape[0] > 1 else "row"


Rows = Tensor | Fp8Rows


def unquantized(x: Rows) -> Tensor:
    """The rows as a tensor. ValueError where only the quantized ones are left."""
    if isinstance(x, Tensor):
        return x
    if x.unquantized is None:
        raise ValueError("these rows are left in float8 alone: only fp8_linear reads them")
    return x.unquantized


def readable_rows(x: Rows, weight: Fp8Weight) -> Rows:
    """x in the form that a product with `weight` reads: float8 if x has scales of the weight's kind, else the tensor to quantize."""
    return x if isinstance(x, Fp8Rows) and x.scaled_by == weight.scaled_by else unquantized(x)


def quantize_fp8_weight(weight: Tensor, scaled_by: Scales = "row") -> Fp8Weight:
    """weight: [F, K], of any floating dtype; under "group" 128 divides K."""
    values, scales = _quantize(weight.detach(), scaled_by)
    return Fp8Weight(values, scales)


def quantize_fp8_rows(x: Tensor, scaled_by: Scales = "row") -> Fp8Rows:
    """x [T, K] by definition; a value that is not finite makes those that share its scale NaN."""
    return Fp8Rows(x.shape[0], *_quantize(F.pad(x, (0, 0, 0, -x.shape[0] % ROW_MULTIPLE)), scaled_by), x.dtype)


def dequantize_fp8(x: Fp8Weight | Fp8Rows, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values that x stands for, of `dtype`: [F, K] of a weight, [T, K] of rows."""
    rows = x.rows if isinstance(x, Fp8Rows) else x.values.shape[0]
    scales = x.scales[:, :rows].t().to(dtype)
    values = x.values[:rows].to(dtype)
    return (values.view(*scales.shape, values.shape[1] // scales.shape[1]) * scales[:, :, None]).flatten(1)


def _quantize(x: Tensor, scaled_by: Scales) -> tuple[Tensor, Tensor]:
    columns = GROUP_SIZE if scaled_by == "group" else x.shape[1]
    grouped = x.float().reshape(x.shape[0], x.shape[1] // max(columns, 1), columns)  # [T, groups, columns]
    scales = grouped.abs().amax(dim=2).clamp(min=LEAST_MAX) / E4M3_MAX
    values = (grouped / scales[:, :, None]).clamp(-E4M3_MAX, E4M3_MAX).flatten(1).to(torch.float8_e4m3fn)
    return values, scales.t().contiguous()
