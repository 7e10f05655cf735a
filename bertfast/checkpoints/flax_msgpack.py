"""`flax_model.msgpack`: the nested dict of arrays that flax.serialization writes.

A tree of msgpack maps with string keys. A leaf is ext type 1 (a packed triple: shape, dtype name, bytes in C order), ext type 3 (a
scalar in the same form), or, where Flax split an array above 2**30 bytes, a map with `__msgpack_chunked_array__`.

The msgpack package decodes names, numbers and bytes under length limits. Maps and lists are opened one header at a time, so that depth
and number of entries are checked before anything is made of them: under max_map_len and max_array_len alone, a nested dict or list
costs 60 times the bytes that it takes in the file.
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertfast.checkpoints.errors import DamagedCheckpoint, damaged, missing_reader
from bertfast.checkpoints.tensors import from_numpy

Array: TypeAlias = npt.NDArray[np.generic] | Tensor  # bfloat16, which NumPy lacks, is a Tensor

_ARRAY, _SCALAR = 1, 3  # ext types
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32  # levels of the tree
_MAX_DIMS = 32  # of an array
_MAX_NAME = 1024  # bytes
_MAX_ENTRIES = 50_000  # of all maps of the file; BERT-large has 800
_READ_SIZE = 1 << 16  # bytes
_NO_CONTAINERS = {"max_array_len": 0, "max_map_len": 0}
_MAX_HEAD = 4096  # bytes that the shape and the dtype of an array may take
_DTYPES = frozenset(["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"])


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(levels joined by `/`, tensor) of every leaf, in file order. Raises ValueError for a damaged file, ImportError without msgpack."""
    if find_spec("msgpack") is None:
        raise missing_reader("msgpack", path)
    with path.open("rb") as f:
        try:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # mmap refuses an empty file
            raise damaged(path, "the file is empty") from error
        with data:
            tree = _Reader(data, path).tree()
    yield from _leaves(tree, "", path)


