"""The graph on a KV cache: what a forward writes into it, and how new rows attend to what is there.

A call brings S new columns to P cached ones. Its rows are the real tokens among the new columns, as in bertfast.batch.layout; their keys
and values go into the cache first, and then each row attends to the visible cells of its sequence:

    Fresh     nothing was cached: as without a cache; the keys and values are kept besides
    Ranges    a row sees one range of cells (left padding, or none): straight from the cache, by the decoding kernel
    Spread    anything else (gaps, 4-D masks, head masks, probabilities wanted): the cells as rows, by any other attention

Shape letters: B batch, S new columns, P cached columns, K = P + S, R rows, N heads, D head size, H = N * D, C cells of a cache row,
Se columns of the encoder's states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import Attention, Masked, Varlen, remembered, uniform_cu_seqlens
from bertfast.batch.layout import (
    Arguments,
    Encoder,
    Needs,
    PackedBatch,
    counted,
    make_batch,
    read_attention_mask,
    read_encoder,
    read_head_mask,
    read_ids,
    read_input,
    read_mask,
    visible_keys,
)
from bertfast.cache import layers as kv_cache
from bertfast.cache.layers import Layer
from bertfast.graph.encoder import Rows
from bertfast.runtime.config_access import setting


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
    layers = kv_cache.adopt_layers(own, config.num_hidden_layers)
    lengths = {int(layer.get_seq_length()) for layer in layers}
    if len(lengths) > 1:
        raise ValueError(f"{kv_cache.FIELD}: its layers hold {sorted(lengths)} tokens, expected one length; an earlier call did not finish")
    return CallCache(
        cache, layers, past=max(lengths, default=0), returned=bool(config.use_cache if use_cache is None else use_cache),
        legacy=isinstance(given, (tuple, list)),
    )  # fmt: skip


# Cached tensors outlive the call that made them: not as inference tensors, which autograd refuses.
@remembered
def row_of_cells(B: int, S: int, device: torch.device) -> Tensor:  # [B * S] int64: 0 S times, 1 S times, ...
    return torch.arange(B, device=device).repeat_interleave(S)


@dataclass(slots=True)
class Places:
    """Where the rows of one call lie in the cache."""

    rows: Tensor  # [R] int64
    cells: Tensor  # [R] int64

    @classmethod
    def of(cls, batch: PackedBatch, past: int) -> "Places":
        B, S = batch.batch, batch.columns
        if batch.indices is None:
            device = batch.rows.input_ids.device
            return cls(row_of_cells(B, S, device), counted(B, S, device) + past)
        return cls(batch.indices.div(S, rounding_mode="floor"), batch.indices.remainder(S) + past)


# Keeps the next layer's keys and values, [R, H] each, of so many heads, by the ops O; gives back all of its cells, [B, N, C, D] each.
Write = Callable[[Tensor, Tensor, int, Any], tuple[Tensor, Tensor]]


class Store:
    """Keeps the keys and values of one call, layer after layer."""

    def __init__(self, call: CallCache, batch: PackedBatch, limit: int) -> None:
        self.call, self.batch = call, batch
        self.places = Places.of(batch, call.past)
        self.limit = limit  # positions the model has
        self.written = 0  # layers

    def __call__(self, k: Tensor, v: Tensor, heads: int, O: Any) -> tuple[Tensor, Tensor]:
        """The next layer's keys and values, [R, H] each. Gives back all cells of that layer, [B, N, C, D] each, C >= K."""
        layer = self.call.layers[self.written]
        self.written += 1
        B, S, past, D = self.batch.batch, self.batch.columns, self.call.past, k.shape[1] // heads
        if not isinstance(layer, Layer):  # transformers' own: by its own interface, padding as zeros
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
            if isinstance(layer, Layer):
                layer.extend(self.batch.columns)


