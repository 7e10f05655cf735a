"""The KV cache that forward and generate() keep: transformers' DynamicCache, its layers replaced by ones that grow in place.

transformers' DynamicLayer concatenates: every step copies everything cached so far. `Layer` keeps room to spare and writes into
it; to all who look from outside it is a DynamicLayer. So a DynamicCache that a caller made and handed over stays the caller's
own object, and so does one that generate() made.

Shape letters: B batch, N heads, P cells filled, C cells there is room for, D head size, L layers.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache, StaticCache, StaticLayer
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from bertfast.runtime.config_access import is_causal

# transformers renamed past_key_values to cache in 5.24, in signatures and outputs; both are read here, this one is written.
CACHE_FIELD = next(name for name in ("cache", "past_key_values") if name in {f.name for f in fields(CausalLMOutputWithCrossAttentions)})
CACHE_NAMES = ("cache", "past_key_values")

LegacyCache = tuple[tuple[Tensor, ...], ...]  # a layer each: keys and values, then those of cross-attention where there are any


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers ships no types
    """One layer's keys and values, [B, N, P, D] to its readers, in buffers [B, N, C, D].

    What was read stays true: `keys` and `values` are views of the buffers, and a cell that a reader may still see is never
    written again (a crop followed by an append moves to new buffers, if somebody looked in between).
    """

    def __init__(self, **kwargs: Any) -> None:
        self._buffers: list[Tensor | None] = [None, None]
        self._lengths = [0, 0]
        self._written = 0  # cells that ever held something
        self._seen = False  # whether somebody outside may hold a view
        self._alike: Tensor | None = None  # [B] int64: sequences of one number hold the same cells; None: nothing is known
        super().__init__(**kwargs)

    @classmethod
    def of(cls, other: DynamicLayer) -> "GrowingLayer":
        """A layer that goes on from what another holds."""
        layer = cls()
        if other.is_initialized:
            layer.lazy_initialization(other.keys, other.values)
            layer.keys, layer.values = other.keys, other.values
        return layer

    def _read(self, which: int) -> Tensor | None:
        buffer = self._buffers[which]
        self._seen = True
        return None if buffer is None else buffer[..., : self._lengths[which], :]

    def _replace(self, which: int, states: Tensor | None) -> None:
        empty = states is None or states.dim() != 4
        self._buffers[which] = None if empty else states
        self._lengths[which] = 0 if empty else states.shape[2]  # type: ignore[union-attr]  # not None where not empty
        self._written = max(self._lengths)
        self._seen = not empty  # the caller holds it
        self._alike = None

    keys = property(lambda self: self._read(0), lambda self, states: self._replace(0, states))
    values = property(lambda self: self._read(1), lambda self, states: self._replace(1, states))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.device, self.dtype = key_states.device, key_states.dtype
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self._lengths[0]

    def room_for(self, count: int, like: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
        """The buffers [B, N, C, D], with `count` free cells after those filled.

        like: [B, N, any, D], of the dtype and on the device wanted. most: how many cells there can ever be, where that is known.
        The new cells count once `extend(count)` says so.
        """
        length, needed = self._lengths[0], self._lengths[0] + count
        keys, values = self._buffers
        if keys is None or values is None or needed > keys.shape[2] or needed > values.shape[2] or (self._seen and length < self._written):
            room = needed if length == 0 else 2 * needed  # many caches are filled once and never read
            room = room if most is None else max(needed, min(room, most))
            self.lazy_initialization(like, like)
            with torch.inference_mode(False):  # the buffers outlive the call
                grown = [torch.empty(*like.shape[:2], room, like.shape[3], dtype=like.dtype, device=like.device) for _ in range(2)]
            for new, old in zip(grown, self._buffers, strict=True):
                if old is not None and length:
                    new[:, :, :length].copy_(old[:, :, :length])
            self._buffers, self._written, self._seen = list(grown), length, False
            keys, values = grown
        self._written = max(self._written, needed)
        self._alike = None
        return keys, values

    def cells(self) -> tuple[Tensor, Tensor]:
        """What `keys` and `values` are, [B, N, P, D], to a call that lets go of them when it ends: nobody outside holds a view then."""
        if torch.is_grad_enabled():  # a backward may come later
            return self.keys, self.values
        keys, values = (t[:, :, : self._lengths[0]] for t in peek(self))
        return keys, values

    def extend(self, count: int) -> None:
        self._lengths = [length + count for length in self._lengths]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """transformers' interface: appends [B, N, new, D], gives back everything."""
        count, length = key_states.shape[2], self._lengths[0]
        if key_states.requires_grad or value_states.requires_grad:  # in place, autograd would lose the thread
            return super().update(key_states, value_states, *args, **kwargs) if length else self._take(key_states, value_states)
        for buffer, states in zip(self.room_for(count, key_states), (key_states, value_states), strict=True):
            buffer[:, :, length : length + count].copy_(states)
        self.extend(count)
        return self.keys, self.values

    def _take(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:  # the old meaning or an error: as this transformers has it
            super().crop(tokens_to_remove)
        else:
            self._lengths = [max(0, length + tokens_to_remove) for length in self._lengths]

    def reorder_cache(self, beam_idx: Tensor) -> None:  # int64, as many as there are to be sequences
        """transformers' interface: sequence i becomes what sequence beam_idx[i] was. The room to spare stays; and on the CPU, where asking
        costs nothing, so do the sequences that do not change, in buffers that nobody has seen. One that was copied from another is known to
        be like it until something is written: beams of a prompt take over from each other in cross-attention without a copy."""
        length, (keys, values) = self._lengths[0], self._buffers
        if keys is None or values is None or length == 0:
            return
        if keys.requires_grad or values.requires_grad:
            super().reorder_cache(beam_idx)
            return
        order = beam_idx.to(keys.device)
        on_cpu = order.device.type == "cpu"
        if self._seen or len(order) != len(keys) or not on_cpu:
            with torch.inference_mode(False):  # the buffers outlive the call
                self._buffers = [t.index_select(0, order) for t in (keys, values)]
            self._written, self._seen, self._alike = length, False, order.clone() if on_cpu else None
            return
        alike = torch.arange(len(order)) if self._alike is None else self._alike
        after = alike.index_select(0, order)
        moved = (after != alike).nonzero().view(-1)
        if len(moved):
            parents = order.index_select(0, moved)
            for t in (keys, values):
                cells = t[:, :, :length]
                cells.index_copy_(0, moved, cells.index_select(0, parents))
        self._alike = after

    def __copy__(self) -> "GrowingLayer":
        """Two layers must not write into the same buffers."""
        other = GrowingLayer.of(self)
        if other.is_initialized:
            other.keys, other.values = self.keys.clone(), self.values.clone()
        return other


def why_unsupported(cache: Any, config: Any) -> str | None:
    """Why a call with this cache takes transformers' forward; None where our graph can work on it."""
    if not is_causal(config):
        return "a cache was handed to a model that is not a causal decoder"
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if type(cache) is EncoderDecoderCache else [cache]
    for part in parts:
        if type(part) not in (DynamicCache, StaticCache):
            return f"a {type(part).__name__} keeps its keys and values in a way of its own"
        if getattr(part, "offloading", False):
            return "a cache that is offloaded moves between devices"
        for layer in part.layers:
            if type(layer) not in (GrowingLayer, DynamicLayer, StaticLayer):
                return f"a {type(layer).__name__} in the cache"
            if any(t.requires_grad for t in peek(layer)):
                return "the cache holds tensors that require grad (prefix tuning)"
    return None


def peek(layer: Any) -> list[Tensor]:
    """What a layer keeps its keys and values in, as long as they may be; not a read in the sense of Layer."""
    states = layer._buffers if type(layer) is GrowingLayer else (layer.keys, layer.values)
    return [t for t in states if t is not None]


def cells_of(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that was written, [B, N, any, D], for a call that lets go of them when it ends."""
    return layer.cells() if type(layer) is GrowingLayer else (layer.keys, layer.values)


def shape_of(layer: Any) -> tuple[int, ...] | None:
    """[B, N, any, D]; None of a layer that was never written."""
    return next((tuple(t.shape) for t in peek(layer) if t.dim() == 4), None)


def from_legacy(cache: Any) -> Cache:
    """The old tuple of tuples as a cache object; anything else as it is. ValueError where it is neither."""
    if isinstance(cache, Cache):
        return cache
    if not isinstance(cache, (tuple, list)) or not all(isinstance(layer, (tuple, list)) and len(layer) in (2, 4) for layer in cache):
        raise ValueError(
            f"{CACHE_FIELD}: got {type(cache).__name__}, expected a Cache of transformers, or for each layer a tuple of keys and values "
            "(and those of cross-attention)"
        )
    own = DynamicCache([tuple(layer[:2]) for layer in cache])
    if not cache or len(cache[0]) == 2:
        return own
    return EncoderDecoderCache(own, DynamicCache([tuple(layer[2:]) for layer in cache]))


def to_legacy(cache: Cache) -> LegacyCache:
    if isinstance(cache, EncoderDecoderCache):
        pairs = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        return tuple((own.keys, own.values, cross.keys, cross.values) for own, cross in pairs)
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def given_cache(arguments: Any) -> Any:
    """What the caller passed as the cache, under either name; None where nothing."""
    given = [arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise ValueError("cache and past_key_values: both were given; they are the new and the old name of one argument, pass one")
    return given[0] if given else None


def convert_layers(cache: Cache, count: int) -> Sequence[Any]:
    """The cache's first `count` layers; those of a DynamicCache become ours, in place, with what they hold."""
    layers: list[Any] = cache.layers
    if isinstance(cache, DynamicCache):
        for i in range(count):
            if i == len(layers):
                layers.append(GrowingLayer())
            elif type(layers[i]) is DynamicLayer:
                layers[i] = GrowingLayer.of(layers[i])
    if len(layers) < count:
        raise ValueError(f"{CACHE_FIELD}: got a cache of {len(layers)} layers, expected {count}, one for each layer of the model")
    return layers[:count]


def new_cache(cross: bool) -> Cache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache()) if cross else DynamicCache()
