"""The KV cache of a generation loop.

Shape letters: R rows of a call, A running sequences, L layers, N heads, C positions of a cache row, D head size, H = N * D.
"""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from bertfast.cache.layers import GrowingLayer
from bertfast.cache.store import WriteLayer
from bertfast.ops import Ops
from bertfast.runtime.model_types import BaseModel
from bertfast.runtime.native import _C


class DecodeCache:
    """Fixed buffers [rows, N, C, D] for the keys and values of each layer, and a table of which cache row holds which sequence."""

    def __init__(self, base: BaseModel, rows: int, positions: int) -> None:
        """base: the model without a head. positions: C."""
        weight = base.embeddings.position_embeddings.weight
        config, heads = base.config, base.config.num_attention_heads
        shape = (2, len(base.family.layers(base)), rows, heads, positions, config.hidden_size // heads)
        with torch.inference_mode(False):  # on a GPU the buffers outlive the call
            self.buffer = torch.empty(shape, dtype=weight.dtype, device=weight.device)
            self.keys, self.values = (list(part.unbind()) for part in self.buffer)
        self.table = _C.SlotTable(rows, positions)

    def store(self, rows: Tensor, positions: Tensor) -> WriteLayer:
        """A writer that stores each layer's keys and values, [R, H], at (rows, positions), [R] each."""
        layer = iter(zip(self.keys, self.values, strict=True))

        def write(k: Tensor, v: Tensor, heads: int, O: Ops) -> tuple[Tensor, Tensor]:
            keys, values = next(layer)
            D = k.shape[1] // heads
            O.write_cache(k.view(-1, heads, D), v.view(-1, heads, D), keys, values, rows, positions)
            return keys, values

        return write

    def reorder(self, parents: list[int]) -> None:
        """Sequence i becomes a copy of what was sequence parents[i]; one without a child ends."""
        for source, target, first, last in self.table.reorder(parents):
            part = self.buffer[:, :, :, :, first:last]
            part[:, :, target].copy_(part[:, :, source])

    def as_cache(self, ours: bool, columns: int) -> DynamicCache:
        """The running sequences as transformers' cache, [A, N, columns, D] a layer, in the order of the batch: each ends in the last
        column, with zeros before its first. ours: the buffers stay in use, so the caller gets copies."""
        lengths, rows = self.table.lengths, self.table.running
        if any(length != columns for length in lengths):
            held = self.buffer.new_zeros(*self.buffer.shape[:2], len(rows), self.buffer.shape[3], columns, self.buffer.shape[5])
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                held[:, :, i, :, columns - length :] = self.buffer[:, :, row, :, :length]
        else:
            whole = not ours and rows == list(range(self.buffer.shape[2]))
            held = (self.buffer if whole else self.buffer[:, :, rows])[:, :, :, :, :columns]
        cache = DynamicCache()
        for keys, values in zip(*held, strict=True):
            layer = GrowingLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache
