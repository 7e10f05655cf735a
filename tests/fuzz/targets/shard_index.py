"""*.index.json: the weights of the shards that it lists, or refused by name; no shard lies outside of the folder."""

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from bertfast import checkpoints
from tests.fuzz.case import Target
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)
from tests.fuzz.json_damage import edited_json
from tests.fuzz.targets.torch_bin import saved

SINGLE = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"]
INDEX = {"metadata": {"total_size": 24}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}


class ShardIndex(FolderCase):
    code = "from bertfast import checkpoints\nprint(checkpoints.read_weights(checkpoints.detect(folder)))"

    def prepare(self, folder: Path) -> None:
        (folder / "one.safetensors").write_bytes(save({"a": torch.ones(2)}))
        (folder / "two.safetensors").write_bytes(save({"b": torch.ones(3)}))
        (folder / "one.bin").write_bytes(saved({"a": torch.ones(2)}))
        (folder.parent / "x").write_bytes(save({"a": torch.ones(2)}))

    def read(self, folder: Path) -> Any:
        found = checkpoints.detect(folder)
        assert found is not None
        return found, checkpoints.read_weights(found)

    def judge(self, folder: Path, result: Any) -> None:
        found, weights = result
        assert all(file.parent == folder for file in found.files)
        assert weights.keys() <= {"a", "b"}, f"read {sorted(weights)}"


def cases(single: str) -> st.SearchStrategy[ShardIndex]:
    shards = ("one.safetensors", "one.bin", "config.json", ".", "..", "../x", "two.safetensors/", "weight_map")
    index = {**INDEX, "weight_map": {"a": "one.bin"}} if single.endswith(".bin") else INDEX
    return edited_json(index, shards).map(lambda content: ShardIndex({f"{single}.index.json": content}))


TARGET = Target(st.sampled_from(SINGLE).flatmap(cases), batch=100, share=0.5)
