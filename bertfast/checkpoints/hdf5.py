"""`tf_model.h5`: the layout of Keras 2's `save_weights`.

A whole file names its layers in the root attribute `layer_names`; each is a group whose attribute `weight_names` names its
datasets, relative to the group, the first level being the Keras model's name (which may end in a counter, so it is dropped).
In a shard `layer_names` names the datasets themselves, without model name or layers. An attribute above 64 KB is split into
`layer_names0`, `layer_names1`, ...
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from bertfast.checkpoints.errors import DamagedCheckpoint, damaged, reader
from bertfast.checkpoints.tensors import from_numpy

_MAX_NAMES = 100_000
_SLACK = 1 << 16  # bytes of attributes and headers that a tiny file may make us read


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name below the Keras model's, tensor) of every weight. Raises ValueError for a damaged file, ImportError without h5py."""
    h5py = reader("h5py", path)
    try:
        with h5py.File(path, "r", locking=False) as f:
            budget = 4 * path.stat().st_size + _SLACK  # bytes of arrays: Keras compresses nothing, so more is a lie
            for name, dataset in _datasets(h5py, f, path):
                array, budget = _read(dataset, name, budget, path)
                yield name, from_numpy(array)
    except DamagedCheckpoint:
        raise
    except Exception as error:  # h5py raises what it likes: OSError, RuntimeError, KeyError, TypeError, UnicodeEncodeError ...
        raise damaged(path, f"HDF5 says: {error}") from error


def _datasets(h5py: Any, f: Any, path: Path) -> Iterator[tuple[str, Any]]:
    root = f["model_weights"] if "layer_names" not in f.attrs and "model_weights" in f else f  # as Model.save writes it
    for layer in _names(root, "layer_names", path):
        group = _member(h5py, root, layer, path)
        if isinstance(group, h5py.Dataset):
            yield layer, group
            continue
        for name in _names(group, "weight_names", path):
            dataset = _member(h5py, group, name, path)
            if not isinstance(dataset, h5py.Dataset):
                raise damaged(path, f"{layer}/{name} is a group, expected an array")
            yield name.partition("/")[2] or name, dataset


def _names(group: Any, attribute: str, path: Path) -> list[str]:
    """The list of names in an attribute, joined where it was split."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
        if not parts:
            raise damaged(path, f"{group.name} has no attribute {attribute!r}")
    names = [name for part in parts for name in part]
    if len(names) > _MAX_NAMES or not all(isinstance(name, (str, bytes)) for name in names):
        raise damaged(path, f"{attribute} of {group.name} is not a list of names")
    return [name if isinstance(name, str) else name.decode("utf-8") for name in names]


def _member(h5py: Any, group: Any, name: str, path: Path) -> Any:
    link = group.get(name, getlink=True) if name in group else None
    if link is None:
        raise damaged(path, f"{group.name} lists {name!r}, which is not there")
    if not isinstance(link, h5py.HardLink):
        raise damaged(path, f"{name!r} in {group.name} is a link to somewhere else")  # could name any file of this machine
    return group[name]


def _read(dataset: Any, name: str, budget: int, path: Path) -> tuple[Any, int]:
    if dataset.dtype.kind != "f":
        raise damaged(path, f"{name} holds {dataset.dtype}, expected floating point numbers")
    if dataset.external or dataset.is_virtual:
        raise damaged(path, f"{name} keeps its values in another file")
    if dataset.nbytes > budget:
        raise damaged(path, f"{name} claims shape {dataset.shape} of {dataset.dtype}, more than the file can hold")
    return dataset[()], budget - dataset.nbytes
