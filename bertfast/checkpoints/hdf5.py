"""`tf_model.h5`: the layout of Keras 2's `save_weights`.

A whole file names its layers in the root attribute `layer_names`; each is a group whose attribute `weight_names` names its
datasets, relative to the group, the first level being the Keras model's name (which may end in a counter, so it is dropped).
In a shard `layer_names` names the datasets themselves, without model name or layers. An attribute above 64 KB is split into
`layer_names0`, `layer_names1`, ...

libhdf5 believes what a file says of itself: a few changed bytes make it read out of bounds, and a process that reads a file from
the internet must not end by a signal. So h5py runs in a process of its own (hdf5_child.py), under a limit of memory; it sends the
arrays over a pipe, and what happens to it happens to nobody else.
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
_PATIENCE = 60.0  # seconds without a byte from the child
_MAX_LINE = 1 << 20  # bytes
# On this interpreter's path, whatever the environment says, and without the child's own folder.
_BOOT = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name below the Keras model's, tensor) of every weight. Raises ValueError for a damaged file, ImportError without h5py."""
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
        shape, dtype = tuple(line["shape"]), np.dtype(line["dtype"])
        budget -= math.prod(shape) * dtype.itemsize
        if budget < 0:
            raise damaged(path, f"{line['name']} is more than the file can hold")
        array = np.empty(shape, dtype)
        pipe.fill(array.reshape(-1).view(np.uint8).data)
        yield line["name"], from_numpy(array)


class _Pipe:
    """What the child writes. Raises ValueError, naming the file, where it dies or does not come back."""

    def __init__(self, child: "subprocess.Popen[bytes]", path: Path) -> None:
        assert child.stdout is not None
        self.child, self.path, self.raw = child, path, child.stdout
        self.ahead = b""  # read, and not asked for yet

    def line(self) -> dict[str, Any]:
        while b"\n" not in self.ahead:
            if len(self.ahead) > _MAX_LINE:
                raise damaged(self.path, "the HDF5 library fails on it")
            self.wait()
            self.ahead += self.raw.read(4096) or self.died()
        line, _, self.ahead = self.ahead.partition(b"\n")
        return dict(json.loads(line))

    def fill(self, memory: memoryview) -> None:
        taken = min(len(memory), len(self.ahead))
        memory[:taken], self.ahead = self.ahead[:taken], self.ahead[taken:]
        while taken < len(memory):
            self.wait()
            got: int | None = self.raw.readinto(memory[taken:])  # type: ignore[attr-defined]  # unbuffered, so a RawIOBase
            if not got:
                self.died()
            else:
                taken += got

    def wait(self) -> None:
        if not select.select([self.raw], [], [], _PATIENCE)[0]:
            raise damaged(self.path, f"the HDF5 library has not come back from it in {_PATIENCE:.0f} s")

    def died(self) -> bytes:
        status = self.child.wait()
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        raise damaged(self.path, f"the HDF5 library crashes on it ({how})")


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