def as_cells(batch: PackedBatch, x: Tensor, heads: int) -> Tensor:  # [R, H] -> [B, N, S, D]
    B, S = batch.batch, batch.columns
    cells = x if batch.indices is None else ops.unpack(x.contiguous(), batch.indices, B * S)
    return cells.view(B, S, heads, -1).transpose(1, 2)


def as_rows(cells: Tensor, count: int) -> Tensor:  # [B, N, C, D] -> [B * count, H], the first `count` cells of each row
    B, N, _, D = cells.shape
    return cells[:, :, :count].transpose(1, 2).reshape(B * count, N * D)


@dataclass(slots=True)
class Fresh:
    """Attention of a call that found the cache empty."""

    inner: Attention
    store: Store

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Any) -> Tensor:
        self.store(k, v, heads, O)
        return self.inner(q, k, v, heads, O)

    def first_rows(self) -> None:
        return None


@dataclass(slots=True)
class Ranges:
    """Each row sees one range of the cells of its sequence."""

    rows: Tensor  # [R] int64: its row of the cache
    first: Tensor | None  # [R] int64; None: from the first cell
    last: Tensor  # [R] int64: one past the last cell
    store: Write | None  # None: keys and values are whole cells already

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Any) -> Tensor:
        keys, values = (k, v) if self.store is None else self.store(k, v, heads, O)
        shape = (-1, heads, q.shape[1] // heads)
        context: Tensor = O.cached_attention(q.view(shape), keys, values, self.rows, self.first, self.last)
        return context.view(q.shape)

    def first_rows(self) -> None:
        return None


@dataclass(slots=True)
class Spread:
    """Any other attention, over the cells as rows [B * count, H]."""

    inner: Attention
    count: int
    store: Write | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Any) -> Tensor:
        keys, values = (k, v) if self.store is None else self.store(k, v, heads, O)
        return self.inner(q, as_rows(keys, self.count), as_rows(values, self.count), heads, O)

    def first_rows(self) -> None:
        return None


def make_cached_batch(arguments: Arguments, model: Any, needs: Needs, call: CallCache) -> tuple[PackedBatch, Store]:
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
        store = Store(call, batch, limit)
        cross = batch.rows.cross_attention
        encoder = None if cross is None else read_encoder(arguments, B, S, model.config, weight.device, weight.dtype)
        if encoder is not None and isinstance(cross, (Masked, Varlen)):
            how = cross if isinstance(cross, Masked) else (cross.cu_seqlens_q, cross.max_seqlen_q)
            add_cross_attention(batch, encoder, call, model.config, how)
        batch.rows.attention = Fresh(batch.rows.attention, store)
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
            raise ValueError(f"{kv_cache.FIELD}: {new} do not fit, it holds {most}; make it longer (max_cache_len)")
        if shape is not None and shape[0] != B:
            raise ValueError(f"input_ids: got a batch of {B}, but the cache is one of {shape[0]} sequences")
        if shape is not None and (shape[1], shape[3]) != (N, D):
            raise ValueError(f"{kv_cache.FIELD}: it holds {shape[1]} heads of size {shape[3]}, expected {N} of {D}: it is another model's")


