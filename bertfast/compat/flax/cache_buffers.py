"""The buffers of Flax's functional KV cache, and one step on them.

Shape letters: B batch, C cache length, S new tokens, N heads, D head size, L layers.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.compat.flax import inputs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class CacheBuffers:
    """Keys and values of all layers, [B, C, N, D] each; the first `filled` columns are written.

    initial: the content of the columns from `filled` on when the buffers were made, if it was not zeros.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], filled: int, initial: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers, self.filled = layers, filled
        self.initial = initial

    @staticmethod
    def zeros(L: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> "CacheBuffers":
        return CacheBuffers(
            [(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)) for _ in range(L)], 0
        )

    @property
    def batch(self) -> int:
        return self.layers[0][0].shape[0]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]

    def content(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        """A copy of a layer's keys and values as they were with `index` filled columns."""
        copies = tuple(t.clone() for t in self.layers[layer])
        for i, copy in enumerate(copies):
            if index < self.length:
                copy[:, index:] = 0 if self.initial is None else self.initial[layer][i][:, index:]
        return copies[0], copies[1]

    def advanced(self, index: int, tokens: int) -> "CacheBuffers":
        """Buffers to which `tokens` columns may be appended after column `index`: these, or a copy where that would overwrite."""
        if index == self.filled and index + tokens <= self.length:
            self.filled += tokens
            return self
        copied = CacheBuffers([self.content(i, index) for i in range(len(self.layers))], index, self.initial)
        copied.filled += tokens
        return copied

    def reordered(self, rows: Tensor) -> "CacheBuffers":
        """Buffers of the sequences `rows`, in that order."""
        return CacheBuffers([(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers], self.filled, None)


class CacheStep:
    """The KV memory of one call (batch.attention.KVMemory): writes columns [start, start + tokens), reads the first `width`."""

    def __init__(self, buffers: CacheBuffers, start: int, tokens: int, width: int) -> None:
        self.buffers, self.width = buffers, width
        self.at = slice(start, start + tokens)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.buffers.layers[layer]
        keys[:, self.at], values[:, self.at] = k, v
        return keys[:, : self.width], values[:, : self.width]


def cached_step(
    buffers: CacheBuffers, index: int, read: inputs.FlaxInputs, config: "PreTrainedConfig", all_columns: bool
) -> tuple[CacheStep, Tensor]:  # visible: bool, broadcasts to [B, 1, S, columns]
    """The KV memory of a call, and which columns each query may attend to.

    The query in column p attends to column j where the mask allows j, j <= p and j < index + S. A call beyond the end of the cache
    overwrites the last columns, as in Flax. Raises ValueError for a mask or batch that does not fit the cache.
    """
    (B, S), C = read.shape, buffers.length
    if buffers.batch != B:
        raise ValueError(f"past_key_values: has {buffers.batch} sequences, input_ids has {B}")
    if S > C:
        raise ValueError(f"input_ids: got {S} tokens, but the cache in past_key_values has {C} columns")
    device = read.input_ids.device
    mask = read.attention_mask if read.attention_mask is not None else torch.ones(B, S, dtype=torch.bool, device=device)
    if mask.dim() > 2 or not inputs.broadcasts_to(mask, (B, C)):
        raise ValueError(
            f"attention_mask: got shape {tuple(mask.shape)}{'' if read.attention_mask is not None else ' (ones like input_ids)'}, expected "
            f"({B}, {C}): with past_key_values the mask covers the whole cache, with ones where nothing is written yet"
        )
    columns = torch.arange(C, device=device)
    positions = min(index, config.max_position_embeddings - S) + torch.arange(S, device=device)
    visible = (columns <= positions[:, None]) & (columns < index + S)
    visible = visible & mask.reshape((1,) * (2 - mask.dim()) + tuple(mask.shape))[:, None, None, :]  # [1 or B, 1, S, C]
    width = C
    if not all_columns and bool(visible.any(dim=-1).all()):  # a query that sees nothing attends uniformly to all C columns
        width = min(index + S, C)
    step = CacheStep(buffers.advanced(index, S), min(index, C - S), S, width)
    return step, visible[..., :width]
