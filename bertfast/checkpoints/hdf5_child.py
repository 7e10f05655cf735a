"""The child process of hdf5.py: reads one Keras HDF5 file and writes its weights to standard output.

It imports h5py and NumPy, and nothing of bertfast. Output: for each weight a line of JSON (name, shape, NumPy dtype) and the bytes of
its values; then the line {"end": true}, or a line {"error": ...}.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from h5py import Dataset, Group

_MAX_NAMES = 100_000
_SLACK = 1 << 16  # bytes allowed for attributes and headers of a tiny file
_SECONDS = 30  # of processor time, for a tiny file: importing h5py takes half a second
_BYTES_A_SECOND = 10_000_000  # read and written by a slow machine
_LIBRARY_MEMORY = 1 << 26  # bytes that libhdf5 may use beside the arrays, for caches


class DamageError(Exception):
    """The file is damaged; the message says how."""


def main(path: str, out: BinaryIO) -> None:
    import h5py

    limit_resources(os.path.getsize(path))
    try:
        with h5py.File(path, "r", locking=False) as f:
            budget = allowance(os.path.getsize(path))
            for name, dataset in datasets(h5py, f, os.path.getsize(path)):
                array, budget = values(dataset, name, budget)
                write_line(out, name=name, shape=array.shape, dtype=array.dtype.str)
                out.write(array.reshape(-1).data.cast("B") if array.size else b"")
                del array  # one at a time
    except DamageError as error:
        write_line(out, error=str(error))
    except BrokenPipeError:  # the parent stopped reading
        return
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError, TypeError, UnicodeEncodeError ...
        write_line(out, error=f"HDF5 says: {error or type(error).__name__}")
    else:
        write_line(out, end=True)


def allowance(size: int) -> int:
    """Bytes of arrays that a file of `size` bytes may contain. Keras does not compress; more is a false claim."""
    return 4 * size + _SLACK


def limit_resources(size: int) -> None:
    """Limits this process's memory to a few times the file, so that larger allocations fail, and its processor time."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + 2 * allowance(size) + _LIBRARY_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = _SECONDS + size // _BYTES_A_SECOND
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if most == resource.RLIM_INFINITY else min(seconds, most), most))


def write_line(out: BinaryIO, **what: object) -> None:
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


def datasets(h5py: ModuleType, f: "Group", size: int) -> Iterator[tuple[str, "Dataset"]]:
    saved_whole = "layer_names" not in f.attrs and link_of(h5py, f, "model_weights") is not None  # the layout of Model.save
    root = member(h5py, f, "model_weights") if saved_whole else f
    for layer in names(root, "layer_names", size):
        group = member(h5py, root, layer)
        if isinstance(group, h5py.Dataset):
            yield layer, group
            continue
        for name in names(group, "weight_names", size):
            dataset = member(h5py, group, name)
            if not isinstance(dataset, h5py.Dataset):
                raise DamageError(f"{layer}/{name} is a group, expected an array")
            yield name.partition("/")[2] or name, dataset


def names(group: "Group", attribute: str, size: int) -> list[str]:
    """The names in an attribute, which may be split into numbered parts."""
    if attribute in group.attrs:
        parts = [listed(group, attribute, size)]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(listed(group, f"{attribute}{len(parts)}", size))
        if not parts:
            raise DamageError(f"{group.name} has no attribute {attribute!r}")
    return [name if isinstance(name, str) else name.decode("utf-8") for part in parts for name in part]


def listed(group: "Group", attribute: str, size: int) -> list[str | bytes]:
    """An attribute that is a list of names; its claimed size is checked before it is read."""
    claim = group.attrs.get_id(attribute)
    count = math.prod(claim.shape or ())
    if len(claim.shape or ()) != 1 or count > _MAX_NAMES or count * claim.dtype.itemsize > size:
        raise DamageError(f"{attribute} of {group.name} claims shape {claim.shape} of {claim.dtype}, expected a list of names")
    found = list(group.attrs[attribute]) if count else []
    if not all(isinstance(name, (str, bytes)) for name in found):
        raise DamageError(f"{attribute} of {group.name} is not a list of names")
    return found


def member(h5py: ModuleType, group: "Group", name: str) -> "Group | Dataset":
    """The member `name`, resolved level by level: a soft or external link could lead to any file of this machine."""
    found = group
    for level in filter(None, name.split("/")):
        link = link_of(h5py, found, level) if isinstance(found, h5py.Group) else None
        if link is None:
            raise DamageError(f"{group.name} lists {name!r}, but has no such member")
        if link != h5py.h5l.TYPE_HARD:
            raise DamageError(f"{name!r} in {group.name} is a soft or external link")
        found = found[level]
    return found


def link_of(h5py: ModuleType, group: "Group", level: str) -> int | None:
    """The type of a link in a group, None where there is none. Does not follow it, as `in` and Group.get do: it may lead to a pipe."""
    name = level.encode("utf-8", "surrogateescape")
    return group.id.links.get_info(name).type if group.id.links.exists(name) else None


def values(dataset: "Dataset", name: str, budget: int) -> "tuple[npt.NDArray[np.generic], int]":
    if dataset.shape is None:
        raise DamageError(f"{name} has no values")
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
        raise DamageError(f"{name} holds {dataset.dtype}, expected floating point numbers")
    if dataset.external or dataset.is_virtual:
        raise DamageError(f"{name} stores its values in another file")
    if dataset.nbytes > budget:
        raise DamageError(f"{name} claims shape {dataset.shape} of {dataset.dtype}, more than the file can contain")
    import numpy

    return numpy.ascontiguousarray(dataset[()]).reshape(dataset.shape), budget - dataset.nbytes


if __name__ == "__main__":
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep output of libraries out of the results
    main(sys.argv[1], results)
