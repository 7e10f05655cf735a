"""The prompts of a generation without their padding.

Shape letters: B prompts, K beams of each, A = B * K sequences, S columns.
"""

import torch
from torch import Tensor

from bertfast.batch.inputs import CheckedArguments
from bertfast.batch.layout import make_batch
from bertfast.batch.packed import OutputNeeds, PackedBatch
from bertfast.runtime.model_types import Model


def pack_prompts(model: Model, input_ids: Tensor, arguments: CheckedArguments) -> PackedBatch | None:
    """The packed prompts; None where only a mask can say what they see."""
    given = {name: arguments.get(name) for name in ("attention_mask", "position_ids", "token_type_ids")}
    batch = make_batch({"input_ids": input_ids, **given}, model.base_model, OutputNeeds())
    attention = batch.rows.varlen
    return batch if attention is not None and attention.causal and batch.pad_mask is None else None


def unique_prompts(input_ids: Tensor, arguments: CheckedArguments, beams: int) -> tuple[Tensor, dict[str, Tensor]] | None:
    """One row for each K equal ones of input_ids [A, S] and of the tensors beside it; None where they are not equal."""
    names = [name for name in ("attention_mask", "position_ids", "token_type_ids") if arguments.get(name) is not None]
    unique = {}
    for name, t in (("input_ids", input_ids), *((name, arguments[name]) for name in names)):
        if t.shape != input_ids.shape or len(t) % beams:
            return None
        unique[name] = t[::beams]
        if not torch.equal(unique[name].repeat_interleave(beams, dim=0), t):
            return None
    return unique.pop("input_ids"), unique
