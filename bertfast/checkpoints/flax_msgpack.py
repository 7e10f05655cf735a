"""`flax_model.msgpack`: the nested dict of arrays that flax.serialization writes.

A tree of msgpack maps with string keys; a leaf is ext type 1 (a packed triple: shape, dtype name, bytes in C order), ext
type 3 (a scalar, in the same form), or, where flax split an array above 2**30 bytes, a map with `__msgpack_chunked_array__`.

That is little of msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md), so it is read here, out of the mapped
file: an array is looked at where it lies and copied once, and no number in the file is believed before the bytes it
speaks of are there. A general decoder makes an object of every byte of a hostile file first.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertfast.checkpoints.errors import damaged
from bertfast.checkpoints.tensors import from_numpy

_ARRAY, _SCALAR = 1, 3  # ext types
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32  # levels of the tree
_MAX_DIMS = 32  # of an array
_MAX_NAME = 1024  # bytes
_MAX_ENTRIES = 50_000  # of the whole file; BERT-large has 800
_DTYPES = frozenset(["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"])

# First byte -> how the length that follows it is packed.
_LENGTHS = {
    "map": {0xDE: ">H", 0xDF: ">I"},
    "array": {0xDC: ">H", 0xDD: ">I"},
    "str": {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"},
    "bin": {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"},
    "ext": {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"},
    "int": {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_KIND = {first: (kind, packed) for kind, table in _LENGTHS.items() for first, packed in table.items()}
_FIX_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(levels joined by `/`, tensor) of every leaf, in the order of the file. Raises ValueError for a damaged one."""
    with path.open("rb") as f:
        try:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # mmap refuses an empty file
            raise damaged(path, "the file is empty") from error
    # Not closed here: an array that is still a view of it may be alive in the caller's traceback.
    cursor = _Cursor(memoryview(data), path)
    tree = cursor.value()
    if not isinstance(tree, dict):
        raise damaged(path, f"its root is a {type(tree).__name__}, expected a tree of parameters")
    if cursor.at != len(data):
        raise damaged(path, f"{len(data) - cursor.at} bytes follow the tree of parameters")
    yield from _leaves(tree, "", path)


