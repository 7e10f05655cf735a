"""The graph on a KV cache: what a forward writes into it, and how new rows attend to what is there.

A call brings S new columns to P cached ones. Its rows are the real tokens among the new columns, as in bertfast.batch.layout; their keys
and values go into the cache first, and then each row attends to the visible cells of its sequence:

    Fresh     nothing was cached: as without a cache; the keys and values are kept besides
    Ranges    a row sees one range of cells (left padding, or none): straight from the cache, by the decoding kernel
    Spread    anything else (gaps, 4-D masks, head masks, probabilities wanted): the cells as rows, by any other attention

Shape letters: B batch, S new columns, P cached columns, K = P + S, R rows, N heads, D head size, H = N * D, C cells of a cache row,
Se columns of the encoder's states.
"""

from typing import Any

import torch
from torch import Tensor

from bertfast.batch.attention import MaskedAttention, VarlenAttention, uniform_cu_seqlens
from bertfast.batch.inputs import Arguments, read_attention_mask, read_cross_inputs, read_head_mask, read_ids, read_input, read_mask
from bertfast.batch.layout import make_batch, visible_keys
from bertfast.batch.packed import GraphInputs, OutputNeeds, PackedBatch
from bertfast.batch.positions import column_indices
from bertfast.cache import layers as kv_cache
from bertfast.cache.attention import CachedRangeAttention, GatheredCacheAttention, PrefillAttention
from bertfast.cache.cross import add_cross_attention
from bertfast.cache.store import CacheWriter, CallCache
from bertfast.runtime.config_access import setting


def make_cached_batch(arguments: Arguments, model: Any, needs: OutputNeeds, call: CallCache) -> tuple[PackedBatch, CacheWriter]:
    """bertfast.batch.layout.make_batch, for a call that reads or writes a cache.

    Raises ValueError, before anything is computed, where the mask or the cache does not fit the input.
    """
    mask, embeddings = arguments.get("attention_mask"), model.embeddings
    weight = embeddings.position_embeddings.weight
    limit = weight.shape[0]
    _, _, B, S = read_input(arguments, embeddings, model.config)
    check_fit(call, B, S, limit if arguments.get("position_ids") is None else None, model.config)
    whole = not isinstance(mask, Tensor) or mask.dim() < 3 or mask.shape[-1] == S
    if call.past == 0 and whole:
        batch = make_batch(arguments, model, needs)
        store = CacheWriter(call, batch, limit)
        cross = batch.rows.cross_attention
        encoder = None if cross is None else read_cross_inputs(arguments, B, S, model.config, weight.device, weight.dtype)
        if encoder is not None and isinstance(cross, (MaskedAttention, VarlenAttention)):
            how = cross if isinstance(cross, MaskedAttention) else (cross.cu_seqlens_q, cross.max_seqlen_q)
            add_cross_attention(batch, encoder, call, model.config, how)
        batch.rows.attention = PrefillAttention(batch.rows.attention, store)
    else:
        batch, store = continue_batch(arguments, model, needs, call, limit)
    return batch, store


def check_fit(call: CallCache, B: int, S: int, limit: int | None, config: Any) -> None:
    """That the cache is one of this model and batch, and has room. limit: positions that the model has, where they are counted on."""
    past, new = call.past, f"{call.past} cached and {S} new tokens"
    if limit is not None and past + S > limit:
        raise ValueError(f"{new}: expected at most max_position_embeddings={limit} together; crop the cache, or start again with fewer")
    N, D = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for layer in call.layers:
        most, shape = layer.get_max_length(), kv_cache.shape_of(layer)
        if 0 <= most < past + S:
            raise ValueError(f"{kv_cache.CACHE_FIELD}: {new} do not fit, it holds {most}; make it longer (max_cache_len)")
        if shape is not None and shape[0] != B:
            raise ValueError(f"input_ids: got a batch of {B}, but the cache is one of {shape[0]} sequences")
        if shape is not None and (shape[1], shape[3]) != (N, D):
            raise ValueError(
                f"{kv_cache.CACHE_FIELD}: it holds {shape[1]} heads of size {shape[3]}, expected {N} of {D}: it is another model's"
            )


