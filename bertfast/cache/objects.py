"""transformers' cache objects: which ones the fast path can use, converted, made, and in the legacy form.

A DynamicCache keeps its identity: its layers alone are replaced (bertfast.cache.layers).
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, EncoderDecoderCache, StaticCache, StaticLayer
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from bertfast.batch.inputs import Arguments
from bertfast.cache.layers import GrowingLayer, peek
from bertfast.runtime.config_access import is_causal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# transformers 5.24 renamed past_key_values to cache, in signatures and outputs: both are read, the installed version's is returned.
CACHE_FIELD = next(name for name in ("cache", "past_key_values") if name in {f.name for f in fields(CausalLMOutputWithCrossAttentions)})
CACHE_NAMES = ("cache", "past_key_values")

LegacyCache = tuple[tuple[Tensor, ...], ...]  # one tuple a layer: keys and values, then those of cross-attention where there are any


def why_unsupported(cache: Cache, config: "PreTrainedConfig") -> str | None:
    """Why a call with this cache takes the reference path; None where the fast path can use it."""
    if not is_causal(config):
        return "a cache was passed to a model that is not a causal decoder"
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if type(cache) is EncoderDecoderCache else [cache]
    for part in parts:
        if type(part) not in (DynamicCache, StaticCache):
            return f"a {type(part).__name__} is not a DynamicCache or StaticCache"
        if getattr(part, "offloading", False):
            return "an offloaded cache moves between devices"
        for layer in part.layers:
            if type(layer) not in (GrowingLayer, DynamicLayer, StaticLayer):
                return f"a {type(layer).__name__} in the cache is not a DynamicLayer or StaticLayer"
            if any(t.requires_grad for t in peek(layer)):
                return "the cache holds tensors that require grad (prefix tuning)"
    return None


def from_legacy(cache: object) -> Cache:
    """A legacy tuple of tuples as a cache object; a Cache unchanged. ValueError for anything else."""
    if isinstance(cache, Cache):
        return cache
    if not isinstance(cache, (tuple, list)) or not all(isinstance(layer, (tuple, list)) and len(layer) in (2, 4) for layer in cache):
        raise ValueError(
            f"{CACHE_FIELD}: got {type(cache).__name__}, expected transformers' Cache, or for each layer a tuple (keys, values) or "
            "(keys, values, cross keys, cross values)"
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


def given_cache(arguments: Arguments) -> Any:
    """The cache that the caller passed, unchecked, under either name; None where there is none. ValueError where both are given."""
    given = [arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise ValueError("cache and past_key_values: got both, expected one; they are the new and the old name of the same argument")
    return given[0] if given else None


def convert_layers(cache: Cache, count: int) -> Sequence[CacheLayerMixin]:
    """The cache's first `count` layers; those of a DynamicCache are replaced in place by GrowingLayers that continue them."""
    layers: list[CacheLayerMixin] = cache.layers
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
