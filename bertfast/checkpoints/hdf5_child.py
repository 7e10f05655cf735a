"""Reads one HDF5 file of Keras's and writes its weights to standard output: the program of the child process of hdf5.py.

It imports h5py and NumPy alone, and nothing of bertfast. What it writes: a line of JSON before each weight (name, shape, dtype of
NumPy), then the bytes of its values; at the end a line that says so, or one with what is wrong with the file.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

_MAX_NAMES = 100_000
_SLACK = 1 << 16  # bytes of attributes and headers that a tiny file may make us read
_ROOM = 1 << 26  # bytes that libhdf5 may take beside the arrays: its caches


class DamageError(Exception):
    """What is wrong with the file."""


def main(path: str, out: BinaryIO) -> None:
    import h5py

    limit_memory(os.path.getsize(path))
    try:
        with h5py.File(path, "r", locking=False) as f:
            budget = allowance(os.path.getsize(path))
            for name, dataset in datasets(h5py, f, os.path.getsize(path)):
                array, budget = values(dataset, name, budget)
                say(out, name=name, shape=array.shape, dtype=array.dtype.str)
                out.write(memoryview(array.reshape(-1)).cast("B") if array.size else b"")
                del array  # one at a time
    except DamageError as error:
        say(out, error=str(error))
    except BrokenPipeError:  # nobody reads on
        return
    except Exception as error:  # h5py raises what it likes: OSError, RuntimeError, KeyError, TypeError, UnicodeEncodeError ...
        say(out, error=f"HDF5 says: {error or type(error).__name__}")
    else:
        say(out, end=True)


def allowance(size: int) -> int:
    """How many bytes of arrays a file of this size may hold: Keras compresses nothing, so that more is a lie."""
    return 4 * size + _SLACK


def limit_memory(size: int) -> None:
    """What is allocated beyond a few times the file fails in this process."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + 2 * allowance(size) + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def say(out: BinaryIO, **what: Any) -> None:
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


def datasets(h5py: Any, f: Any, size: int) -> Iterator[tuple[str, Any]]:
    root = f["model_weights"] if "layer_names" not in f.attrs and "model_weights" in f else f  # as Model.save writes it
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


def names(group: Any, attribute: str, size: int) -> list[str]:
    """The list of names in an attribute, joined where it was split."""
    if attribute in group.attrs:
        parts = [listed(group, attribute, size)]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(listed(group, f"{attribute}{len(parts)}", size))
        if not parts:
            raise DamageError(f"{group.name} has no attribute {attribute!r}")
    return [name if isinstance(name, str) else name.decode("utf-8") for part in parts for name in part]


def listed(group: Any, attribute: str, size: int) -> list[Any]:
    """An attribute that is a list of names; what it claims is looked at before it is read."""
    claim = group.attrs.get_id(attribute)
    count = math.prod(claim.shape or ())
    if len(claim.shape or ()) != 1 or count > _MAX_NAMES or count * claim.dtype.itemsize > size:
        raise DamageError(f"{attribute} of {group.name} claims shape {claim.shape} of {claim.dtype}, expected a list of names")
    found = list(group.attrs[attribute]) if count else []
    if not all(isinstance(name, (str, bytes)) for name in found):
        raise DamageError(f"{attribute} of {group.name} is not a list of names")
    return found


def member(h5py: Any, group: Any, name: str) -> Any:
    """What `name` leads to, level by level: a link on the way could lead into any file of this machine."""
    found = group
    for level in filter(None, name.split("/")):
        link = found.get(level, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            raise DamageError(f"{group.name} lists {name!r}, which is not there")
        if not isinstance(link, h5py.HardLink):
            raise DamageError(f"{name!r} in {group.name} is a link to somewhere else")
        found = found[level]
    return found


def values(dataset: Any, name: str, budget: int) -> tuple[Any, int]:
    if dataset.dtype.kind != "f":
        raise DamageError(f"{name} holds {dataset.dtype}, expected floating point numbers")
    if dataset.external or dataset.is_virtual:
        raise DamageError(f"{name} keeps its values in another file")
    if dataset.nbytes > budget:
        raise DamageError(f"{name} claims shape {dataset.shape} of {dataset.dtype}, more than the file can hold")
    import numpy

    return numpy.ascontiguousarray(dataset[()]).reshape(dataset.shape), budget - dataset.nbytes


if __name__ == "__main__":
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print between the weights
    main(sys.argv[1], results)
