"""How the CPU kernels' tests compare: against the plain definition in float64, by the yardstick of accuracy.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accuracy import assert_as_accurate
from bertfast.ops import cpu, reference


def as_double(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [as_double(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def check(op: str, *args: Any, **options: Any) -> Tensor:
    """The CPU kernel's result, once it has been found as accurate as the definition in float32."""
    definition: Callable[..., Tensor] = getattr(reference, op)
    actual = getattr(cpu, op)(*args, **options)
    assert_as_accurate(actual, yardstick=definition(*args, **options), truth=definition(*as_double(args), **options))
    return actual


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()