class _Reader:
    """Decodes one file into a tree of dicts and arrays."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        import msgpack

        self.data, self.path, self.entries = data, path, 0
        self.unpacker = msgpack.Unpacker(
            data, read_size=_READ_SIZE, max_buffer_size=max(len(data), _READ_SIZE), max_ext_len=len(data), max_str_len=_MAX_NAME,
            max_bin_len=0, strict_map_key=True, ext_hook=self.array, **_NO_CONTAINERS,
        )  # fmt: skip
        self.errors = (ValueError, msgpack.UnpackException)

    def tree(self) -> dict[str, object]:
        try:
            tree = self.value(0)
        except DamagedCheckpoint:
            raise
        except self.errors as error:
            raise damaged(self.path, f"msgpack fails at byte {self.unpacker.tell()}: {error or type(error).__name__}") from error
        if not isinstance(tree, dict):
            raise damaged(self.path, f"its root is a {type(tree).__name__}, expected a tree of parameters")
        if self.unpacker.tell() != len(self.data):
            raise damaged(self.path, f"{len(self.data) - self.unpacker.tell()} bytes follow the tree of parameters")
        return tree

    def value(self, depth: int) -> object:
        if not self.at_map():
            return self.unpacker.unpack()
        if depth == _MAX_DEPTH:
            raise damaged(self.path, f"its tree is deeper than {_MAX_DEPTH} levels")
        count = self.unpacker.read_map_header()
        self.entries += count
        if self.entries > _MAX_ENTRIES:
            raise damaged(self.path, f"its maps have more than {_MAX_ENTRIES} entries")
        return {self.name(): self.value(depth + 1) for _ in range(count)}

    def at_map(self) -> bool:
        """Whether the next value is a map: its first byte is that of a fixmap, map 16 or map 32 (msgpack's specification)."""
        at = self.unpacker.tell()
        return at < len(self.data) and (0x80 <= self.data[at] <= 0x8F or self.data[at] in (0xDE, 0xDF))

    def name(self) -> str:
        name = self.unpacker.unpack()
        if not isinstance(name, str):
            raise damaged(self.path, f"a {type(name).__name__} before byte {self.unpacker.tell()}, expected the name of a parameter")
        return name

    def array(self, code: int, payload: bytes) -> Array:
        """msgpack's ext_hook."""
        import msgpack

        if code not in (_ARRAY, _SCALAR):
            raise damaged(self.path, f"a value of extension type {code}, expected an array")
        head = msgpack.Unpacker(
            max_buffer_size=_MAX_HEAD, read_size=_MAX_HEAD, max_str_len=_MAX_NAME, max_bin_len=0, max_ext_len=0, **_NO_CONTAINERS
        )
        head.feed(payload[:_MAX_HEAD])
        parts, dims = head.read_array_header(), head.read_array_header()
        if parts != 3 or dims > _MAX_DIMS:
            raise damaged(self.path, "an array is not a shape, a dtype and bytes")
        shape, dtype = tuple(head.unpack() for _ in range(dims)), head.unpack()
        raw = msgpack.unpackb(memoryview(payload)[head.tell() :], max_str_len=0, max_bin_len=len(payload), max_ext_len=0, **_NO_CONTAINERS)
        if not _is_shape(shape) or not isinstance(raw, bytes):
            raise damaged(self.path, "an array is not a shape, a dtype and bytes")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise damaged(self.path, f"an array has the dtype {str(dtype)[:40]!r}")
        stored = np.dtype("<i2" if dtype == "bfloat16" else dtype).newbyteorder("<")
        if math.prod(shape) * stored.itemsize != len(raw) or (len(raw) == 0 and math.prod(n or 1 for n in shape) > 1 << 40):
            raise damaged(self.path, f"an array claims shape {str(shape)[:80]} of {dtype} and has {len(raw)} bytes")
        array = np.frombuffer(raw, stored).reshape(shape)
        return from_numpy(array).view(torch.bfloat16) if dtype == "bfloat16" else array


def _is_shape(value: Sequence[object] | None) -> TypeGuard[Sequence[int]]:
    return value is not None and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _leaves(tree: dict[str, object], prefix: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    for name in list(tree):
        value = tree.pop(name)  # the caller may free each tensor before the next
        if isinstance(value, dict) and _CHUNKED in value:
            value = _join(prefix + name, value, path)
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/", path)
        elif isinstance(value, (np.ndarray, Tensor)):
            yield prefix + name, value if isinstance(value, Tensor) else from_numpy(value)
        else:
            raise damaged(path, f"{prefix}{name} is {str(value)[:80]!r}, expected an array")


def _join(name: str, parts: dict[str, object], path: Path) -> Array:
    """The array that Flax split: {"shape": {"0": rows, ...}, "chunks": {"0": array, ...}}."""
    shape, chunks = _numbered_list(parts.get("shape")), _numbered_list(parts.get("chunks"))
    if not _is_shape(shape) or not chunks or not (_all(chunks, np.ndarray) or _all(chunks, Tensor)):
        raise damaged(path, f"the chunks of {name} are not a shape and arrays")
    if len({chunk.dtype for chunk in chunks}) > 1 or math.prod(shape) != sum(math.prod(chunk.shape) for chunk in chunks):
        raise damaged(path, f"the chunks of {name} do not add up to its shape {tuple(shape)}")
    flat = [chunk.reshape(-1) for chunk in chunks]
    joined = torch.cat(flat) if isinstance(flat[0], Tensor) else np.concatenate(flat)
    return joined.reshape(tuple(shape))


def _numbered_list(numbered: object) -> list[Any] | None:
    """The list that Flax wrote as {"0": ..., "1": ...}."""
    if not isinstance(numbered, dict) or set(numbered) != {str(i) for i in range(len(numbered))}:
        return None
    return [numbered[str(i)] for i in range(len(numbered))]


def _all(values: Sequence[object], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)
