"""Default position ids, for calls that give none: one rule for each kind of family.

Shape letters: B batch, S new columns, R rows.
"""

from collections.abc import Callable

from torch import Tensor

from bertfast.batch.by_size import column_indices
from bertfast.batch.inputs import Inputs
from bertfast.batch.masks import PackedMask
from bertfast.runtime.model_types import BaseModel

# (model without a head, inputs, the mask whose padding was dropped or None) -> [R] int64: of its real tokens, or of all cells [B * S].
# Raises ValueError where the model has too few positions.
PositionRule = Callable[[BaseModel, Inputs, PackedMask | None], Tensor]


def column_positions(model: BaseModel, inputs: Inputs, dropped: PackedMask | None) -> Tensor:
    """BERT: the column of each row in the padded input, cached columns included."""
    limit = model.embeddings.position_embeddings.weight.shape[0]
    if inputs.past + inputs.columns > limit:
        raise ValueError(
            f"input_ids: got length {inputs.columns} after {inputs.past} cached tokens, expected at most max_position_embeddings={limit} "
            "together; truncate the input or crop the cache"
        )
    columns = column_indices(inputs.batch, inputs.columns, inputs.device) if dropped is None else dropped.positions
    return columns + inputs.past if inputs.past else columns
