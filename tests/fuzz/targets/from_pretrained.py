"""from_pretrained of a whole folder, its weights and config.json damaged: transformers' model of it, or refused as transformers refuses it.

For formats that transformers does not read: the weights, or refused by name.
"""

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import torch
import transformers
from hypothesis import strategies as st
from safetensors.torch import save

import bertfast
from bertfast.checkpoints import names
from tests import builders
from tests.fuzz.case import Target
from tests.fuzz.damage import damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)
from tests.fuzz.json_damage import edited_json
from tests.fuzz.targets.torch_bin import saved

CONFIG = {
    **builders.SMALL,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 9,
    "num_hidden_layers": 1,
    "max_position_embeddings": 8,
}


@functools.cache
def model_files() -> dict[str, bytes]:
    """One model in each format, and its config.json."""
    model = transformers.BertForSequenceClassification(builders.bert_config(CONFIG)).eval()
    builders.realistic_(model, 0)
    weights = dict(model.state_dict())
    tree: dict[str, Any] = {}
    h5 = io.BytesIO()
    with h5py.File(h5, "w") as f:
        f.attrs["layer_names"] = [b"bert", b"classifier"]
        listed: dict[str, list[bytes]] = {"bert": [], "classifier": []}
        for name, tensor in weights.items():
            levels, transposed = names.to_flax(name)
            array = tensor.t().contiguous().numpy() if transposed else tensor.numpy()
            node = tree
            for level in levels[:-1]:
                node = node.setdefault(level, {})
            node[levels[-1]] = msgpack.ExtType(1, msgpack.packb((list(array.shape), "float32", array.tobytes())))
            variable, transposed = names.to_tf(name)
            layer = variable.partition("/")[0]
            f.create_dataset(f"{layer}/m/{variable}", data=tensor.t().numpy() if transposed else tensor.numpy())
            listed[layer].append(f"m/{variable}".encode())
        for layer, variables in listed.items():
            f[layer].attrs["weight_names"] = np.array(variables)
    with tempfile.TemporaryDirectory() as folder:
        model.config.architectures = ["BertForSequenceClassification"]
        model.config.save_pretrained(folder)
        config = (Path(folder) / "config.json").read_bytes()
    return {
        "model.safetensors": save(weights, {"format": "pt"}),
        "pytorch_model.bin": saved(weights),
        "flax_model.msgpack": msgpack.packb(tree),
        "tf_model.h5": h5.getvalue(),
        "config.json": config,
    }


class FromPretrained(FolderCase):
    megabytes = 4000.0  # config.json says how large the model is
    seconds = 60.0
    code = "import bertfast\nprint(bertfast.BertForSequenceClassification.from_pretrained(folder).state_dict())"

    def prepare(self, folder: Path) -> None:
        (folder / "config.json").write_bytes(model_files()["config.json"])
        if not self.files or list(self.files) == ["config.json"]:
            (folder / "model.safetensors").write_bytes(model_files()["model.safetensors"])

    def foreign(self) -> bool:
        return any(name.endswith((".h5", ".msgpack")) for name in self.files)

    def read(self, folder: Path) -> Any:
        torch.manual_seed(0)
        try:
            return bertfast.BertForSequenceClassification.from_pretrained(folder).state_dict()
        except Exception as error:
            named = isinstance(error, (ValueError, OSError)) and "config.json" not in self.files
            if named or self.foreign() or type(theirs(folder)) is not type(error):
                raise
            raise ValueError(f"{folder}: as transformers refuses it: {error}") from error

    def judge(self, folder: Path, result: Any) -> None:
        if self.foreign():
            return
        expected = theirs(folder)
        if isinstance(expected, Exception):
            raise AssertionError(f"transformers refuses it: {expected!r}")
        assert result.keys() == expected.keys()
        for name, tensor in expected.items():
            assert result[name].shape == tensor.shape and result[name].dtype == tensor.dtype, name
            assert torch.equal(result[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), f"{name} differs"

    def judge_refusal(self, folder: Path, error: Exception) -> None:
        if not self.foreign() and "has" not in str(error):
            assert isinstance(theirs(folder), Exception), f"transformers loads what was refused: {error}"


def theirs(folder: Path) -> Any:
    torch.manual_seed(0)
    try:
        return transformers.BertForSequenceClassification.from_pretrained(folder, trust_remote_code=False).state_dict()
    except Exception as error:
        return error


KEYS = (
    "quantization_config",
    "auto_map",
    "dtype",
    "torch_dtype",
    "is_decoder",
    "architectures",
    "id2label",
    "num_labels",
    "attn_implementation",
    "problem_type",
)


@st.composite
def cases(draw: st.DrawFn) -> FromPretrained:
    name = draw(
        st.sampled_from(
            ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "config.json", "config.json", "config.json", "tf_model.h5"]
        )
    )
    content = model_files()[name]
    return FromPretrained({name: draw(edited_json(json.loads(content), KEYS)) if name == "config.json" else draw(damaged(content))})


TARGET = Target(cases(), batch=20, patience=300.0)
