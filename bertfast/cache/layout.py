"""A call on a KV cache, laid out: what it writes into the cache, and how its rows attend to what is there.

The call brings S new columns to P cached ones. Its rows are laid out as in bertfast.batch.layout; each layer writes its keys and values
into the cache first, then attends to the visible positions: see bertfast.cache.attention for the kinds.

Shape letters: B batch, S new columns, P cached columns, K = P + S, R rows, N heads, D head size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.batch.attention import Attention, MaskedAttention
from bertfast.batch.inputs import Arguments, Inputs, read_inputs
from bertfast.batch.layout import OwnAttention, lay_out
from bertfast.batch.packed import OutputNeeds, PackedBatch
from bertfast.cache.attention import CachedRangeAttention, GatheredCacheAttention, PrefillAttention
from bertfast.cache.cross import add_cross_attention
from bertfast.cache.layers import shape_of
from bertfast.cache.objects import CACHE_FIELD
from bertfast.cache.store import CacheWriter, CallCache
from bertfast.runtime.model_types import BaseModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def make_cached_batch(arguments: Arguments, model: BaseModel, needs: OutputNeeds, call: CallCache) -> tuple[PackedBatch, CacheWriter]:
    """bertfast.batch.layout.make_batch for a call that reads or writes a cache. The writer's `finish` ends the call.

    Raises ValueError, before the cache is written, where the mask or the cache does not fit the input.
    """
    inputs = read_inputs(arguments, model, call.past, call.static_lengths())
    check_fit(call, inputs, model.config)
    batch, own = lay_out(inputs, model, needs)
    store = CacheWriter(call, batch, limit=model.embeddings.position_embeddings.weight.shape[0])
    batch.rows.attention = cached_attention(inputs, own, store)
    if inputs.cross is not None:
        add_cross_attention(batch, inputs, inputs.cross, own, call, model.config)
    return batch, store


def check_fit(call: CallCache, inputs: Inputs, config: "PreTrainedConfig") -> None:
    """ValueError where the cache is another model's or another batch's, or has too little room."""
    N, D = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for layer in call.layers:
        most, shape = layer.get_max_length(), shape_of(layer)
        if 0 <= most < call.past + inputs.columns:
            raise ValueError(
                f"{CACHE_FIELD}: got {call.past} cached and {inputs.columns} new tokens, but it holds {most}; "
                "make it longer (max_cache_len)"
            )
        if shape is not None and shape[0] != inputs.batch:
            raise ValueError(
                f"input_ids: got a batch of {inputs.batch}, but the cache holds {shape[0]} sequences; use one cache for each batch"
            )
        if shape is not None and (shape[1], shape[3]) != (N, D):
            raise ValueError(
                f"{CACHE_FIELD}: got {shape[1]} heads of size {shape[3]}, expected {N} of {D}; pass the cache of this model, not another's"
            )


def cached_attention(inputs: Inputs, own: OwnAttention, store: CacheWriter) -> Attention:
    """`own`, which sees K columns, over the cache that holds them."""
    if inputs.past == 0 and inputs.keys == inputs.columns:
        return PrefillAttention(own, store)
    if isinstance(own, MaskedAttention):
        return GatheredCacheAttention(own, inputs.keys, store)
    rows, ends = store.at.rows, store.at.positions + 1
    if inputs.mask is None:
        return CachedRangeAttention(rows, None, ends, store)
    if (starts := first_positions(inputs.mask)) is not None:
        return CachedRangeAttention(rows, starts.to(inputs.device).index_select(0, rows), ends, store)
    return GatheredCacheAttention(own, inputs.keys, store)


def first_positions(mask: Tensor) -> Tensor | None:
    """[B] int64, on the mask's device: where each sequence of a [B, K] mask starts. None where one has gaps or padding at its end."""
    real = mask.ne(0).to(torch.uint8)
    starts = real.argmax(dim=1)
    return starts if bool((mask.shape[1] - starts == real.sum(dim=1)).all()) else None
