"""flax_model.msgpack: the arrays that were packed, or refused by name."""

import math
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from hypothesis import strategies as st

from bertfast.checkpoints import flax_msgpack
from tests.fuzz.case import Target
from tests.fuzz.damage import NUMBERS, damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)

FILE = "flax_model.msgpack"
DTYPES = [
    "float32",
    "float16",
    "float64",
    "bfloat16",
    "int8",
    "int64",
    "bool",
    "uint16",
    "complex64",
    "object",
    "S3",
    "<f4",
    "datetime64",
    "f",
    "",
]


class Msgpack(FolderCase):
    code = "from bertfast.checkpoints import flax_msgpack\nprint(list(flax_msgpack.read(folder / 'flax_model.msgpack')))"

    def read(self, folder: Path) -> Any:
        return list(flax_msgpack.read(folder / FILE))

    def judge(self, folder: Path, result: Any) -> None:
        expected = list(leaves("", unpacked(self.files[FILE])))
        assert [name for name, _ in result] == [name for name, _ in expected]
        for (name, tensor), (_, (shape, _, raw)) in zip(result, expected, strict=True):
            assert tuple(tensor.shape) == tuple(shape), f"{name} is {tuple(tensor.shape)}, packed as {shape}"
            got = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            assert got == raw, f"{name} differs"


def unpacked(content: bytes) -> Any:
    """The tree, by msgpack alone: a leaf is (shape, dtype, bytes)."""

    def ext(code: int, payload: bytes) -> Any:
        return ("leaf", msgpack.unpackb(payload, strict_map_key=False))

    return msgpack.unpackb(content, ext_hook=ext, strict_map_key=False, raw=False)


def leaves(prefix: str, tree: Any) -> Any:
    for name, value in tree.items():
        if isinstance(value, dict) and "__msgpack_chunked_array__" in value:
            parts = [value["chunks"][str(i)][1] for i in range(len(value["chunks"]))]
            shape = [value["shape"][str(i)] for i in range(len(value["shape"]))]
            yield prefix + name, (shape, parts[0][1], b"".join(part[2] for part in parts))
        elif isinstance(value, dict):
            yield from leaves(f"{prefix}{name}/", value)
        else:
            yield prefix + name, value[1]


@st.composite
def arrays(draw: st.DrawFn) -> msgpack.ExtType:
    """An array as Flax packs it; now and then with a wrong shape, dtype or form."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3))
    dtype = draw(st.sampled_from(["float32", "float32", "bfloat16", *DTYPES]))
    raw = b"\x01" * (
        math.prod(shape)
        * (np.dtype(dtype).itemsize if dtype in ("float32", "float16", "float64", "int8", "int64", "bool", "uint16") else 2)
    )
    form: list[Any] = [shape, dtype, raw]
    if draw(st.integers(0, 3)) == 0:
        odd = st.sampled_from([None, -1, "x", b"x", [], [[1]], {}, [2**40, 2**40], [True], [1.5], [-1], [0, 2**60], *NUMBERS[:-1]])
        form[draw(st.integers(0, 2))] = draw(odd)
    if draw(st.integers(0, 15)) == 0:
        form = draw(st.sampled_from([form[:2], [*form, 1], [], form[::-1]]))
    return msgpack.ExtType(draw(st.sampled_from([1, 1, 1, 3, 3, 2, 7])), msgpack.packb(form))


def chunked(array: msgpack.ExtType, second: msgpack.ExtType, shape: Any) -> dict[str, Any]:
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": {"0": array, "1": second}}


chunks = st.builds(
    chunked, arrays(), arrays(), st.sampled_from([{"0": 2}, {"0": 4}, {"0": 2, "1": 1}, {"1": 2}, {}, [2], None, {"0": -1}, {"0": "2"}])
)
keys = st.one_of(
    st.sampled_from(["a", "kernel", "", "é", "0", "x" * 1100, "a/b", "__msgpack_chunked_array__"]),
    st.integers(-1, 2),
    st.none(),
    st.binary(max_size=2),
)
names = st.sampled_from(["a", "kernel", "b"])
leaf = st.one_of(
    arrays(), arrays(), arrays(), chunks, st.none(), st.integers(-5, 5), st.text(max_size=2), st.binary(max_size=2), st.just([1])
)
trees = st.recursive(
    st.dictionaries(names, leaf, max_size=3),
    lambda inner: st.dictionaries(st.one_of(names, names, keys), st.one_of(inner, arrays()), max_size=3),
    max_leaves=6,
)


def deep(levels: int) -> bytes:
    return b"\x81\xa1a" * levels + b"\x80"


@st.composite
def files(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["tree", "tree", "damaged", "damaged", "deep", "headers"]))
    if kind == "deep":
        return deep(draw(st.sampled_from([31, 32, 33, 1000, 100_000])))
    if kind == "headers":
        heads = [
            b"\xdf\xff\xff\xff\xff",
            b"\xde\xff\xff",
            b"\x8f",
            b"\xdd\xff\xff\xff\xff",
            b"\xa1a",
            b"\xc7\x00\x01",
            b"\xc9\x7f\xff\xff\xff\x01",
            b"\xdb\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xc1",
            b"\x81",
            b"\xd4\x01\x00",
        ]
        return b"".join(draw(st.lists(st.sampled_from(heads), max_size=6)))
    packed: bytes = msgpack.packb(draw(trees))
    return draw(damaged(packed)) if kind == "damaged" else packed


TARGET = Target(files().map(lambda content: Msgpack({FILE: content})), batch=200)
