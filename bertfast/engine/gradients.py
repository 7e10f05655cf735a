"""One autograd node for a whole forward. It saves its inputs only; its backward recomputes with gradients and differentiates that."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Sequence[Tensor]]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(run: Run, recompute: Run, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(run())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[object, ...], output: object) -> None:
        ctx.recompute = inputs[1]
        ctx.save_for_backward(*inputs[2:])  # raises in backward if a weight was changed in between
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        wanted = [t for t, need in zip(ctx.saved_tensors, needed, strict=True) if need]
        with torch.enable_grad():
            outputs = ctx.recompute()
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
        if not pairs:
            return (None, None, *(None for _ in needed))
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs],
                wanted,
                [grad for _, grad in pairs],
                allow_unused=True,
                create_graph=torch.is_grad_enabled(),
            )
        )
        return (None, None, *(next(found) if need else None for need in needed))


def recomputed(run: Run, recompute: Run, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """run()'s outputs as functions of `inputs`, with the derivative of recompute(). inputs: every tensor a gradient may be asked for."""
    return autograd_apply()(run, recompute, *inputs)


def autograd_apply() -> Callable[..., tuple[Tensor, ...]]:
    """_Recomputed.apply without its checks where no torch.func transform is active: it inspects the signature and each input, which for
    the 100 parameters of a MiniLM costs more than the rest of the node."""
    if torch._C._are_functorch_transforms_active():
        return _Recomputed.apply
    lower: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Recomputed).apply
    return lower
