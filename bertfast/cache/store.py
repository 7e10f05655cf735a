"""The cache of one call, and where the call's keys and values are written.

Shape letters: B batch, S new columns, P cached columns, R rows, N heads, D head size, H = N * D, C positions of a cache row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from bertfast import ops
from bertfast.batch.by_size import column_indices, sequence_indices
from bertfast.batch.inputs import Arguments
from bertfast.batch.packed import PackedBatch
from bertfast.cache import objects
from bertfast.cache.layers import GrowingLayer
from bertfast.ops import Ops

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(slots=True)
class CallCache:
    """The cache of one call: the layers it writes, and what the caller gets back."""

    cache: Cache  # the caller's own, or a new one
    layers: Sequence[CacheLayerMixin]  # GrowingLayer or transformers' StaticLayer, one for each layer of the model
    past: int  # P
    returned: bool
    legacy: bool  # the caller passed a tuple of tuples and gets one back

    def static_lengths(self) -> set[int]:
        return {layer.get_max_length() for layer in self.layers} - {-1}

    def output(self) -> Cache | objects.LegacyCache | None:
        if not self.returned:
            return None
        return objects.to_legacy(self.cache) if self.legacy else self.cache


def open_cache(arguments: Arguments, config: "PreTrainedConfig") -> CallCache:
    """The cache that the call reads and writes. ValueError where what was passed is no cache, or not one of this model."""
    given = objects.given_cache(arguments)
    use_cache = arguments.get("use_cache")
    crosses = arguments.get("encoder_hidden_states") is not None or config.is_encoder_decoder
    cache = objects.new_cache(crosses) if given is None else objects.from_legacy(given)
    own = getattr(cache, "self_attention_cache", cache)
    layers = objects.convert_layers(own, config.num_hidden_layers)
    lengths = {int(layer.get_seq_length()) for layer in layers}
    if len(lengths) > 1:
        raise ValueError(
            f"{objects.CACHE_FIELD}: its layers hold {sorted(lengths)} tokens, expected one length; an earlier call failed half-way, "
            "start again with a new cache"
        )
    return CallCache(
        cache, layers, past=max(lengths, default=0), returned=bool(config.use_cache if use_cache is None else use_cache),
        legacy=isinstance(given, (tuple, list)),
    )  # fmt: skip


@dataclass(slots=True)
class CachePositions:
    """Where the rows of one call lie in the cache."""

    rows: Tensor  # [R] int64: of the cache
    positions: Tensor  # [R] int64: in that row

    @classmethod
    def of(cls, batch: PackedBatch, past: int) -> "CachePositions":
        B, S = batch.batch, batch.columns
        if batch.indices is None:
            device = batch.rows.input_ids.device
            return cls(sequence_indices(B, S, device), column_indices(B, S, device) + past)
        return cls(batch.indices.div(S, rounding_mode="floor"), batch.indices.remainder(S) + past)


# (k, v, heads, O): stores the next layer's keys and values, [R, H] each; returns that layer of the cache, [B, N, C, D] each.
WriteLayer = Callable[[Tensor, Tensor, int, Ops], tuple[Tensor, Tensor]]


class CacheWriter:
    """Stores the keys and values of one call, layer after layer."""

    def __init__(self, call: CallCache, batch: PackedBatch, limit: int) -> None:
        self.call, self.batch = call, batch
        self.at = CachePositions.of(batch, call.past)
        self.limit = limit  # positions the model has: no layer needs more
        self.layer = 0  # the next one

    def __call__(self, k: Tensor, v: Tensor, heads: int, O: Ops) -> tuple[Tensor, Tensor]:
        """A WriteLayer. It returns C >= P + S positions, of which the first P + S count."""
        layer = self.call.layers[self.layer]
        self.layer += 1
        B, S, past, D = self.batch.batch, self.batch.columns, self.call.past, k.shape[1] // heads
        if not isinstance(layer, GrowingLayer):  # transformers' own, by its interface; padding is stored as zeros
            keys, values = layer.update(*(as_columns(self.batch, t, heads) for t in (k, v)))
            return keys, values
        keys, values = layer.room_for(S, k.new_empty(B, heads, 0, D), self.limit)
        if self.batch.indices is not None:
            for t in (keys, values):
                t[:, :, past : past + S].zero_()  # dropped padding was not computed
        O.write_cache(k.view(-1, heads, D), v.view(-1, heads, D), keys, values, self.at.rows, self.at.positions)
        return keys, values

    def finish(self) -> None:
        """The call succeeded: what it wrote becomes part of the cache."""
        for layer in self.call.layers:
            if isinstance(layer, GrowingLayer):
                layer.extend(self.batch.columns)


def as_columns(batch: PackedBatch, x: Tensor, heads: int) -> Tensor:  # [R, H] -> [B, N, S, D]
    B, S = batch.batch, batch.columns
    columns = x if batch.indices is None else ops.unpack(x.contiguous(), batch.indices, B * S)
    return columns.view(B, S, heads, -1).transpose(1, 2)


def as_rows(layer: Tensor, count: int) -> Tensor:  # [B, N, C, D] -> [B * count, H]: the first `count` positions of each cache row
    B, N, _, D = layer.shape
    return layer[:, :, :count].transpose(1, 2).reshape(B * count, N * D)
