"""Attention over scores of every exponent that float32 has room for, from denormal products to almost overflow, on every table."""

import pytest
import torch

from bertfast import ops
from bertfast.ops import reference

EXPONENTS = (-140, -126, -100, -40, 0, 10, 16, 18, 20, 22, 24, 26, 28, 30, 31, 32, 36, 48, 64, 100, 120)
LIMITS = {torch.float32: 3e-6, torch.bfloat16: 1e-2}


def operands(exponent: int, dtype: torch.dtype, rows: int = 75, D: int = 32) -> tuple[torch.Tensor, ...]:
    """Scores around 2^exponent; some keys are equal, so that weights are shared also where all others vanish."""
    torch.manual_seed(exponent)
    q, k, v = (torch.randn(rows, 2, D) for _ in range(3))
    q, k = q * 2.0 ** (exponent // 2), k * 2.0 ** (exponent - exponent // 2) / D
    k[1::3] = k[::3]
    return tuple(t.to(dtype) for t in (q, k, v))


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (actual.double() - expected).abs().max().item()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 3.0, -1.0])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_varlen_attention(exponent: int, dtype: torch.dtype, scale: float | None, causal: bool, isa: str) -> None:
    q, k, v = operands(exponent, dtype)
    cu = torch.tensor([0, 3, 75], dtype=torch.int32)
    actual = ops.varlen_attention(q, k, v, cu, cu, 72, 72, causal, scale)
    assert actual.isfinite().all()
    assert actual.abs().max() <= v.abs().max() * 1.01  # a weighted mean
    if exponent <= 0:  # above, a rounded score moves the weights: see below
        expected = reference.varlen_attention(q.double(), k.double(), v.double(), cu, cu, 72, 72, causal, scale)
        assert difference(actual, expected) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("exponent", [24, 30, 36, 64, 100])
def test_one_key_wins(exponent: int, dtype: torch.dtype, isa: str) -> None:
    """Scores this far apart leave the value of one key, or the mean of equal ones, in any precision."""
    D, keys = 16, 150
    v = torch.randn(keys, 1, D).to(dtype)
    q, k = torch.full((4, 1, D), 2.0 ** (exponent // 2)), torch.zeros(keys, 1, D)
    k[:, 0, 0] = -torch.arange(keys, dtype=torch.float32)
    k[[7, 71, 140], 0, 0] = 1.0
    k *= 2.0 ** (exponent - exponent // 2)
    cu_q, cu_k = torch.tensor([0, 4], dtype=torch.int32), torch.tensor([0, keys], dtype=torch.int32)
    actual = ops.varlen_attention(q.to(dtype), k.to(dtype), v, cu_q, cu_k, 4, keys)
    expected = v[[7, 71, 140]].double().mean(0).expand(4, 1, D)
    assert difference(actual, expected) <= LIMITS[dtype]
