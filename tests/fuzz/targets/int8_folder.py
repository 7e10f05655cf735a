"""A folder of an int8 model: loads and computes finite values, or is refused by name; nothing is cast in silence."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

import bertfast
from tests import builders
from tests.fuzz.case import Target
from tests.fuzz.damage import damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)
from tests.fuzz.targets.torch_bin import saved

CONFIG = {**builders.SMALL, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 70, "vocab_size": 20, "num_hidden_layers": 1}


@functools.cache
def files_of() -> dict[str, bytes]:
    """A valid folder."""
    model = bertfast.BertForMaskedLM(builders.bert_config(CONFIG)).eval()
    builders.realistic_(model, 0)
    with tempfile.TemporaryDirectory() as folder:
        bertfast.optimize(model, quantization="int8").save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class Int8Folder(FolderCase):
    megabytes = 200.0
    code = "import bertfast, torch\nprint(bertfast.BertForMaskedLM.from_pretrained(folder).eval()(torch.arange(6)[None]).logits)"

    def prepare(self, folder: Path) -> None:
        for name, content in files_of().items():
            if name.endswith(".json") or not self.files:
                (folder / name).write_bytes(content)

    def read(self, folder: Path) -> Any:
        model = bertfast.BertForMaskedLM.from_pretrained(folder).eval()
        with torch.no_grad():
            return model.state_dict(), model(torch.arange(6)[None], attention_mask=torch.ones(1, 6, dtype=torch.long)).logits

    def judge(self, folder: Path, result: Any) -> None:
        state, logits = result
        name, content = next(iter((self.files or files_of()).items()))
        given = load(content) if name.endswith("safetensors") else torch.load(folder / name, weights_only=True)
        for key, tensor in state.items():
            if key.endswith(("weight_int8", "weight_scales")) and key in given:
                assert torch.equal(tensor, given[key]) and tensor.dtype == given[key].dtype, f"{key} was changed in silence"
        known = all(t.isfinite().all() and t.abs().max() < 1e6 for t in given.values() if t.is_floating_point() and t.numel())
        assert logits.isfinite().all() or not known, "logits are not finite"


@st.composite
def edited(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """The weights with one to three of them changed in dtype, shape or values."""
    weights = load(files_of()["model.safetensors"])
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(weights)))
        tensor = weights[name]
        kind = draw(st.sampled_from(["dtype", "shape", "value", "drop", "rename", "other"]))
        if kind == "dtype":
            weights[name] = tensor.to(
                draw(
                    st.sampled_from(
                        [
                            torch.float32,
                            torch.float16,
                            torch.uint8,
                            torch.int8,
                            torch.int16,
                            torch.int64,
                            torch.float64,
                            torch.bool,
                            torch.bfloat16,
                        ]
                    )
                )
            )
        elif kind == "shape":
            ways = [
                lambda t: t[:-1],
                lambda t: t[..., :-1],
                lambda t: t[None],
                lambda t: t.t() if t.dim() == 2 else t,
                lambda t: torch.cat([t, t]),
                lambda t: t.reshape(-1),
                lambda t: t[:0],
            ]
            weights[name] = draw(st.sampled_from(ways))(tensor).contiguous()
        elif kind == "value" and tensor.numel():
            changed = tensor.clone()
            at = draw(st.integers(0, tensor.numel() - 1))
            changed.view(-1)[at] = draw(
                st.sampled_from(
                    [-128, 127, 0] if not tensor.is_floating_point() else [float("nan"), float("inf"), -1.0, 0.0, -0.0, 1e30, 1e-40, 3e38]
                )
            )
            weights[name] = changed
        elif kind == "drop" and len(weights) > 1:
            del weights[name]
        elif kind == "rename":
            weights[
                draw(
                    st.sampled_from(
                        ["x.weight_int8", "weight_scales", name + "_int8", name.replace("int8", "scales"), name.removesuffix("_int8")]
                    )
                )
            ] = tensor
        elif kind == "other":
            weights[name] = weights[draw(st.sampled_from(sorted(weights)))].clone()
    return weights


@st.composite
def cases(draw: st.DrawFn) -> Int8Folder:
    if draw(st.integers(0, 4)) == 0:
        return Int8Folder({"model.safetensors": draw(damaged(files_of()["model.safetensors"]))})
    weights = draw(edited())
    if draw(st.booleans()):
        return Int8Folder({"model.safetensors": save({name: t.clone() for name, t in weights.items()}, {"format": "pt"})})
    return Int8Folder({"pytorch_model.bin": saved(weights)})


TARGET = Target(cases(), batch=20)
