"""A fast forward under grad mode: its backward recomputes transformers' forward and differentiates that."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from bertfast.batch.inputs import Arguments
from bertfast.engine import eligibility, gradients
from bertfast.engine.call import ForwardCall
from bertfast.engine.guard import Guard
from bertfast.runtime.model_types import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the recomputed forward does without: its outputs are logits alone, and the loss is taken outside.
NOT_RECOMPUTED = frozenset(
    (
        *("labels", "next_sentence_label", "start_positions", "end_positions", "num_items_in_batch", "shift_labels"),
        *("output_hidden_states", "output_attentions", "use_cache", "cache", "past_key_values"),
    )
)


def differentiable(
    model: Model, base: type["PreTrainedModel"], guard: Guard, arguments: Arguments, inputs: Arguments, call: ForwardCall | None,
    compute: Callable[[], tuple[dict[str, Tensor], ForwardCall | None]],
) -> dict[str, Tensor]:  # fmt: skip
    """compute()'s tensors as the outputs of one autograd node.

    arguments: for base.forward; inputs: the same as a batch (they differ for multiple choice). call: where there is one before compute.
    """
    names: list[str] = []
    pad_masks: list[Tensor | None] = []
    cache = None if call is None else call.cache

    def run() -> list[Tensor]:
        tensors, ran = compute()
        names.extend(tensors)
        pad_masks.extend([None] * len(tensors) if ran is None else ran.pad_masks(tensors))
        return list(tensors.values())

    def recompute() -> list[Tensor]:
        if cache is not None and cache.past:
            raise RuntimeError(
                "backward through a step on a KV cache: what the cache holds was computed without gradients; "
                "pass the whole sequence at once, with use_cache=False"
            )
        unlabelled = {k: v for k, v in arguments.items() if k not in NOT_RECOMPUTED}
        if cache is not None:
            unlabelled["use_cache"] = False
        with eligibility.force_reference():
            outputs = base.forward(model, **{**unlabelled, "return_dict": True})
        # Padding came back as constants: no gradient passes there.
        return [
            outputs[name] if mask is None else outputs[name].masked_fill(expand(mask, outputs[name]), 0.0)
            for name, mask in zip(names, pad_masks, strict=True)
        ]

    tensors = gradients.recomputed(run, recompute, guard.differentiable_inputs(inputs))
    return dict(zip(names, tensors, strict=True))


def expand(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *(1 for _ in range(like.dim() - mask.dim())))
