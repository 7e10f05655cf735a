"""What becomes of padding: one decision, made from eight facts of a call."""

from enum import Enum
from typing import NamedTuple

from bertfast.batch.inputs import Inputs
from bertfast.batch.packed import OutputNeeds


class Padding(Enum):
    DROPPED = "rows are the real tokens"
    KEPT = "rows are all cells of [B, S]; only real tokens are keys"
    MASKED = "rows are all cells of [B, S]; the reference attention runs under a mask"


class PaddingFacts(NamedTuple):
    needs_mask: bool  # something that varlen kernels do not cover
    padded: bool  # padding among the new columns
    padded_keys: bool  # padding among all columns, cached ones included
    keep_padding: bool  # the caller wants padded cells as transformers computes them
    empty_row: bool  # a sequence has no real token among the new columns
    padded_first_column: bool  # the pooler reads a column 0 that is padding
    causal: bool
    eager: bool  # transformers' eager masks: a row that sees nothing attends everywhere

    @property
    def computed(self) -> bool:
        """Whether padded cells are computed as transformers does; else they come back as a fill."""
        return self.keep_padding or self.empty_row or self.padded_first_column


def choose_padding(facts: PaddingFacts) -> Padding:
    if facts.needs_mask:
        return Padding.MASKED
    if facts.padded and not facts.computed:
        return Padding.DROPPED
    # A padded query of a causal model may see fewer keys than the real ones before it, and eager's empty row attends to padding: neither
    # is a range of real keys.
    if facts.causal and facts.computed and (facts.padded or (facts.padded_keys and facts.keep_padding)):
        return Padding.MASKED
    if facts.padded and facts.eager and facts.empty_row:
        return Padding.MASKED
    return Padding.KEPT


def padding_facts(inputs: Inputs, needs: OutputNeeds) -> PaddingFacts:
    packed = inputs.packed
    return PaddingFacts(
        needs_mask=needs_mask(inputs, needs),
        padded=packed is not None,
        padded_keys=inputs.packed_keys is not None,
        keep_padding=needs.keep_padding,
        empty_row=packed is not None and packed.shortest == 0,
        padded_first_column=needs.pooled and packed is not None and not packed.first_column_kept,
        causal=inputs.causal,
        eager=inputs.eager,
    )


def needs_mask(inputs: Inputs, needs: OutputNeeds) -> bool:
    """Whether the call asks for what varlen attention lacks, whatever its padding."""
    if needs.probabilities or inputs.head_masks is not None or inputs.visible is not None:
        return True
    if needs.differentiable and inputs.past == 0:  # on a cache, the reference ops of varlen and cached attention run under autograd
        return True
    cross = inputs.cross
    return cross is not None and (cross.visible is not None or (inputs.eager and cross.shortest == 0))
