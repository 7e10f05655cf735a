"""Cross-attention on a cache.

Shape letters: B batch, N heads, D head size, H = N * D, Se length of the encoder's states.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from bertfast.batch.attention import Attention, MaskedAttention, VarlenAttention
from bertfast.batch.encoder_states import CrossInputs
from bertfast.batch.inputs import Inputs
from bertfast.batch.layout import OwnAttention, cross_attention, encoder_rows
from bertfast.batch.packed import PackedBatch
from bertfast.cache.attention import CachedRangeAttention, GatheredCacheAttention
from bertfast.cache.layers import keys_values_of
from bertfast.cache.objects import convert_layers
from bertfast.cache.store import CachePositions, CallCache

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def add_cross_attention(
    batch: PackedBatch, inputs: Inputs, cross: CrossInputs, own: OwnAttention, call: CallCache, config: "PreTrainedConfig"
) -> None:
    """Adds cross-attention over the encoder's states, or over what the cache keeps of them. own: the self-attention without a cache."""
    rows, attention = batch.rows, cross_attention(inputs, cross, own)
    cache = None
    if hasattr(call.cache, "cross_attention_cache"):
        cache = rows.cross_cache = CrossCache(call.cache, config, cross, batch.batch)
    if cache is not None and cache.filled:
        rows.cross_attention = over_cached_states(batch, cross, attention)
    elif cache is not None:  # keeps the keys and values of padding as well: a later call may pass another encoder_attention_mask
        if isinstance(attention, VarlenAttention) and cross.packed is not None:
            attention = replace(attention, key_rows=cross.packed.indices)
        rows.cross_attention, rows.encoder_rows = attention, cross.rows
    else:
        rows.cross_attention, rows.encoder_rows = attention, encoder_rows(cross, attention)


def over_cached_states(batch: PackedBatch, cross: CrossInputs, attention: OwnAttention) -> Attention:
    """`attention` over the cached keys and values of all Se columns, padding included."""
    Se = cross.length
    if isinstance(attention, MaskedAttention):
        return GatheredCacheAttention(attention, Se, None)
    rows = CachePositions.of(batch, 0).rows
    if cross.packed is None or cross.real is None:
        return CachedRangeAttention(rows, None, torch.full_like(rows, Se), None)
    real = cross.real.to(torch.uint8)
    counts, starts, ends = real.sum(dim=1), real.argmax(dim=1), Se - real.flip(1).argmax(dim=1)
    if bool(((ends - starts == counts) | (counts == 0)).all()):  # no gaps
        first, last = (t.index_select(0, rows) for t in (starts, starts + counts))
        return CachedRangeAttention(rows, first, last, None)
    return GatheredCacheAttention(replace(attention, key_rows=cross.packed.indices), Se, None)


class CrossCache:
    """Cross-attention's keys and values (a CrossKV): computed from the encoder's states once, then read from the cache."""

    def __init__(self, cache: EncoderDecoderCache, config: "PreTrainedConfig", cross: CrossInputs, batch: int) -> None:
        self.cache = cache
        self.layers = convert_layers(cache.cross_attention_cache, config.num_hidden_layers)
        self.layer = 0  # the next one
        self.shape = (batch, cross.length)  # B, Se
        # Whether the keys and values of every layer are there.
        self.filled = config.num_hidden_layers > 0 and all(cache.is_updated.get(i) for i in range(config.num_hidden_layers))
        if self.filled:
            held = keys_values_of(self.layers[0])[0].shape
            if (held[0], held[2]) != self.shape:
                raise ValueError(
                    f"encoder_hidden_states: got {self.shape[0]} sequences of {self.shape[1]}, but the cache keeps cross-attention for "
                    f"{held[0]} of {held[2]}; pass the same states in every call with one cache"
                )

    def read(self) -> tuple[Tensor, Tensor] | None:
        if not self.filled:
            return None
        self.layer += 1
        return keys_values_of(self.layers[self.layer - 1])

    def keep(self, k: Tensor, v: Tensor, heads: int) -> None:
        if not self.cache.is_updated.get(self.layer):
            B, Se = self.shape
            self.cache.cross_attention_cache.update(*(t.view(B, Se, heads, -1).transpose(1, 2) for t in (k, v)), self.layer)
            self.cache.is_updated[self.layer] = True
        self.layer += 1
