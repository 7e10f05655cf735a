"""Bias and activation over the output of a matrix product, in one pass and in place if wished.

    out = activation(x + bias)

"gelu" is the exact one: v/2 (1 + erf(v / sqrt 2)). "gelu_new" and "gelu_pytorch_tanh" are two names of the tanh form
(Hendrycks & Gimpel 2016): v/2 (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3))). All arithmetic in float32, one rounding at the end.

Shape letters: T tokens (packed, no padding), F features of the layer.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

ACTIVATIONS = frozenset({"gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"})


@dataclass(frozen=True)
class Tile:
    """What one program of the kernel works on, and with how much of the chip."""

    rows: int
    columns: int
    num_warps: int


@triton.jit
def _tanh(v):
    """(1 - e) / (1 + e) with e = exp(-2|v|) never overflows, but loses its digits as v nears 0: the series takes over there."""
    e = tl.exp(-2.0 * tl.abs(v))
    far = tl.where(v < 0.0, e - 1.0, 1.0 - e) / (1.0 + e)
    s = v * v
    near = v + v * s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0))))
    return tl.where(tl.abs(v) < 0.25, near, far)


@triton.jit
def _activate(v, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        v = 0.5 * v * (1.0 + tl.math.erf(v * 0.7071067811865476))
    elif ACTIVATION == "gelu_new" or ACTIVATION == "gelu_pytorch_tanh":
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))  # (1 + tanh u) / 2 is sigmoid(2u)
    elif ACTIVATION == "relu":
        v = tl.where(v < 0.0, 0.0, v)  # a NaN stays one
    elif ACTIVATION == "silu":
        v = v * tl.sigmoid(v)
    else:
        tl.static_assert(ACTIVATION == "tanh", "unknown activation")
        v = _tanh(v)
    return v


@triton.jit(do_not_specialize=["rows"])  # it differs from batch to batch: one binary for all
def _bias_activation_kernel(
    x_ptr,  # [T, F]
    bias_ptr,  # [F]; not read unless HAS_BIAS
    out_ptr,  # [T, F]; may be x
    rows,
    F,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * F + col[None, :]
    inside = (row < rows)[:, None] & (col < F)[None, :]
    v = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + at, _activate(v, ACTIVATION).to(out_ptr.dtype.element_ty), mask=inside)


def bias_activation(
    x: torch.Tensor,  # [T, F]
    bias: torch.Tensor | None,  # [F]
    activation: str,  # one of ACTIVATIONS
    *,
    tile: Tile,
    in_place: bool = False,
) -> torch.Tensor:  # [T, F], dtype of x; x itself if in_place
    """activation(x + bias), elementwise, all operands contiguous and of one dtype."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"bias_activation: activation {activation!r}, expected one of {sorted(ACTIVATIONS)}")
    rows, F = x.shape
    out = x if in_place else torch.empty_like(x)
    if out.numel() == 0:
        return out
    _bias_activation_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(F, tile.columns))](
        x,
        x if bias is None else bias,
        out,
        rows,
        F,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        HAS_BIAS=bias is not None,
        ACTIVATION=activation,
        num_warps=tile.num_warps,
    )
    return out
