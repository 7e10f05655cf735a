"""The tree form of Flax's functional KV cache.

A cache is a tree {"bert": {"encoder": {"layer": {"0": {"attention": {"self": {cached_key, cached_value, cache_index}}}}}}}. A call
returns a new tree and leaves the old one unchanged; copying the arrays at every step would cost more than the step. So the innermost
dicts are handles on shared buffers: each knows how many columns are its own. A step on the newest handle appends in place, a step on an
older one copies first. A handle makes its arrays on first access.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bertfast.compat import arrays
from bertfast.compat.arrays import Array
from bertfast.compat.flax.cache_buffers import CacheBuffers

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_keys, dict_values

CacheTree: TypeAlias = "Mapping[str, CacheTree | Array]"  # the innermost levels are LayerCaches

NAMES = ("cache_index", "cached_key", "cached_value")  # sorted, as JAX orders dict keys


class LayerCache(dict[str, "Array"]):
    """{cached_key, cached_value, cache_index} of one layer; its arrays are made on first access."""

    __slots__ = ("_array_type", "_state", "_written")

    def __init__(self, buffers: CacheBuffers, layer: int, index: int, array_type: arrays.ArrayType) -> None:
        super().__init__()
        self._state = (buffers, layer, index)
        self._array_type = array_type
        self._written = False

    def handle(self) -> tuple[CacheBuffers, int, int] | None:
        """(buffers, layer, index); None where the caller has changed the dict."""
        return None if self._written else self._state

    def _fill(self) -> None:
        if not super().__len__():
            buffers, layer, index = self._state
            keys, values = buffers.content(layer, index)
            position = torch.tensor(index, dtype=torch.int32)
            for name, tensor in zip(NAMES, (position, keys, values), strict=True):
                array = arrays.from_torch(tensor, self._array_type)
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False  # a write would not reach the buffers
                super().__setitem__(name, array)

    def __getitem__(self, key: str) -> Array:
        self._fill()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Array) -> None:
        self._fill()
        self._written = True
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._fill()
        self._written = True
        super().__delitem__(key)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES) if not self._written else super().__iter__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: object) -> bool:
        self._fill()
        return super().__contains__(key)

    def __eq__(self, other: object) -> bool:
        self._fill()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        self._fill()
        return super().__repr__()

    def __reduce__(self) -> tuple[object, ...]:
        return dict, (list(self.items()),)

    def keys(self) -> "dict_keys[str, Array]":
        self._fill()
        return super().keys()

    def items(self) -> "dict_items[str, Array]":
        self._fill()
        return super().items()

    def values(self) -> "dict_values[str, Array]":
        self._fill()
        return super().values()

    def get(self, key: str, default: Any = None) -> Any:
        self._fill()
        return super().get(key, default)

    def copy(self) -> "dict[str, Array]":
        return dict(self.items())

    def pop(self, *args: Any) -> Any:
        self._fill()
        self._written = True
        return super().pop(*args)

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._fill()
        self._written = True
        super().update(*args, **kwargs)


def tree(buffers: CacheBuffers, index: int, array_type: arrays.ArrayType, prefix: tuple[str, ...]) -> CacheTree:
    """The cache tree of `buffers` with `index` filled columns. prefix: the levels above "encoder"."""
    _register_with_jax()
    layers = {str(i): {"attention": {"self": LayerCache(buffers, i, index, array_type)}} for i in range(len(buffers.layers))}
    out: CacheTree = {"encoder": {"layer": layers}}
    for level in reversed(prefix):
        out = {level: out}
    return out


def read_tree(given: object, L: int, prefix: tuple[str, ...], dtype: torch.dtype, device: torch.device) -> tuple[CacheBuffers, int]:
    """The buffers of a cache tree and its number of filled columns; new buffers for a tree of the caller's own arrays.

    Raises ValueError for a tree that lacks a level or has inconsistent arrays.
    """
    nodes = []
    for i in range(L):
        node = given
        for level in (*prefix, "encoder", "layer", str(i), "attention", "self"):
            node = node.get(level) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            raise ValueError(f"past_key_values: it has no {'/'.join((*prefix, 'encoder', 'layer', str(i), 'attention', 'self'))}")
        nodes.append(node)
    handles = [node.handle() if isinstance(node, LayerCache) else None for node in nodes]
    first = handles[0] if handles else None
    if first is not None and all(handle == (first[0], i, first[2]) for i, handle in enumerate(handles)):
        buffers, _, index = first
        if buffers.layers[0][0].dtype == dtype:
            return buffers, index
    layers: list[tuple[Tensor, Tensor]] = []
    indices: set[int] = set()
    for i, node in enumerate(nodes):
        try:
            keys, values, index = (node[name] for name in ("cached_key", "cached_value", "cache_index"))
        except KeyError as error:
            raise ValueError(f"past_key_values: layer {i} has no {error}") from error
        pair = tuple(arrays.to_torch(t, "past_key_values").to(device, dtype).clone() for t in (keys, values))
        if pair[0].dim() != 4 or pair[0].shape != pair[1].shape or (layers and pair[0].shape != layers[0][0].shape):
            raise ValueError(f"past_key_values: layer {i} has shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)}")
        layers.append((pair[0], pair[1]))
        indices.add(int(arrays.to_torch(index, "past_key_values")))
    if len(indices) > 1 or min(indices) < 0:
        raise ValueError(f"past_key_values: its layers have different cache_index: {sorted(indices)}")
    index = indices.pop()
    initial = [(k.clone(), v.clone()) for k, v in layers] if any(bool(t[:, index:].any()) for pair in layers for t in pair) else None
    return CacheBuffers(layers, index, initial), index


_registered = False


def _register_with_jax() -> None:
    """Registers LayerCache with jax.tree_util as a dict."""
    global _registered
    jax = sys.modules.get("jax")
    if jax is None or _registered or not hasattr(jax, "tree_util"):
        return
    _registered = True
    jax.tree_util.register_pytree_node(
        LayerCache, lambda cache: (tuple(cache[name] for name in NAMES), None), lambda _, leaves: dict(zip(NAMES, leaves, strict=True))
    )
