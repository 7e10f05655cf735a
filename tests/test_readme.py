"""The README's Python runs as it is printed, and its two commands name versions and extras that exist."""

import re
from pathlib import Path

import numpy as np
import torch

import bertfast.quantization.schemes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of them saves a model
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    hidden, mask = names["hidden"], names["inputs"]["attention_mask"]
    assert hidden.shape == (*mask.shape, 384)
    assert hidden[mask == 0].count_nonzero() == 0
    assert hidden[mask == 1].count_nonzero() > 0
    assert bertfast.quantization.schemes.scheme_of(names["small"]) == "int8"
    assert names["vectors"].shape == (2, 384)
    assert type(names["encoder"][0].model).__module__ == "transformers.models.bert.modeling_bert"  # restored
    assert isinstance(hidden, torch.Tensor)
    assert names["states"].shape == (1, 7, 384)
    assert isinstance(names["states"], np.ndarray)


def test_every_folder_of_the_house_is_there():
    for folder in re.findall(r"^\| `([\w./]+/)` \|", README, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
