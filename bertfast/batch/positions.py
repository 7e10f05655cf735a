"""Default position ids, where a call gives none: one rule for each kind of family.

Shape letters: B batch, S new columns, P cached columns, R rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bertfast.batch.attention import memoized_by_size
from bertfast.batch.inputs import PackedMask

# (B, S, past P, the mask whose padding was dropped or None, input_ids [B, S] or None, device) -> [R] int64
PositionRule = Callable[[int, int, int, PackedMask | None, Tensor | None, torch.device], Tensor]


@memoized_by_size
def column_indices(B: int, S: int, device: torch.device) -> Tensor:  # [B * S] int64: 0 .. S - 1, B times
    return torch.arange(S, device=device).repeat(B)


def column_positions(B: int, S: int, past: int, dropped: PackedMask | None, ids: Tensor | None, device: torch.device) -> Tensor:
    """The column of each row in the padded input, cached columns included (BERT)."""
    columns = column_indices(B, S, device) if dropped is None else dropped.positions
    return columns + past if past else columns