def continue_batch(arguments: Arguments, model: Any, needs: OutputNeeds, call: CallCache, limit: int) -> tuple[PackedBatch, CacheWriter]:
    config, embeddings = model.config, model.embeddings
    weight = embeddings.position_embeddings.weight
    device, dtype = weight.device, weight.dtype
    ids, words, B, S = read_input(arguments, embeddings, config)
    past, total = call.past, call.past + S
    eager = setting(config, "_attn_implementation") == "eager"
    head_masks = read_head_mask(arguments.get("head_mask"), config, device, dtype)
    encoder = read_cross_inputs(arguments, B, S, config, device, dtype)
    plain = needs.probabilities or head_masks is not None
    plain = plain or (encoder is not None and (encoder.visible is not None or (eager and encoder.shortest == 0)))

    mask, visible, seen, fresh = arguments.get("attention_mask"), None, None, None
    count = total  # of cells that the mask speaks of
    if mask is not None:
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > total:
            mask = mask[:, :total]  # a mask made for all that is to come
        if isinstance(mask, Tensor) and mask.dim() == 4:
            static = {layer.get_max_length() for layer in call.layers} - {-1}
            count = mask.shape[-1] if mask.shape[-1] in static else total
        mask = read_attention_mask(mask, "attention_mask", B, config.num_attention_heads, S, count, device, dtype)
        if mask.dim() == 4:
            visible, plain = mask, True
        else:
            seen = read_mask(mask, device)
            fresh = None if seen is None else read_mask(mask[:, past:], device)  # padding may be among what was cached only

    keep = fresh is None or needs.keep_padding or fresh.shortest == 0 or (needs.pooled and not fresh.first_column_kept)
    plain = plain or (seen is not None and (needs.keep_padding or (keep and fresh is not None)))
    drop = fresh if not keep and not plain else None
    cells = None if drop is None else drop.indices

    def rows_of(t: Tensor | None, name: str) -> Tensor | None:  # [B or 1, S] -> [R]
        if t is None:
            return None
        flat = read_ids(t, name, B, S, device).reshape(-1)
        return flat if cells is None else flat.index_select(0, cells)

    positions = rows_of(arguments.get("position_ids"), "position_ids")
    if positions is None:
        positions = model.family.positions(B, S, past, drop, ids, device)
    row_ids = rows_of(ids, "input_ids") if ids is not None else (column_indices(1, B * S, device) if cells is None else cells)
    assert row_ids is not None, "ids or embeddings: one was given"
    cu_seqlens, longest = (uniform_cu_seqlens(B, S, device), S) if drop is None else (drop.cu_seqlens, drop.longest)

    attention = VarlenAttention(cu_seqlens, cu_seqlens, longest, longest)  # what reads the new rows as they are; replaced below
    rows = GraphInputs(row_ids, words, rows_of(arguments.get("token_type_ids"), "token_type_ids"), positions, attention)
    if plain and mask is not None:
        mask = mask.to(device)
    blank = mask[:, past:].eq(0) if plain and not keep and mask is not None else None
    batch = PackedBatch(rows, B, S, cells, blank, cu_seqlens[:-1].long())
    store = CacheWriter(call, batch, limit)
    masked = None
    if plain:
        if visible is None:
            visible = visible_cells(None if seen is None else mask, B, S, total, eager, dtype, device)
        masked = MaskedAttention(B, visible, head_masks, needs.probabilities)
        rows.attention = GatheredCacheAttention(masked, count, store)
    elif seen is None:
        rows.attention = CachedRangeAttention(store.places.rows, None, store.places.cells + 1, store)
    elif mask is not None and (starts := first_cells(mask)) is not None:
        first = starts.to(device).index_select(0, store.places.rows)
        rows.attention = CachedRangeAttention(store.places.rows, first, store.places.cells + 1, store)
    else:
        attention = VarlenAttention(cu_seqlens, seen.cu_seqlens, longest, seen.longest, causal=True, key_rows=seen.indices)
        rows.attention = GatheredCacheAttention(attention, total, store)

    if encoder is not None:
        how: MaskedAttention | tuple[Tensor, int] = (cu_seqlens, longest)
        if plain:
            visible = encoder.visible if encoder.visible is not None else visible_keys(encoder.real, 0, eager, dtype, device)
            how = MaskedAttention(B, visible, head_masks, needs.probabilities)
        add_cross_attention(batch, encoder, call, config, how)
    return batch, store


def first_cells(mask: Tensor) -> Tensor | None:
    """[B] int64, where the mask lies: where each sequence of a [B, K] mask starts; None if one has gaps, or ends early."""
    real = mask.ne(0).to(torch.uint8)
    starts = real.argmax(dim=1)
    return starts if bool((mask.shape[1] - starts == real.sum(dim=1)).all()) else None


def visible_cells(mask: Tensor | None, B: int, S: int, total: int, eager: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[B or 1, 1, S, K]: new column i sees cells up to P + i; as eager attention's finite numbers where asked."""
    visible = torch.ones(S, total, dtype=torch.bool, device=device).tril(total - S)[None, None]
    if mask is not None:
        visible = visible & mask.ne(0)[:, None, None, :]
    if not eager:
        return visible
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)
