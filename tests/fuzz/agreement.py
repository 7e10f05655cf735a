"""Two models called alike, ours and transformers': the same outputs within a dtype's rounding, or an error in both."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.compare import FLOAT32, assert_agree, attended, distance, tensors

LIMITS = {torch.float32: FLOAT32, torch.float64: 1e-11}
COMPUTED = (  # what transformers refuses by accident, in its own words, and bertfast computes
    "object has no attribute 'is_updated'",  # encoder_hidden_states with a cache that is no EncoderDecoderCache
    "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol",  # of a cache under autograd
)
SLACK = 4.0  # times transformers' own error, in dtypes of half precision


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error that it raises."""
    try:
        return call()
    except Exception as error:
        return error


def assert_alike(actual: Any, expected: Any, allowed: type[Exception] | tuple[type[Exception], ...] = Exception) -> bool:
    """Whether both are results; AssertionError where only one is an error. allowed: the types that ours may have."""
    if isinstance(expected, Exception) or isinstance(actual, Exception):
        if any(words in str(expected) for words in COMPUTED) and not isinstance(actual, Exception):
            return False
        assert isinstance(expected, Exception), f"bertfast raises {actual!r}, transformers answers"
        assert isinstance(actual, allowed), f"transformers raises {expected!r}, bertfast gives {actual!r:.200}"
        return False
    return True


def assert_close(actual: Any, expected: Any, real: Tensor | None, dtype: torch.dtype, truth: Callable[[], Any]) -> None:
    """truth: transformers' outputs in float64, asked for where the dtype's own rounding decides."""
    if dtype in LIMITS:
        assert_agree(actual, expected, real, LIMITS[dtype])
        return
    assert_agree(actual, expected, real, float("inf"))  # types, shapes, dtypes
    got, want, true = tensors(actual), tensors(expected), tensors(truth())
    for name, b in want.items():
        a, t = got[name], true.get(name)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and isinstance(t, Tensor) and a.is_floating_point() and a.numel():
            a, b, t = (attended(x.detach(), real) for x in (a, b, t))
            if not a.numel() or not t.isfinite().all() or not b.isfinite().all():
                continue
            off, theirs = distance(a, t), distance(b, t)
            assert off <= max(SLACK * theirs, 8 * torch.finfo(dtype).eps), f"{name}: off by {off:.2e}, transformers by {theirs:.2e}"


def in_float64(model: Any, arguments: dict[str, Any]) -> Callable[[], Any]:
    def run() -> Any:
        wide = {
            name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for name, value in arguments.items()
        }
        with torch.no_grad():
            return copy.deepcopy(model).double()(**wide)

    return run
