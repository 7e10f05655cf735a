"""The generation loop's own KV cache."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from bertfast.cache import layers as kv_cache
from bertfast.cache.store import WriteLayer
from bertfast.ops import Ops
from bertfast.runtime.native import _C


class DecodeCache:
    """The loop's own KV cache: for each layer keys and values, [slots, N, C, D], and whose slot is whose."""

    def __init__(self, bert: Any, slots: int, cells: int) -> None:
        weight = bert.embeddings.position_embeddings.weight
        heads = bert.config.num_attention_heads
        shape = (2, len(bert.encoder.layer), slots, heads, cells, bert.config.hidden_size // heads)
        with torch.inference_mode(False):  # on a GPU they outlive the call
            self.buffer = torch.empty(shape, dtype=weight.dtype, device=weight.device)
            self.keys, self.values = (list(part.unbind()) for part in self.buffer)
        self.table = _C.SlotTable(slots, cells)

    def store(self, rows: Tensor, cells: Tensor) -> WriteLayer:
        """Writes each layer's new keys and values, [R, H], at (rows, cells), both [R]; gives back all cells of the layer."""
        layer = iter(zip(self.keys, self.values, strict=True))

        def write(k: Tensor, v: Tensor, heads: int, O: Ops) -> tuple[Tensor, Tensor]:
            keys, values = next(layer)
            D = k.shape[1] // heads
            O.write_cache(k.view(-1, heads, D), v.view(-1, heads, D), keys, values, rows, cells)
            return keys, values

        return write

    def reorder(self, parents: list[int]) -> None:
        """Sequence i becomes a copy of what was sequence parents[i]; one without a child ends."""
        for source, target, first, last in self.table.reorder(parents):
            cells = self.buffer[:, :, :, :, first:last]
            cells[:, :, target].copy_(cells[:, :, source])

    def as_cache(self, ours: bool, columns: int) -> DynamicCache:
        """What was cached, as transformers' object: [A, N, columns, D] a layer, in the order of the batch; a sequence ends in the last
        column, before it stands nothing (zeros). ours: the buffers stay in use, so the caller gets copies."""
        lengths, rows = self.table.lengths, self.table.running
        if any(length != columns for length in lengths):
            cells = self.buffer.new_zeros(*self.buffer.shape[:2], len(rows), self.buffer.shape[3], columns, self.buffer.shape[5])
            for i, (slot, length) in enumerate(zip(rows, lengths, strict=True)):
                cells[:, :, i, :, columns - length :] = self.buffer[:, :, slot, :, :length]
        else:
            whole = not ours and rows == list(range(self.buffer.shape[2]))
            cells = (self.buffer if whole else self.buffer[:, :, rows])[:, :, :, :, :columns]
        cache = DynamicCache()
        for keys, values in zip(*cells, strict=True):
            layer = kv_cache.GrowingLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache
