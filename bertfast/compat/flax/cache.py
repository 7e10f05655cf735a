"""Flax's functional KV cache, stepped in place.

A cache is a tree {"bert": {"encoder": {"layer": {"0": {"attention": {"self": {cached_key, cached_value, cache_index}}}}}}}; a call
gives back a new one and leaves the old as it was. Copying it at every step would cost more than the step. So the innermost dicts
are handles: all trees that descend from one another share one set of buffers, and each knows how far its own part of them
reaches. The newest handle is stepped by writing behind it; an older one is copied first. A handle's arrays are made when they
are looked at.

Shape letters: B batch, C cache length, S new tokens, N heads, D head size, L layers.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bertfast.compat import arrays
from bertfast.compat.flax import inputs

NAMES = ("cache_index", "cached_key", "cached_value")  # in JAX's order of a dict's keys


class Buffers:
    """Keys and values of all layers, [B, C, N, D] each; the first `filled` columns are written."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], filled: int, behind: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers, self.filled = layers, filled
        self.behind = behind  # what the columns from `filled` on held at the start, where that was not zeros

    @staticmethod
    def zeros(L: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> "Buffers":
        return Buffers(
            [(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)) for _ in range(L)], 0
        )

    @property
    def batch(self) -> int:
        return self.layers[0][0].shape[0]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]

    def content(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        """A copy of a layer as a handle at `index` sees it."""
        copies = tuple(t.clone() for t in self.layers[layer])
        for i, copy in enumerate(copies):
            if index < self.length:
                copy[:, index:] = 0 if self.behind is None else self.behind[layer][i][:, index:]
        return copies[0], copies[1]

    def advanced(self, index: int, tokens: int) -> "Buffers":
        """Buffers that a handle at `index` may write `tokens` columns to: these, or a copy."""
        if index == self.filled and index + tokens <= self.length:
            self.filled += tokens
            return self
        copied = Buffers([self.content(i, index) for i in range(len(self.layers))], index, self.behind)
        copied.filled += tokens
        return copied

    def reordered(self, rows: Tensor) -> "Buffers":
        """The sequences `rows`, in that order."""
        return Buffers([(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers], self.filled, None)


class Step:
    """One call's writes and reads: attention's view of the buffers."""

    def __init__(self, buffers: Buffers, start: int, tokens: int, width: int) -> None:
        self.buffers, self.width = buffers, width
        self.at = slice(start, start + tokens)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.buffers.layers[layer]
        keys[:, self.at], values[:, self.at] = k, v
        return keys[:, : self.width], values[:, : self.width]


class LayerCache(dict[str, Any]):
    """{cached_key, cached_value, cache_index} of one layer; its arrays are made when they are looked at."""

    __slots__ = ("_kind", "_state", "_written")

    def __init__(self, buffers: Buffers, layer: int, index: int, kind: arrays.Kind) -> None:
        super().__init__()
        self._state = (buffers, layer, index)
        self._kind = kind
        self._written = False

    def handle(self) -> tuple[Buffers, int, int] | None:
        """(buffers, layer, index), unless the caller has put something of his own in."""
        return None if self._written else self._state

    def _fill(self) -> None:
        if not super().__len__():
            buffers, layer, index = self._state
            keys, values = buffers.content(layer, index)
            position = torch.tensor(index, dtype=torch.int32)
            for name, tensor in zip(NAMES, (position, keys, values), strict=True):
                array = arrays.from_torch(tensor, self._kind)
                if self._kind is arrays.Kind.NUMPY:
                    array.flags.writeable = False  # a cache that was written to behind our back would not be the one we step
                super().__setitem__(name, array)

    def __getitem__(self, key: str) -> Any:
        self._fill()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
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

    def __reduce__(self) -> Any:
        return dict, (list(self.items()),)

    def keys(self) -> Any:
        self._fill()
        return super().keys()

    def items(self) -> Any:
        self._fill()
        return super().items()

    def values(self) -> Any:
        self._fill()
        return super().values()

    def get(self, key: str, default: Any = None) -> Any:
        self._fill()
        return super().get(key, default)

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def pop(self, *args: Any) -> Any:
        self._fill()
        self._written = True
        return super().pop(*args)

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._fill()
        self._written = True
        super().update(*args, **kwargs)


def tree(buffers: Buffers, index: int, kind: arrays.Kind, prefix: tuple[str, ...]) -> dict[str, Any]:
    """The cache tree of a handle at `index`; prefix: the levels above "encoder"."""
    _register_with_jax()
    layers = {str(i): {"attention": {"self": LayerCache(buffers, i, index, kind)}} for i in range(len(buffers.layers))}
    out: dict[str, Any] = {"encoder": {"layer": layers}}
    for level in reversed(prefix):
        out = {level: out}
    return out


def read_tree(given: Any, L: int, prefix: tuple[str, ...], dtype: torch.dtype, device: torch.device) -> tuple[Buffers, int]:
    """The buffers and the index behind a cache tree: our own, or made from the arrays of a tree that the caller built."""
    nodes = []
    for i in range(L):
        node = given
        for level in (*prefix, "encoder", "layer", str(i), "attention", "self"):
            node = node.get(level) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            raise ValueError(f"past_key_values: no {'/'.join((*prefix, 'encoder', 'layer', str(i), 'attention', 'self'))} in it")
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
        raise ValueError(f"past_key_values: its layers are at different places, cache_index {sorted(indices)}")
    index = indices.pop()
    behind = [(k.clone(), v.clone()) for k, v in layers] if any(bool(t[:, index:].any()) for pair in layers for t in pair) else None
    return Buffers(layers, index, behind), index


_registered = False


def _register_with_jax() -> None:
    """Lets jax.tree_util walk a LayerCache as the dict that it is."""
    global _registered
    jax = sys.modules.get("jax")
    if jax is None or _registered or not hasattr(jax, "tree_util"):
        return
    _registered = True
    jax.tree_util.register_pytree_node(
        LayerCache, lambda cache: (tuple(cache[name] for name in NAMES), None), lambda _, leaves: dict(zip(NAMES, leaves, strict=True))
    )


def cached_step(
    buffers: Buffers, index: int, read: inputs.Inputs, config: Any, all_columns: bool
) -> tuple[Step, Tensor]:  # visible: bool, broadcasts to [B, 1, S, columns]
    """Where a call on a cache writes, and what each of its queries sees.

    A query at place p of the cache sees column j where the mask has it, j <= p, and j < index + S. Past the end of the cache the last
    columns are written again.
    """
    (B, S), C = read.shape, buffers.length
    if buffers.batch != B:
        raise ValueError(f"past_key_values: made for {buffers.batch} sequences, input_ids has {B}")
    if S > C:
        raise ValueError(f"input_ids: {S} tokens, and the cache of past_key_values has {C} columns")
    device = read.input_ids.device
    mask = read.attention_mask if read.attention_mask is not None else torch.ones(B, S, dtype=torch.bool, device=device)
    if mask.dim() > 2 or not inputs.fits(mask, (B, C)):
        raise ValueError(
            f"attention_mask: got shape {tuple(mask.shape)}{'' if read.attention_mask is not None else ' (ones like input_ids)'}, expected "
            f"({B}, {C}): with past_key_values it covers the whole cache, ones where nothing is written yet"
        )
    columns = torch.arange(C, device=device)
    places = min(index, config.max_position_embeddings - S) + torch.arange(S, device=device)
    visible = (columns <= places[:, None]) & (columns < index + S)
    visible = visible & mask.reshape((1,) * (2 - mask.dim()) + tuple(mask.shape))[:, None, None, :]  # [1 or B, 1, S, C]
    width = C
    if not all_columns and bool(visible.any(dim=-1).all()):  # a query that sees nothing attends to every column alike
        width = min(index + S, C)
    step = Step(buffers.advanced(index, S), min(index, C - S), S, width)
    return step, visible[..., :width]
