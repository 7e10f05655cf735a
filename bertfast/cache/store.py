"""Where the keys and values of one call are written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import memoized_by_size
from bertfast.batch.inputs import Arguments
from bertfast.batch.packed import PackedBatch
from bertfast.batch.positions import column_indices
from bertfast.cache import layers as kv_cache
from bertfast.cache.layers import GrowingLayer
from bertfast.ops import Ops


@dataclass(slots=True)
class CallCache:
    """The cache of one call: whose layers are written, and what the caller gets back."""

    cache: Any  # transformers' object: the caller's own, or a new one
    layers: Sequence[Any]  # Layer or StaticLayer, one for each layer of the model
    past: int  # P
    returned: bool
    legacy: bool  # a tuple of tuples came, so one goes back

    def output(self) -> Any:
        if not self.returned:
            return None
        return kv_cache.to_legacy(self.cache) if self.legacy else self.cache


def open_cache(arguments: Arguments, config: Any) -> CallCache:
    """What the call reads and writes. ValueError where the cache is none, or none of this model's."""
    given = kv_cache.given_cache(arguments)
    use_cache = arguments.get("use_cache")
    crosses = arguments.get("encoder_hidden_states") is not None or config.is_encoder_decoder
    cache = kv_cache.new_cache(crosses) if given is None else kv_cache.from_legacy(given)
    own = getattr(cache, "self_attention_cache", cache)
    layers = kv_cache.convert_layers(own, config.num_hidden_layers)
    lengths = {int(layer.get_seq_length()) for layer in layers}
    if len(lengths) > 1:
        raise ValueError(
            f"{kv_cache.CACHE_FIELD}: its layers hold {sorted(lengths)} tokens, expected one length; an earlier call did not finish"
        )
    return CallCache(
        cache, layers, past=max(lengths, default=0), returned=bool(config.use_cache if use_cache is None else use_cache),
        legacy=isinstance(given, (tuple, list)),
    )  # fmt: skip


# Cached tensors outlive the call that made them: not as inference tensors, which autograd refuses.
@memoized_by_size
def sequence_indices(B: int, S: int, device: torch.device) -> Tensor:  # [B * S] int64: 0 S times, 1 S times, ...
    return torch.arange(B, device=device).repeat_interleave(S)


@dataclass(slots=True)
class CachePositions:
    """Where the rows of one call lie in the cache."""

    rows: Tensor  # [R] int64
    cells: Tensor  # [R] int64

    @classmethod
    def of(cls, batch: PackedBatch, past: int) -> "CachePositions":
        B, S = batch.batch, batch.columns
        if batch.indices is None:
            device = batch.rows.input_ids.device
            return cls(sequence_indices(B, S, device), column_indices(B, S, device) + past)
        return cls(batch.indices.div(S, rounding_mode="floor"), batch.indices.remainder(S) + past)


# Keeps the next layer's keys and values, [R, H] each, of so many heads, by the ops O; gives back all of its cells, [B, N, C, D] each.
WriteLayer = Callable[[Tensor, Tensor, int, Any], tuple[Tensor, Tensor]]


class CacheWriter:
    """Keeps the keys and values of one call, layer after layer."""

    def __init__(self, call: CallCache, batch: PackedBatch, limit: int) -> None:
        self.call, self.batch = call, batch
        self.places = CachePositions.of(batch, call.past)
        self.limit = limit  # positions the model has
        self.written = 0  # layers

    def __call__(self, k: Tensor, v: Tensor, heads: int, O: Ops) -> tuple[Tensor, Tensor]:
        """The next layer's keys and values, [R, H] each. Gives back all cells of that layer, [B, N, C, D] each, C >= K."""
        layer = self.call.layers[self.written]
        self.written += 1
        B, S, past, D = self.batch.batch, self.batch.columns, self.call.past, k.shape[1] // heads
        if not isinstance(layer, GrowingLayer):  # transformers' own: by its own interface, padding as zeros
            keys, values = layer.update(*(as_cells(self.batch, t, heads) for t in (k, v)))
            return keys, values
        keys, values = layer.room_for(S, k.new_empty(B, heads, 0, D), self.limit)
        if self.batch.indices is not None:
            for t in (keys, values):
                t[:, :, past : past + S].zero_()  # of padding nothing is known
        O.write_cache(k.view(-1, heads, D), v.view(-1, heads, D), keys, values, self.places.rows, self.places.cells)
        return keys, values

    def finish(self) -> None:
        """The call went through: what it wrote counts from now on."""
        for layer in self.call.layers:
            if isinstance(layer, GrowingLayer):
                layer.extend(self.batch.columns)


def as_cells(batch: PackedBatch, x: Tensor, heads: int) -> Tensor:  # [R, H] -> [B, N, S, D]
    B, S = batch.batch, batch.columns
    cells = x if batch.indices is None else ops.unpack(x.contiguous(), batch.indices, B * S)
    return cells.view(B, S, heads, -1).transpose(1, 2)


def as_rows(cells: Tensor, count: int) -> Tensor:  # [B, N, C, D] -> [B * count, H], the first `count` cells of each row
    B, N, _, D = cells.shape
    return cells[:, :, :count].transpose(1, 2).reshape(B * count, N * D)
