"""model.safetensors: the tensors that safetensors' own reader finds, under PyTorch's names, or refused by name."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from bertfast import checkpoints
from bertfast.checkpoints import names
from tests.fuzz.case import Target
from tests.fuzz.damage import NUMBERS, damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)
from tests.fuzz.json_damage import edited_json

FILE = "model.safetensors"
NAMES = ["a", "b.weight", "e.LayerNorm.gamma", "e.LayerNorm.weight", "dense.kernel", "x/kernel:0", "words.embedding", "", "é", "a" * 300]
DTYPES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F4": 1,
    "F31": 4,
    "f32": 4,
}


class Safetensors(FolderCase):
    code = "from bertfast import checkpoints\nprint(checkpoints.read_weights(checkpoints.detect(folder)))"

    def read(self, folder: Path) -> Any:
        found = checkpoints.detect(folder)
        assert found is not None
        return found.format, {name: t.clone() for name, t in checkpoints.read_weights(found).items()}

    def judge(self, folder: Path, result: Any) -> None:
        kind, read = result
        try:
            expected = load(self.files[FILE])  # the library's own reader of bytes; ours maps the file
        except KeyError:  # it has not all dtypes of the other
            return
        translate = {
            "safetensors": names.modernized,
            "tf_safetensors": lambda n: names.from_tf(n)[0],
            "flax_safetensors": lambda n: names.from_flax(n)[0],
        }
        assert read.keys() == {translate[kind](name) for name in expected}, f"read {sorted(read)}, expected {sorted(expected)}"
        for name, tensor in expected.items():
            got = read[translate[kind](name)]
            same = got.dtype == tensor.dtype and got.numel() == tensor.numel()
            assert same and sorted(got.reshape(-1).view(torch.uint8).tolist()) == sorted(tensor.reshape(-1).view(torch.uint8).tolist()), (
                f"{name} differs"
            )

    def judge_refusal(self, folder: Path, error: Exception) -> None:
        try:
            known = load(self.files[FILE])
        except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, AttributeError):
            return
        foreign = any(name.endswith(":0") or name.rpartition(".")[2] in ("kernel", "embedding", "scale") for name in known)
        collide = len({names.modernized(name) for name in known}) < len(known)
        assert not known or foreign or collide or b'"tf"' in self.files[FILE] or b'"flax"' in self.files[FILE], (
            f"refused what safetensors reads: {error}"
        )


def container(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", (len(header) if length is None else length) % 2**64) + header + body


@st.composite
def entries(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A valid header, and the bytes that it describes."""
    header: dict[str, Any] = {}
    if draw(st.booleans()):
        header["__metadata__"] = {"format": draw(st.sampled_from(["pt", "tf", "flax", "np", ""]))}
    at = 0
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4)):
        dtype, shape = draw(st.sampled_from(["F32"] * 30 + [*DTYPES])), draw(st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=3))
        size = DTYPES[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header, at


@st.composite
def files(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["damaged", "valid", "valid", "header", "lies"]))
    if kind == "damaged":
        tensors = {"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(2, dtype=torch.bfloat16), "n": torch.arange(3)}
        return draw(damaged(save(tensors, {"format": "pt"})))
    header, size = draw(entries())
    body = bytes(i % 2 for i in range(size))  # a bool is 0 or 1
    if kind == "valid":
        return container(json.dumps(header).encode(), body)
    if kind == "header":
        return container(draw(edited_json(header, ("__metadata__", "dtype", "shape", "data_offsets", "a"))), body)
    text = json.dumps(header).encode() + b" " * draw(st.integers(0, 9))
    return container(
        text, body[: draw(st.integers(0, size))] + draw(st.binary(max_size=9)), draw(st.sampled_from([len(text), *NUMBERS, -1, 10**8]))
    )


TARGET = Target(files().map(lambda content: Safetensors({FILE: content})), batch=200)
