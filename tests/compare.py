"""Comparing what two models return: field by field, at the positions where they promise to agree.

Shape letters: B batch, S padded length, N heads, C any columns.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLOAT32 = 2e-5  # the project's promise; of the largest absolute value of an output where that is above 1


def tensors(output: Any) -> dict[str, Tensor | None]:
    """The fields of a ModelOutput, or the items of a tuple; tuples inside become "name.0", "name.1" ..."""
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    flat: dict[str, Tensor | None] = {}
    for name, value in items:
        if isinstance(value, (tuple, list)):
            flat.update({f"{name}.length": torch.tensor(float(len(value)))})
            flat.update({f"{name}.{i}": v for i, v in enumerate(value)})
        else:
            flat[str(name)] = value
    return flat


def attended(x: Tensor, real: Tensor | None) -> Tensor:
    """The part of an output that belongs to real tokens: of [B, S], [B, S, C] or [B, N, S, Sk]; anything else whole."""
    if real is None:
        return x
    real = real.reshape(-1, real.shape[-1]).ne(0)
    if x.dim() == 4:  # attention probabilities; first, for there may be as many heads as tokens
        return x.transpose(1, 2)[real] if (x.shape[0], x.shape[2]) == tuple(real.shape) else x
    return x[real] if x.shape[:2] == real.shape else x


def distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest absolute value expected where that is above 1."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.as_subclass(Tensor), expected.as_subclass(Tensor)
    both = actual.isinf() & (actual == expected)  # a loss over no labels at all, for one
    nan = actual.isnan() & expected.isnan()
    difference = (actual.double() - expected.double()).abs().masked_fill(both | nan, 0.0)
    scale = expected.double().nan_to_num(0.0, 0.0, 0.0).abs().max().clamp(min=1.0)
    return (difference.max() / scale).item()


def is_equal(a: Any, b: Any) -> bool:
    """Whether two results, tensors and arrays in containers among them, are the same."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return bool(a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b)


def assert_agree(actual: Any, expected: Any, real: Tensor | None = None, limit: float = FLOAT32) -> None:
    """Same type, same fields in the same order, same shapes and dtypes, same values. real: [B, S] mask of the positions to
    look at; None: all of them."""
    assert type(actual) is type(expected), f"{type(actual).__name__}, expected {type(expected).__name__}"
    got, want = tensors(actual), tensors(expected)
    assert list(got) == list(want), f"fields {list(got)}, expected {list(want)}"
    for name, b in want.items():
        a = got[name]
        assert isinstance(a, Tensor) == isinstance(b, Tensor), f"{name}: {type(a).__name__}, expected {type(b).__name__}"
        if a is None or b is None:
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{name}: {a.shape} {a.dtype}, expected {b.shape} {b.dtype}"
        off = distance(attended(a.detach(), real), attended(b.detach(), real))
        assert off <= limit, f"{name}: off by {off:.2e}, at most {limit:.0e}"
