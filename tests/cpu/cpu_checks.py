"""CPU kernels compared with the reference op in float64, by the yardstick of accuracy.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accuracy import assert_as_accurate
from bertfast.ops import cpu, reference


def converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return [converted(v, dtype) for v in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def check(op: str, *args: Any, **options: Any) -> Tensor:
    """The CPU kernel's result, checked to be as accurate as the reference op in float32, rounded once."""
    definition: Callable[..., Tensor] = getattr(reference, op)
    actual: Tensor = getattr(cpu, op)(*args, **options)
    yardstick = definition(*converted(args, torch.float32), **options).to(actual.dtype)
    assert_as_accurate(actual, yardstick=yardstick, truth=definition(*converted(args, torch.float64), **options))
    return actual


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()
