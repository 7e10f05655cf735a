"""`tf_model.h5`: the layout of Keras 2's `save_weights`.

A whole file names its layers in the root attribute `layer_names`; each is a group whose attribute `weight_names` names its
datasets, relative to the group, the first level being the Keras model's name (which may end in a counter, so it is dropped).
In a shard `layer_names` names the datasets themselves, without model name or layers. An attribute above 64 KB is split into
`layer_names0`, `layer_names1`, ...
"""

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from bertfast.checkpoints.errors import DamagedCheckpoint, damaged, reader
from bertfast.checkpoints.tensors import from_numpy

_MAX_NAMES = 100_000
_HEAP = b"GCOL\x01\x00\x00\x00"  # signature and version of a global heap collection
_SLACK = 1 << 16  # bytes of attributes and headers that a tiny file may make us read


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name below the Keras model's, tensor) of every weight. Raises ValueError for a damaged file, ImportError without h5py."""
    h5py = reader("h5py", path)
    _check_heaps(path)
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


def _check_heaps(path: Path) -> None:
    """Refuses a damaged global heap (where strings of any length lie), in which libhdf5 2.0 and earlier goes round for ever.

    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, "Disk Format: Level 1E": a signature, the size of the
    collection, then objects: index, references, 4 bytes, size; index 0 is what is free, and its size counts these 16 bytes too.
    """
    with path.open("rb") as f:
        if path.stat().st_size == 0:
            raise damaged(path, "the file is empty")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(_HEAP)
            while at >= 0:
                (size,) = struct.unpack_from("<Q", data, at + 8) if at + 16 <= len(data) else (len(data) + 1,)
                end = at + size
                if end > len(data):
                    raise damaged(path, f"the heap at byte {at} claims {size} bytes, {len(data) - at} are left")
                item = at + 16
                while item + 16 <= end:
                    index, _, _, length = struct.unpack_from("<HHIQ", data, item)
                    taken = length if index == 0 else 16 + (length + 7) // 8 * 8
                    if not 16 <= taken <= end - item:
                        raise damaged(path, f"the heap at byte {at} has an object of {length} bytes at byte {item}")
                    item += taken
                at = data.find(_HEAP, at + 16)


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
        parts = [_list(group, attribute, path)]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(_list(group, f"{attribute}{len(parts)}", path))
        if not parts:
            raise damaged(path, f"{group.name} has no attribute {attribute!r}")
    return [name if isinstance(name, str) else name.decode("utf-8") for part in parts for name in part]


def _list(group: Any, attribute: str, path: Path) -> list[Any]:
    """An attribute that is a list of names; what it claims is looked at before it is read."""
    claim = group.attrs.get_id(attribute)
    size = math.prod(claim.shape or ())
    if len(claim.shape or ()) != 1 or size > _MAX_NAMES or size * claim.dtype.itemsize > path.stat().st_size:
        raise damaged(path, f"{attribute} of {group.name} claims shape {claim.shape} of {claim.dtype}, expected a list of names")
    names = list(group.attrs[attribute]) if size else []
    if not all(isinstance(name, (str, bytes)) for name in names):
        raise damaged(path, f"{attribute} of {group.name} is not a list of names")
    return names


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
