"""A DynamicCache with our layers under random operations: what transformers' layers give. A view that was read keeps its values."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicCache

from bertfast.cache.objects import convert_layers, from_legacy, to_legacy
from tests.fuzz.case import Case, Target

N, D, LAYERS = 2, 3, 2


@dataclass(frozen=True)
class CacheSteps(Case):
    batch: int
    start: int  # positions that transformers' layers hold before ours take over
    steps: tuple[tuple[Any, ...], ...]
    seed: int

    def check(self) -> str:
        torch.manual_seed(self.seed)
        caches = [DynamicCache(), DynamicCache()]
        read: list[tuple[Tensor, Tensor]] = []  # a view of ours, and its values when it was read
        errors = 0
        with torch.inference_mode(self.seed % 7 == 0):
            if self.start:
                append(caches, self.batch, self.start, False)
            convert_layers(caches[0], LAYERS)
            for step in self.steps:
                outcomes = [None, None]
                state = torch.get_rng_state()
                for i, cache in enumerate(caches):
                    torch.set_rng_state(state)
                    try:
                        caches[i] = STEPS[step[0]](cache, *step[1:])
                    except Exception as error:
                        outcomes[i] = error
                assert (outcomes[0] is None) == (outcomes[1] is None), f"{step}: ours {outcomes[0]!r}, transformers' {outcomes[1]!r}"
                if outcomes[0] is not None:
                    errors += 1
                    break
                if step[0] == "write":  # through the views
                    read.clear()
                if step[0] == "look":
                    read += [
                        (view, view.clone())
                        for layer in caches[0].layers
                        if layer.is_initialized
                        for view in (layer.keys, layer.values)
                        if view is not None
                    ]
                compare(caches[0], caches[1], step, look=self.seed % 3 == 0)
            compare(caches[0], caches[1], "the end", look=True)
            for view, values in read:
                assert torch.equal(view, values), "a view that was read has changed"
        return "an error in both" if errors else "equal"


def append(caches: list[Any], batch: int, count: int, grad: bool) -> None:
    state = torch.get_rng_state()
    for cache in caches:
        torch.set_rng_state(state)
        for layer in range(LAYERS):
            k, v = (torch.randn(batch, N, count, D, requires_grad=grad) for _ in range(2))
            cache.update(k, v, layer)


def compare(ours: Any, theirs: Any, step: Any, look: bool) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length(), f"{step}: length {ours.get_seq_length()}, expected {theirs.get_seq_length()}"
    assert len(ours.layers) >= len(theirs.layers)
    for a, b in zip(ours.layers, theirs.layers, strict=False):
        length = b.get_seq_length()
        assert a.get_seq_length() == length and a.get_mask_sizes(2) == b.get_mask_sizes(2), (
            f"{step}: {a.get_mask_sizes(2)}, expected {b.get_mask_sizes(2)}"
        )
        if not length:
            continue
        got = (a.keys, a.values) if look or not hasattr(a, "_buffers") else [t[:, :, :length] for t in a._buffers]
        for mine, other in zip(got, (b.keys, b.values), strict=True):
            assert mine.shape == other.shape and torch.equal(mine, other), f"{step}: contents differ"


def of(change: Any) -> Any:
    def apply(cache: Any, *args: Any) -> Any:
        change(cache, *args)
        return cache

    return apply


def held(layer: Any) -> Tensor | None:
    """The keys of a layer; ours does not count as seen."""
    keys = layer._buffers[0] if hasattr(layer, "_buffers") and "_alike" in vars(layer) else getattr(layer, "keys", None)
    return keys if keys is not None and keys.dim() == 4 else None


def update(cache: Any, count: int, grad: bool, batch: int = 0) -> None:
    """batch: another one than the cache holds; 0: the same."""
    keys = next((t for layer in cache.layers if (t := held(layer)) is not None), None)
    append([cache], batch or (2 if keys is None else keys.shape[0]), count, grad)


def in_place(cache: Any, value: float) -> None:
    for layer in cache.layers:
        if layer.get_seq_length():
            with torch.no_grad():
                layer.keys[:, :, -1:] = value


def replaced(cache: Any) -> None:
    for layer in cache.layers:
        if layer.get_seq_length():
            layer.keys, layer.values = layer.keys * 2, layer.values + 1


def pickled(cache: Any) -> Any:
    return pickle.loads(pickle.dumps(cache))


def legacy(cache: Any) -> Any:
    if not all(layer.get_seq_length() for layer in cache.layers) or not cache.layers:
        return cache
    made = from_legacy(to_legacy(cache))
    if type(cache.layers[0]).__name__ == "GrowingLayer":
        convert_layers(made, LAYERS)
    return made


STEPS: dict[str, Any] = {
    "append": of(update),
    "crop": of(lambda cache, count: cache.crop(-min(count, cache.get_seq_length()))),
    "crop to more": of(lambda cache, count: cache.crop(count) if cache.get_seq_length() else None),
    "crop beyond": of(lambda cache, count: cache.crop(-count)),
    "reorder": of(lambda cache, order: cache.reorder_cache(torch.tensor(order))),
    "repeat": of(lambda cache, count: cache.batch_repeat_interleave(count)),
    "select": of(lambda cache, order: cache.batch_select_indices(torch.tensor(order))),
    "reset": of(lambda cache: cache.reset()),
    "look": of(lambda cache: None),
    "write": of(in_place),
    "replace": of(replaced),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "legacy": legacy,
    "offload": of(lambda cache: [layer.offload() for layer in cache.layers]),
}
order = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)
step = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 3), st.sampled_from([False] * 7 + [True])),
    st.tuples(st.just("append"), st.integers(1, 3), st.just(False)),
    st.tuples(st.just("append"), st.integers(1, 3), st.just(False), st.integers(1, 4)),
    st.tuples(st.sampled_from(["crop", "crop", "crop beyond", "crop to more"]), st.integers(0, 4)),
    st.tuples(st.sampled_from(["reorder", "reorder", "select"]), order),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["reset", "look", "look", "replace", "copy", "deepcopy", "pickle", "legacy", "offload"])),
    st.tuples(st.just("write"), st.just(7.0)),
)
TARGET = Target(
    st.builds(CacheSteps, st.integers(1, 3), st.integers(0, 3), st.lists(step, min_size=1, max_size=12).map(tuple), st.integers(0, 20)),
    batch=100,
)
