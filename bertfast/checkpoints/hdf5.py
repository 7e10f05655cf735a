"""`tf_model.h5`: the layout of Keras 2's `save_weights`.

A whole file lists its layers in the root attribute `layer_names`; each is a group whose attribute `weight_names` lists its datasets,
relative to the group. The first level of such a name is the Keras model's name, which may end in a counter and is dropped. In a shard
`layer_names` lists the datasets themselves, without model name or layers. An attribute above 64 KB is split into `layer_names0`,
`layer_names1`, ...

libhdf5 trusts the file: a few changed bytes make it read out of bounds, and an untrusted file must not crash the process. So h5py
runs in a child process (hdf5_child.py) with a memory limit, and sends the arrays over a pipe.
"""

import json
import math
import mmap
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bertfast.checkpoints.errors import damaged, missing_reader
from bertfast.checkpoints.hdf5_child import allowance
from bertfast.checkpoints.tensors import from_numpy

_HEAP = b"GCOL\x01\x00\x00\x00"  # signature and version of a global heap collection
_DTYPES = frozenset(f"{order}f{size}" for order in "<>" for size in (2, 4, 8))
_TIMEOUT = 60.0  # seconds without a byte from the child
_MAX_LINE = 1 << 20  # bytes
_MAX_HEAP_OBJECTS = 1_000_000  # of all heaps; BERT-large's file has 800
# Runs the child with this interpreter's sys.path: -I ignores the environment, and the child's folder is not on it.
_BOOT = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name without the Keras model's, tensor) of every weight. Raises ValueError for a damaged file, ImportError without h5py."""
    if find_spec("h5py") is None:
        raise missing_reader("h5py", path)
    _check_heaps(path)
    program = str(Path(__file__).with_name("hdf5_child.py"))
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), program, str(path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    )  # fmt: skip
    try:
        yield from _weights(_Pipe(child, path), path)
    finally:
        child.kill()
        child.communicate()


def _weights(pipe: "_Pipe", path: Path) -> Iterator[tuple[str, Tensor]]:
    budget = allowance(path.stat().st_size)
    while True:
        line = pipe.line()
        if "error" in line:
            raise damaged(path, line["error"])
        if "end" in line:
            return
        if line["dtype"] not in _DTYPES:
            raise damaged(path, f"{line['name']} holds {line['dtype']}, expected floating point numbers of 2, 4 or 8 bytes")
        shape, dtype = tuple(line["shape"]), np.dtype(line["dtype"])
        budget -= math.prod(shape) * dtype.itemsize
        if budget < 0:
            raise damaged(path, f"{line['name']} claims more bytes than the file can contain")
        array = np.empty(shape, dtype)
        pipe.fill(array.reshape(-1).view(np.uint8).data)
        yield line["name"], from_numpy(array)


class _Pipe:
    """The child's output. Raises ValueError, naming the file, where the child dies or stops responding."""

    def __init__(self, child: "subprocess.Popen[bytes]", path: Path) -> None:
        assert child.stdout is not None
        self.child, self.path, self.raw = child, path, child.stdout
        self.buffer = b""  # read from the pipe, not consumed yet

    def line(self) -> dict[str, Any]:
        while b"\n" not in self.buffer:
            if len(self.buffer) > _MAX_LINE:
                raise damaged(self.path, "the HDF5 library returned garbage for it")
            self.wait()
            self.buffer += self.raw.read(4096) or self.died()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return dict(json.loads(line))

    def fill(self, memory: memoryview) -> None:
        taken = min(len(memory), len(self.buffer))
        memory[:taken], self.buffer = self.buffer[:taken], self.buffer[taken:]
        while taken < len(memory):
            self.wait()
            got: int | None = self.raw.readinto(memory[taken:])  # type: ignore[attr-defined]  # unbuffered, so a RawIOBase
            if not got:
                self.died()
            else:
                taken += got

    def wait(self) -> None:
        if not select.select([self.raw], [], [], _TIMEOUT)[0]:
            raise damaged(self.path, f"the HDF5 library did not finish within {_TIMEOUT:.0f} s")

    def died(self) -> bytes:
        status = self.child.wait()
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        raise damaged(self.path, f"the HDF5 library crashed on it ({how})")


def _check_heaps(path: Path) -> None:
    """Refuses a damaged global heap (storage of variable-length strings), on which libhdf5 up to 2.0 loops forever.

    Source: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, "Disk Format: Level 1E": a signature, the size of the
    collection, then objects: index, reference count, 4 bytes, size. Index 0 is free space, and its size includes this 16-byte header.
    Heaps lie side by side: where they overlap or have too many objects, the file is refused, so the time is linear in its size.
    """
    objects = claimed = 0
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
                claimed += size
                if claimed > len(data):
                    raise damaged(path, f"the heap at byte {at} overlaps another")
                item = at + 16
                while item + 16 <= end:
                    index, _, _, length = struct.unpack_from("<HHIQ", data, item)
                    taken = length if index == 0 else 16 + (length + 7) // 8 * 8
                    if not 16 <= taken <= end - item:
                        raise damaged(path, f"the heap at byte {at} has an object of {length} bytes at byte {item}")
                    item += taken
                    objects += 1
                    if objects > _MAX_HEAP_OBJECTS:
                        raise damaged(path, f"its heaps have more than {_MAX_HEAP_OBJECTS:,} objects")
                at = data.find(_HEAP, at + 16)
