"""Ops that round to int8 or float8 have no derivative: their backward raises."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

RELOAD_HINT = "load the float model again (from_pretrained without quantization=, from a folder that is not quantized)"

Result = TypeVar("Result")


def without_derivative(scheme: str, run: Callable[[], Result], *inputs: Tensor | None) -> Result:
    """run(), which reads `inputs`. If one of them requires grad, a backward through the result raises RuntimeError."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        result: Result = _NoDerivative.apply(scheme, run, *inputs)  # type: ignore[no-untyped-call]  # torch's own
        return result
    return run()


class _NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(scheme: str, run: Callable[[], Result], *inputs: Tensor | None) -> Result:
        return run()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[object, ...], output: object) -> None:
        ctx.scheme = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            f"backward through an {ctx.scheme} layer: rounding has no derivative, so a quantized model cannot be trained. "
            f"To train, {RELOAD_HINT}"
        )