@dataclass
class _Cursor:
    """Reads values one after the other; `at` is the offset of the next."""

    data: memoryview
    path: Path
    at: int = 0
    entries: int = 0

    def value(self, depth: int = 0) -> Any:
        kind, size = self._head()
        if kind == "map":
            if depth == _MAX_DEPTH:
                raise damaged(self.path, f"its tree is deeper than {_MAX_DEPTH} levels")
            return {self._name(): self.value(depth + 1) for _ in range(self._count(size))}
        if kind == "ext":
            code = self._unpack(">b")
            return self._leaf(code, self._bytes(size))
        if kind in ("constant", "int", "float"):
            return size
        raise damaged(self.path, f"a {kind} at byte {self.at} where an array was expected")

    def _head(self) -> tuple[str, Any]:
        """Kind of the next value and its length, or the value itself where it is that short."""
        first = self._unpack(">B")
        if first < 0x80:
            return "int", first
        if first < 0x90:
            return "map", first & 0x0F
        if first < 0xA0:
            return "array", first & 0x0F
        if first < 0xC0:
            return "str", first & 0x1F
        if first >= 0xE0:
            return "int", first - 0x100
        if first in _CONSTANTS:
            return "constant", _CONSTANTS[first]
        if first in _FIX_EXT:
            return "ext", _FIX_EXT[first]
        if first in (0xCA, 0xCB):
            return "float", self._unpack(">f" if first == 0xCA else ">d")
        if first not in _KIND:
            raise damaged(self.path, f"byte {self.at - 1} starts no msgpack value")
        kind, packed = _KIND[first]
        return kind, self._unpack(packed)

    def _unpack(self, packed: str) -> Any:
        return struct.unpack(packed, self._bytes(struct.calcsize(packed)))[0]

    def _bytes(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise damaged(self.path, f"{size} bytes are claimed at byte {self.at}, {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def _count(self, entries: int) -> int:
        self.entries += entries
        if entries > len(self.data) - self.at or self.entries > _MAX_ENTRIES:
            raise damaged(self.path, f"a map of {entries} entries at byte {self.at}")
        return int(entries)

    def _name(self) -> str:
        kind, size = self._head()
        if kind != "str" or size > _MAX_NAME:
            raise damaged(self.path, f"a {kind} at byte {self.at} where the name of a parameter was expected")
        try:
            return str(self._bytes(size), "utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"the name at byte {self.at - size} is not UTF-8") from error

    def _leaf(self, code: int, payload: memoryview) -> "np.ndarray[Any, Any] | Tensor":
        if code not in (_ARRAY, _SCALAR):
            raise damaged(self.path, f"a value of extension type {code} at byte {self.at}, expected an array")
        inner = _Cursor(payload, self.path)
        if inner._head() != ("array", 3):
            raise damaged(self.path, f"the array that ends at byte {self.at} is not a shape, a dtype and bytes")
        shape, dtype, raw = inner._shape(), inner._name(), inner._binary()
        if dtype not in _DTYPES:
            raise damaged(self.path, f"the array that ends at byte {self.at} has the dtype {dtype[:40]!r}")
        wide = np.dtype("<i2" if dtype == "bfloat16" else dtype).newbyteorder("<")
        if math.prod(shape) * wide.itemsize != len(raw) or (len(raw) == 0 and math.prod(n or 1 for n in shape) > 1 << 40):
            raise damaged(self.path, f"the array that ends at byte {self.at} claims shape {shape} of {dtype} and brings {len(raw)} bytes")
        array = np.frombuffer(raw, wide).reshape(shape)
        return from_numpy(array).view(torch.bfloat16) if dtype == "bfloat16" else array  # NumPy has no bfloat16

    def _shape(self) -> tuple[int, ...]:
        kind, dims = self._head()
        if kind == "array" and dims <= _MAX_DIMS:
            heads = [self._head() for _ in range(dims)]
            if all(kind == "int" and n >= 0 for kind, n in heads):
                return tuple(n for _, n in heads)
        raise damaged(self.path, "the shape of an array is not a list of sizes")

    def _binary(self) -> memoryview:
        kind, size = self._head()
        if kind != "bin":
            raise damaged(self.path, f"the values of an array are a {kind}, expected bytes")
        return self._bytes(size)


def _leaves(tree: dict[str, Any], prefix: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    for name in list(tree):
        value = tree.pop(name)  # so that each tensor is free as soon as its reader is done with it
        if isinstance(value, dict) and _CHUNKED in value:
            value = _join(prefix + name, value, path)
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/", path)
        elif isinstance(value, (np.ndarray, Tensor)):
            yield prefix + name, value if isinstance(value, Tensor) else from_numpy(value)
        else:
            raise damaged(path, f"{prefix}{name} is {value!r}, expected an array")


def _join(name: str, parts: dict[str, Any], path: Path) -> "np.ndarray[Any, Any] | Tensor":
    """The array that flax split: {"shape": {"0": rows, ...}, "chunks": {"0": array, ...}}."""
    shape, chunks = _values(parts.get("shape")), _values(parts.get("chunks"))
    if shape is None or not chunks or not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in shape):
        raise damaged(path, f"the chunks of {name} are not a shape and arrays")
    if not all(isinstance(chunk, np.ndarray) for chunk in chunks) and not all(isinstance(chunk, Tensor) for chunk in chunks):
        raise damaged(path, f"the chunks of {name} are not a shape and arrays")
    if len({chunk.dtype for chunk in chunks}) > 1 or math.prod(shape) != sum(math.prod(chunk.shape) for chunk in chunks):
        raise damaged(path, f"the chunks of {name} do not add up to its shape {tuple(shape)}")
    flat = [chunk.reshape(-1) for chunk in chunks]
    joined = torch.cat(flat) if isinstance(flat[0], Tensor) else np.concatenate(flat)
    return joined.reshape(tuple(shape))


def _values(numbered: Any) -> list[Any] | None:
    """The list that flax wrote as {"0": ..., "1": ...}."""
    if not isinstance(numbered, dict) or set(numbered) != {str(i) for i in range(len(numbered))}:
        return None
    return [numbered[str(i)] for i in range(len(numbered))]
