"""Cross-attention on a cache."""

from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import MaskedAttention, VarlenAttention
from bertfast.batch.inputs import CrossInputs
from bertfast.batch.packed import PackedBatch
from bertfast.cache import layers as kv_cache
from bertfast.cache.attention import CachedRangeAttention, GatheredCacheAttention
from bertfast.cache.store import CachePositions, CallCache


def add_cross_attention(
    batch: PackedBatch, encoder: CrossInputs, call: CallCache, config: Any, how: MaskedAttention | tuple[Tensor, int]
) -> None:
    """How a decoder's rows read the encoder: its states, or what a cache keeps of them.

    how: under a mask; or, without one, the boundaries of the queries, [B + 1], and the longest sequence of them.
    """
    rows, B, Se = batch.rows, batch.batch, encoder.length
    if hasattr(call.cache, "cross_attention_cache"):
        rows.cross_cache = CrossCache(call.cache, config, encoder, batch, packed=not isinstance(how, MaskedAttention))
    if rows.cross_cache is None or not rows.cross_cache.filled:
        if isinstance(how, MaskedAttention):
            rows.encoder_rows, rows.cross_attention = encoder.rows, how
        else:
            rows.encoder_rows, rows.cross_attention = encoder.packed(B, *how)
        return
    places = CachePositions.of(batch, 0).rows
    if isinstance(how, MaskedAttention):
        rows.cross_attention = GatheredCacheAttention(how, Se, None)
    elif encoder.packing is None or encoder.real is None:
        rows.cross_attention = CachedRangeAttention(places, None, torch.full_like(places, Se), None)
    else:
        real = encoder.real.to(torch.uint8)
        counts, starts, ends = real.sum(dim=1), real.argmax(dim=1), Se - real.flip(1).argmax(dim=1)
        if bool(((ends - starts == counts) | (counts == 0)).all()):
            first, last = (t.index_select(0, places) for t in (starts, starts + counts))
            rows.cross_attention = CachedRangeAttention(places, first, last, None)
        else:
            packing, (cu_seqlens, longest) = encoder.packing, how
            rows.cross_attention = GatheredCacheAttention(
                VarlenAttention(cu_seqlens, packing.cu_seqlens, longest, packing.longest, key_rows=packing.indices), Se, None
            )


class CrossCache:
    """Cross-attention's keys and values: computed from the encoder's states once, read from the cache afterwards."""

    def __init__(self, cache: Any, config: Any, encoder: CrossInputs, batch: PackedBatch, packed: bool) -> None:
        self.cache = cache
        self.layers = kv_cache.convert_layers(cache.cross_attention_cache, config.num_hidden_layers)
        self.layer = 0
        self.shape = (batch.batch, encoder.length)  # B, Se
        # [Re] int64: the encoder rows that are computed; None: all
        self.indices = encoder.packing.indices if packed and encoder.packing is not None else None
        # Whether the keys and values of every layer are there.
        self.filled = config.num_hidden_layers > 0 and all(cache.is_updated.get(i) for i in range(config.num_hidden_layers))
        if self.filled:
            held = kv_cache.cells_of(self.layers[0])[0].shape
            if (held[0], held[2]) != self.shape:
                raise ValueError(
                    f"encoder_hidden_states: got {self.shape[0]} sequences of {self.shape[1]}, but the cache keeps cross-attention for "
                    f"{held[0]} of {held[2]}; pass the same states in every call with one cache"
                )

    def read(self) -> tuple[Tensor, Tensor] | None:
        """The next layer's cells, [B, N, Se, D] each; None where they have to be computed."""
        if not self.filled:
            return None
        self.layer += 1
        return kv_cache.cells_of(self.layers[self.layer - 1])

    def keep(self, k: Tensor, v: Tensor, heads: int) -> None:
        """The next layer's keys and values, [Re, H] each."""
        if not self.cache.is_updated.get(self.layer):
            B, Se = self.shape
            cells = (t if self.indices is None else ops.unpack(t.contiguous(), self.indices, B * Se) for t in (k, v))
            self.cache.cross_attention_cache.update(*(t.view(B, Se, heads, -1).transpose(1, 2) for t in cells), self.layer)
            self.cache.is_updated[self.layer] = True
        self.layer += 1
