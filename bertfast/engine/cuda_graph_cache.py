"""The CUDA graphs of all models: an LRU cache, the owners of its entries, and the lock that serializes replays.

All graphs of a device share one memory pool, so no two may be in flight: a lock serializes threads, an event serializes streams.
"""

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bertfast.runtime.locks import make_rlock

MAX_GRAPHS = 64  # over all models

GraphKey = tuple[object, ...]  # the owner's number first


class GraphCache:
    """An LRU cache. An entry is a graph, or why there is none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[GraphKey, object] = OrderedDict()

    def find(self, key: GraphKey) -> object:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: GraphKey, entry: object) -> None:
        self._entries[key] = entry
        while len(self._entries) > self.limit:
            self._entries.popitem(last=False)

    def drop(self, owner: int) -> None:
        for key in [key for key in self._entries if key[0] == owner]:
            del self._entries[key]

    def entries(self) -> list[object]:
        return list(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


cache = GraphCache(MAX_GRAPHS)
lock = make_rlock()  # a finalizer may run while the lock is held
_last_use: dict[torch.device, torch.cuda.Event] = {}  # the event after the last use of a device's pool
_numbers = itertools.count()


class GraphOwner:
    """What a model's graphs belong to. They leave the cache when it goes, which is when the model goes or one of its weights moves."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        weakref.finalize(self, _drop, self.number)


def _drop(owner: int) -> None:
    with lock:
        cache.drop(owner)


def stream_of(device: torch.device) -> torch.cuda.Stream | None:
    """The caller's stream; None where there are no streams."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


@contextmanager
def serialized(device: torch.device) -> Iterator[None]:
    """Within: one thread at a time, and its work is queued behind the last use of the pool on whatever stream.

    Never take the lock of bertfast.engine.model_state within: a finalizer of graphs may run under that one.
    """
    with lock:
        if (stream := stream_of(device)) is None:
            yield
            return
        if device in _last_use:
            stream.wait_event(_last_use[device])
        try:
            yield
        finally:  # what was queued before an error runs all the same
            _last_use[device] = stream.record_event()
