"""tf_model.h5: the arrays that h5py finds under the names in its attributes, or refused by name; libhdf5 may crash in its child alone."""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from hypothesis import strategies as st

from bertfast.checkpoints import hdf5
from tests.fuzz.case import Target
from tests.fuzz.damage import damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)

FILE = "tf_model.h5"


class Hdf5(FolderCase):
    code = "from bertfast.checkpoints import hdf5\nprint(list(hdf5.read(folder / 'tf_model.h5')))"
    seconds = 60.0  # of the child, whose limit is 30

    def read(self, folder: Path) -> Any:
        return list(hdf5.read(folder / FILE))

    def judge(self, folder: Path, result: Any) -> None:
        for name, tensor in result:
            assert isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.is_floating_point(), f"{name}: {tensor}"

    def judge_refusal(self, folder: Path, error: Exception) -> None:
        assert not self.files[FILE].endswith(VALID), f"refused a valid file: {error}"


VALID = b"valid as written"  # behind the file's end, where no reader looks


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A file made by h5py, in Keras's layout or nearly."""
    f = io.BytesIO()
    odd = draw(st.booleans())
    with h5py.File(f, "w", libver=draw(st.sampled_from(["earliest", "latest"]))) as file:
        root = file.create_group("model_weights") if draw(st.integers(0, 3)) == 0 else file
        layers = ["bert", "classifier"][: draw(st.integers(1, 2))]
        listed: Any = [layer.encode() for layer in layers]
        if odd:
            listed = draw(
                st.sampled_from(
                    [
                        listed,
                        layers,
                        [],
                        3,
                        "bert",
                        [b"none"],
                        [b"\xff"],
                        [1.5],
                        np.empty(0),
                        [b"bert"] * 3,
                        [b"/"],
                        [b"../bert"],
                        [b""],
                        [b"bert/m/k:0"],
                        [["a", "b"]],
                    ]
                )
            )
        root.attrs["layer_names"] = listed
        for layer in layers:
            group = root.create_group(layer)
            group.attrs["weight_names"] = (
                [f"m/{layer}/kernel:0".encode(), b"m/b:0"]
                if not odd
                else draw(st.sampled_from([[b"m/b:0"], [b"m"], [], [b"b:0"], [b"x"], "m/b:0"]))
            )
            dtype = draw(
                st.sampled_from(
                    ["f4", "f4", "f2", "f8", ">f4"]
                    if not odd
                    else ["f4", "i4", "f16", "c8", "S3", "bool", ">f8", h5py.string_dtype(), np.dtype([("r", "f4")])]
                )
            )
            shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3)))
            options: dict[str, Any] = {}
            if odd and shape and 0 not in shape:
                options = draw(
                    st.sampled_from(
                        [
                            {},
                            {"chunks": True},
                            {"compression": "gzip"},
                            {"maxshape": (None,) * len(shape)},
                            {"fletcher32": True},
                            {"shuffle": True},
                        ]
                    )
                )
            group.create_dataset(f"m/{layer}/kernel:0", shape, dtype, **options)
            group.create_dataset("m/b:0", data=np.arange(2.0, dtype="f4"))
            if odd:
                kind = draw(st.sampled_from(["none", "soft", "external", "self", "null", "reference"]))
                if kind == "soft":
                    group["x"] = h5py.SoftLink("/bert")
                elif kind == "external":
                    group["x"] = h5py.ExternalLink("/etc/hostname", "/")
                elif kind == "self":
                    group["x"] = group
                elif kind == "null":
                    group["x"] = h5py.Empty("f4")
                elif kind == "reference":
                    group["x"] = np.array([group.ref], dtype=h5py.ref_dtype)
    return f.getvalue() + (b"" if odd else VALID)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    content = draw(written())
    return draw(damaged(content.removesuffix(VALID))) if draw(st.booleans()) else content


TARGET = Target(files().map(lambda content: Hdf5({FILE: content})), batch=5, share=2.0)
