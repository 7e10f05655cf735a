"""A layer of a KV cache that grows in place.

transformers' DynamicLayer concatenates: each step copies all that is cached. GrowingLayer keeps spare capacity and writes into it; seen
from outside it is a DynamicLayer, so a DynamicCache that a caller or generate() made stays their own object.

Shape letters: B batch, N heads, P filled positions, C positions of capacity, D head size.
"""

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers ships no types
    """One layer's keys and values, [B, N, P, D] to its readers, in buffers [B, N, C, D].

    `keys` and `values` are views of the buffers, and what a view shows never changes: once somebody has read them, an append after a crop
    moves to new buffers.
    """

    def __init__(self, **kwargs: object) -> None:
        self._buffers: list[Tensor | None] = [None, None]
        self._lengths = [0, 0]
        self._written = 0  # positions that were ever written; above _lengths after a crop
        self._seen = False  # whether somebody outside may hold a view
        self._alike: Tensor | None = None  # [B] int64: sequences with equal numbers have equal contents; None: unknown
        super().__init__(**kwargs)

    @classmethod
    def of(cls, other: DynamicLayer) -> "GrowingLayer":
        """A layer that continues what another holds, without a copy."""
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
        """The buffers [B, N, C, D], with `count` free positions after the filled ones. `extend(count)` makes those part of the cache.

        like: [B, N, any, D], of the dtype and on the device wanted. most: an upper limit of C, where one is known.
        """
        length, needed = self._lengths[0], self._lengths[0] + count
        keys, values = self._buffers
        if keys is None or values is None or needed > keys.shape[2] or needed > values.shape[2] or (self._seen and length < self._written):
            room = needed if length == 0 else 2 * needed  # no spare capacity at first: many caches are never continued
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

    def borrow(self) -> tuple[Tensor, Tensor]:
        """`keys` and `values`, [B, N, P, D], for a caller that drops them when its call ends: the layer does not count as seen."""
        if torch.is_grad_enabled():  # a backward may come later
            return self.keys, self.values
        keys, values = (t[:, :, : self._lengths[0]] for t in peek(self))
        return keys, values

    def extend(self, count: int) -> None:
        self._lengths = [length + count for length in self._lengths]

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """transformers' interface: appends [B, N, new, D] each, returns [B, N, P, D] each."""
        count, length = key_states.shape[2], self._lengths[0]
        if any(t is not None and t.requires_grad for t in (key_states, value_states, *self._buffers)):  # autograd follows no write in place
            return super().update(key_states, value_states, *args, **kwargs) if length else self._take(key_states, value_states)
        for held, states in zip(self._buffers, (key_states, value_states), strict=True):  # copy_ would broadcast a smaller batch
            if held is not None and (held.shape[:2], held.shape[3:]) != (states.shape[:2], states.shape[3:]):
                raise ValueError(f"cache: got states of shape {tuple(states.shape)}, but it holds {tuple(held.shape)}")
        for buffer, states in zip(self.room_for(count, key_states), (key_states, value_states), strict=True):
            buffer[:, :, length : length + count].copy_(states)
        self.extend(count)
        return self.keys, self.values

    def _take(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:  # a length in older transformers, an error in newer
            super().crop(tokens_to_remove)
        else:
            self._lengths = [max(0, length + tokens_to_remove) for length in self._lengths]

    def reorder_cache(self, beam_idx: Tensor) -> None:  # int64, as many as there are to be sequences
        """transformers' interface: sequence i becomes what sequence beam_idx[i] was.

        Spare capacity is kept. On the CPU, in buffers that nobody has seen, only sequences whose content changes are copied (on a GPU the
        comparison would synchronise). `_alike` tracks copies until the next write, so the beams of one prompt, whose cross-attention is
        the same, are reordered without copies.
        """
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
                filled = t[:, :, :length]
                filled.index_copy_(0, moved, filled.index_select(0, parents))
        self._alike = after

    def __copy__(self) -> "GrowingLayer":
        """Two layers must not write into the same buffers."""
        other = GrowingLayer.of(self)
        if other.is_initialized:
            other.keys, other.values = self.keys.clone(), self.values.clone()
        return other


def peek(layer: CacheLayerMixin) -> list[Tensor]:
    """The tensors a layer keeps its keys and values in, spare capacity included. A GrowingLayer does not count as seen."""
    states = layer._buffers if type(layer) is GrowingLayer else (layer.keys, layer.values)
    return [t for t in states if t is not None]


def keys_values_of(layer: CacheLayerMixin) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that was written, [B, N, any, D] each, for a caller that drops them when its call ends."""
    return layer.borrow() if type(layer) is GrowingLayer else (layer.keys, layer.values)


def shape_of(layer: CacheLayerMixin) -> tuple[int, ...] | None:
    """[B, N, any, D]; None where it was never written."""
    return next((tuple(t.shape) for t in peek(layer) if t.dim() == 4), None)
