"""pytorch_model.bin: the tensors that were saved, or refused by name; nothing in it runs."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from bertfast.checkpoints import names, pickles
from tests.fuzz.case import Target
from tests.fuzz.damage import damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)

FILE = "pytorch_model.bin"


class TorchBin(FolderCase):
    code = "from bertfast.checkpoints import pickles\nprint(pickles.read(folder / 'pytorch_model.bin'))"

    def read(self, folder: Path) -> Any:
        whole, mapped = (pickles.read(folder / FILE, mapped=mapped) for mapped in (False, True))
        assert whole.keys() == mapped.keys()
        for name, tensor in whole.items():
            other = mapped[name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), f"{name} differs when it is mapped"
        return whole

    def judge(self, folder: Path, result: Any) -> None:
        again = torch.load(io.BytesIO(self.files[FILE]), weights_only=True)
        assert result.keys() == again.keys()
        for name, tensor in again.items():
            got = result[name]
            if tensor.is_sparse or tensor.is_quantized:
                continue
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape) and torch.equal(
                got.contiguous().view(-1).view(torch.uint8) if got.numel() else got,
                tensor.contiguous().view(-1).view(torch.uint8) if got.numel() else tensor,
            ), f"{name} differs"
            assert isinstance(name, str), f"a weight is called {name!r}"
            names.modernized(name)


def saved(content: Any, archive: bool = True) -> bytes:
    f = io.BytesIO()
    torch.save(content, f, _use_new_zipfile_serialization=archive)
    return f.getvalue()


BASE = torch.arange(6.0)
CONTENTS: dict[str, Any] = {
    "weights": {"a": BASE.view(2, 3), "b.LayerNorm.gamma": torch.ones(2, dtype=torch.bfloat16), "n": torch.arange(3)},
    "views": {"a": BASE, "b": BASE[2:], "c": BASE.view(2, 3).t(), "d": BASE[:1].expand(4), "e": BASE[:0]},
    "parameters": {"a": torch.nn.Parameter(BASE)},
    "nothing": {},
    "list": [BASE],
    "names": {1: BASE, None: BASE, ("a",): BASE},
    "nested": {"a": {"b": BASE}},
    "text": {"a": "b"},
    "sparse": {"a": torch.eye(3).to_sparse()},
    "complex": {"a": torch.ones(2, dtype=torch.complex64)},
    "scalar": {"a": torch.tensor(1.0)},
    "float8": {"a": torch.ones(4).to(torch.float8_e4m3fn)},
}
PICKLES = [
    b"\x80\x02}.",
    b"\x80\x02N.",
    b".",
    b"",
    b"\x80\x02",
    b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xff}.",
    b"\x80\x02}q\x00(X\x01\x00\x00\x00aN u.",
    b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
    b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    b"\x80\x02ctorch\nFloatStorage\n.",
    b"\x80\x02" + b"(" * 1000 + b"t" * 1000 + b".",
    b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".",
    b"\x80\x02ccollections\nOrderedDict\n)R.",
    b"\x80\x02I1\n.",
    b"\x80\x02I01\n.",
    b"\x80\x02h\x00.",
    b"\x80\x02Qq.",
    b"\x80\x02X\xff\xff\xff\xffab.",
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"\x80\x02L" + b"9" * 6000 + b"L\n.",
]


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A zip archive whose records are odd: missing, repeated, under other names, with another pickle."""
    source = zipfile.ZipFile(io.BytesIO(saved(CONTENTS[draw(st.sampled_from(sorted(CONTENTS)))])))
    records = [(record, source.read(record)) for record in source.namelist()]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(records) - 1))
        name, content = records[at]
        kind = draw(st.sampled_from(["pickle", "drop", "repeat", "rename", "empty", "damage", "byteorder"]))
        if kind == "drop" and len(records) > 1:
            del records[at]
        elif kind == "repeat":
            records.append((name, content[::-1]))
        elif kind == "rename":
            records[at] = (
                draw(st.sampled_from(["data.pkl", "x/data.pkl", "../data.pkl", "a/b/c", "archive/data/0", "archive/data/9", "", "/x"])),
                content,
            )
        elif kind == "empty":
            records[at] = (name, b"")
        elif kind == "damage":
            records[at] = (name, draw(damaged(content)))
        elif kind == "byteorder":
            records.append(("archive/byteorder", draw(st.sampled_from([b"big", b"little", b"x", b""]))))
        elif kind == "pickle":
            own = pickle.dumps(draw(st.sampled_from([{}, {"a": 1}, [], 3, {"a": b"x"}, {"a": [1] * 9}])), protocol=draw(st.integers(0, 5)))
            records = [(n, draw(st.sampled_from([own, *PICKLES])) if n.endswith("data.pkl") else c) for n, c in records]
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", draw(st.sampled_from([zipfile.ZIP_STORED] * 5 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))) as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content)
    return f.getvalue()


@st.composite
def files(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["archive", "archive", "damaged", "damaged", "old", "old pickles"]))
    if kind == "archive":
        return draw(archives())
    if kind == "old pickles":
        return b"".join(
            draw(st.lists(st.sampled_from([*PICKLES, *(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))]), max_size=5))
        )
    valid = saved(CONTENTS[draw(st.sampled_from(sorted(CONTENTS)))], archive=kind != "old")
    return draw(damaged(valid)) if draw(st.integers(0, 5)) else valid


TARGET = Target(files().map(lambda content: TorchBin({FILE: content})), batch=100)
