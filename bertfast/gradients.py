"""A fast forward under grad mode: one autograd node.

Nobody should lose speed for a forgotten torch.no_grad(). The node keeps its inputs only; a backward, if it ever comes, runs
transformers' forward with gradients and differentiates that.
"""

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
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.recompute, *tensors = inputs
        ctx.save_for_backward(*tensors)  # also notices a weight that was changed in between
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
    """run()'s outputs, as functions of `inputs` (every tensor a gradient may be asked for) whose derivative is recompute()'s."""
    out: tuple[Tensor, ...] = _Recomputed.apply(run, recompute, *inputs)  # type: ignore[no-untyped-call]  # torch's own
    return out