def continue_batch(arguments: Arguments, model: Any, needs: Needs, call: CallCache, limit: int) -> tuple[PackedBatch, Store]:
    config, embeddings = model.config, model.embeddings
    weight = embeddings.position_embeddings.weight
    device, dtype = weight.device, weight.dtype
    ids, words, B, S = read_input(arguments, embeddings, config)
    past, total = call.past, call.past + S
    eager = setting(config, "_attn_implementation") == "eager"
    head_masks = read_head_mask(arguments.get("head_mask"), config, device, dtype)
    encoder = read_encoder(arguments, B, S, config, device, dtype)
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
        positions = (counted(B, S, device) if drop is None else drop.positions) + past
    row_ids = rows_of(ids, "input_ids") if ids is not None else (counted(1, B * S, device) if cells is None else cells)
    assert row_ids is not None, "ids or embeddings: one was given"
    cu_seqlens, longest = (uniform_cu_seqlens(B, S, device), S) if drop is None else (drop.cu_seqlens, drop.longest)

    attention = Varlen(cu_seqlens, cu_seqlens, longest, longest)  # what reads the new rows as they are; replaced below
    rows = Rows(row_ids, words, rows_of(arguments.get("token_type_ids"), "token_type_ids"), positions, attention)
    if plain and mask is not None:
        mask = mask.to(device)
    blank = mask[:, past:].eq(0) if plain and not keep and mask is not None else None
    batch = PackedBatch(rows, B, S, cells, blank, cu_seqlens[:-1].long())
    store = Store(call, batch, limit)
    masked = None
    if plain:
        if visible is None:
            visible = visible_cells(None if seen is None else mask, B, S, total, eager, dtype, device)
        masked = Masked(B, visible, head_masks, needs.probabilities)
        rows.attention = Spread(masked, count, store)
    elif seen is None:
        rows.attention = Ranges(store.places.rows, None, store.places.cells + 1, store)
    elif mask is not None and (starts := first_cells(mask)) is not None:
        first = starts.to(device).index_select(0, store.places.rows)
        rows.attention = Ranges(store.places.rows, first, store.places.cells + 1, store)
    else:
        attention = Varlen(cu_seqlens, seen.cu_seqlens, longest, seen.longest, causal=True, key_rows=seen.indices)
        rows.attention = Spread(attention, total, store)

    if encoder is not None:
        how: Masked | tuple[Tensor, int] = (cu_seqlens, longest)
        if plain:
            visible = encoder.visible if encoder.visible is not None else visible_keys(encoder.real, 0, eager, dtype, device)
            how = Masked(B, visible, head_masks, needs.probabilities)
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


def add_cross_attention(batch: PackedBatch, encoder: Encoder, call: CallCache, config: Any, how: Masked | tuple[Tensor, int]) -> None:
    """How a decoder's rows read the encoder: its states, or what a cache keeps of them.

    how: under a mask; or, without one, the boundaries of the queries, [B + 1], and the longest sequence of them.
    """
    rows, B, Se = batch.rows, batch.batch, encoder.length
    if hasattr(call.cache, "cross_attention_cache"):
        rows.cross_cache = CrossCache(call.cache, config, encoder, batch, packed=not isinstance(how, Masked))
    if rows.cross_cache is None or not rows.cross_cache.filled:
        if isinstance(how, Masked):
            rows.encoder_rows, rows.cross_attention = encoder.rows, how
        else:
            rows.encoder_rows, rows.cross_attention = encoder.packed(B, *how)
        return
    places = Places.of(batch, 0).rows
    if isinstance(how, Masked):
        rows.cross_attention = Spread(how, Se, None)
    elif encoder.packing is None or encoder.real is None:
        rows.cross_attention = Ranges(places, None, torch.full_like(places, Se), None)
    else:
        real = encoder.real.to(torch.uint8)
        counts, starts, ends = real.sum(dim=1), real.argmax(dim=1), Se - real.flip(1).argmax(dim=1)
        if bool(((ends - starts == counts) | (counts == 0)).all()):
            first, last = (t.index_select(0, places) for t in (starts, starts + counts))
            rows.cross_attention = Ranges(places, first, last, None)
        else:
            packing, (cu_seqlens, longest) = encoder.packing, how
            rows.cross_attention = Spread(
                Varlen(cu_seqlens, packing.cu_seqlens, longest, packing.longest, key_rows=packing.indices), Se, None
            )


class CrossCache:
    """Cross-attention's keys and values: computed from the encoder's states once, read from the cache afterwards."""

    def __init__(self, cache: Any, config: Any, encoder: Encoder, batch: PackedBatch, packed: bool) -> None:
        self.cache = cache
        self.layers = kv_cache.adopt_layers(cache.cross_attention_cache, config.num_hidden_layers)
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
