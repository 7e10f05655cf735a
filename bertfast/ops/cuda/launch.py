"""How a CUDA op is launched: on its operands' device, batch-invariant or not, with tf32 or not."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class OnDevice(Protocol):
    @property
    def device(self) -> torch.device: ...


X = TypeVar("X", bound=OnDevice)


def on_its_device(op: Callable[Concatenate[X, P], R]) -> Callable[Concatenate[X, P], R]:
    """Triton launches on the current device, torch's own ops on that of their operands. So does the decorated op."""

    @wraps(op)
    def launch(x: X, /, *others: P.args, **named: P.kwargs) -> R:
        if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
            return op(x, *others, **named)
        with torch.cuda.device(x.device):
            return op(x, *others, **named)

    return launch


_local = threading.local()


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Within, in this thread: one tile for every product and attention, so that a row has the same bits alone and in any batch.

    cuBLAS chooses its kernel, and whether it splits a sum, by the number of rows, so the Triton linear kernel computes all products. The
    row-wise kernels are invariant anyway.
    """
    before = is_batch_invariant()
    _local.invariant = True
    try:
        yield
    finally:
        _local.invariant = before


def is_batch_invariant() -> bool:
    return getattr(_local, "invariant", False)


def allow_tf32() -> bool:
    matmul = torch.backends.cuda.matmul  # one switch of two names; reading the older can raise once the newer is set
    return bool(getattr(matmul, "fp32_precision", None) == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32)
