"""int8 tensors of a file: other dtypes, shapes and scales are refused by name, none is cast."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import bertfast
import builders
from bertfast.cli.info_model import count_parameters

NAME = "encoder.layer.0.output.dense.weight"
INTEGERS, SCALES = f"{NAME}_int8", f"{NAME}_scales"
CONFIG = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 130, "vocab_size": 50}


@pytest.fixture
def folder(tmp_path) -> Path:
    model = transformers.BertModel(transformers.BertConfig(**CONFIG)).eval()
    bertfast.optimize(model, quantization="int8").save_pretrained(tmp_path)
    return tmp_path


def store(folder: Path, weights: dict[str, Tensor], suffix: str) -> None:
    if suffix == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(weights, folder / "pytorch_model.bin")


CHANGES: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    (INTEGERS, lambda t: t.float(), "is stored as float32, expected int8"),
    (INTEGERS, lambda t: t.to(torch.uint8), "is stored as uint8, expected int8"),
    (INTEGERS, lambda t: t.to(torch.int32), "expected int8"),
    (SCALES, lambda t: t.half(), "is stored as float16, expected float32"),
    (SCALES, lambda t: t.double(), "is stored as float64, expected float32"),
    (SCALES, lambda t: t.bfloat16(), "is stored as bfloat16, expected float32"),
    (SCALES, lambda t: t * torch.nan, "scales must be finite and positive"),
    (SCALES, lambda t: t * torch.inf, "scales must be finite and positive"),
    (SCALES, lambda t: -t, "scales must be finite and positive"),
    (SCALES, lambda t: t * 0, "a scale is 0, and its integers are not"),
    (SCALES, lambda t: t[:, :1].contiguous(), "do not go together"),
    (SCALES, lambda t: t[:5].contiguous(), "do not go together"),
    (SCALES, lambda t: t.flatten(), "expected 2 dimensions"),
    (INTEGERS, lambda t: t[:5].contiguous(), "do not go together"),
    (INTEGERS, lambda t: t[:, :100].contiguous(), "do not go together"),
]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(("name", "change", "message"), CHANGES)
def test_a_changed_tensor_is_refused_by_name(folder, name, change, message, suffix):
    weights = load_file(folder / "model.safetensors")
    store(folder, weights, suffix)
    bertfast.BertModel.from_pretrained(folder)
    store(folder, {**weights, name: change(weights[name])}, suffix)
    with pytest.raises(ValueError, match=message) as error:
        bertfast.BertModel.from_pretrained(folder)
    assert NAME in str(error.value) or NAME.removesuffix(".weight") in str(error.value)
    assert str(folder) in str(error.value)


def test_shapes_of_another_model_are_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")
    changed = {INTEGERS: weights[INTEGERS][:64].contiguous(), SCALES: weights[SCALES][:64].contiguous()}
    store(folder, weights | changed, "safetensors")
    with pytest.raises(ValueError, match=rf"shapes differ from the config's: {NAME}_int8 is \(64, 192\), the model's \(96, 192\)"):
        bertfast.BertModel.from_pretrained(folder)


@pytest.mark.parametrize("factor", [torch.nan, 0.0, -1.0])
def test_tied_word_embeddings_are_checked_too(tmp_path, factor):
    model = transformers.BertForMaskedLM(transformers.BertConfig(**CONFIG)).eval()
    bertfast.optimize(model, quantization="int8").save_pretrained(tmp_path)
    bertfast.BertForMaskedLM.from_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight_scales"
    store(tmp_path, {**weights, name: weights[name] * factor}, "safetensors")
    with pytest.raises(ValueError, match=r"word_embeddings: (its scales|a scale).*damaged") as error:
        bertfast.BertForMaskedLM.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_row_of_zeros_has_the_scale_zero(tmp_path):
    model = transformers.BertModel(transformers.BertConfig(**CONFIG)).eval()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[3] = 0
    quantized = bertfast.optimize(model, quantization="int8")
    quantized.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")[SCALES][3].count_nonzero() == 0
    loaded = bertfast.BertModel.from_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    assert torch.equal(loaded(ids).last_hidden_state, quantized(ids).last_hidden_state)


@pytest.mark.parametrize(("name", "dtype"), [(INTEGERS, torch.float32), (INTEGERS, torch.uint8), (SCALES, torch.float16)])
def test_a_state_dict_of_another_dtype_is_refused(folder, name, dtype):
    model = bertfast.BertModel.from_pretrained(folder)
    ids = torch.arange(10)[None]
    before = model(ids).last_hidden_state
    weights = model.state_dict()
    with pytest.raises(RuntimeError, match=f"{name} is {dtype}, expected"):
        model.load_state_dict({**weights, name: weights[name].to(dtype)})
    assert torch.equal(model(ids).last_hidden_state, before)


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM"])
def test_a_quantized_model_has_as_many_parameters_as_before(head):
    model = getattr(transformers, head)(transformers.BertConfig(**CONFIG)).eval()
    parameters = sum(p.numel() for p in model.parameters())
    assert count_parameters(model) == parameters
    assert count_parameters(bertfast.optimize(model, quantization="int8")) == parameters


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM"])
def test_biases_that_a_file_lacks_are_zeros(head, tmp_path):
    """transformers initializes those of its own classes; ours were left as memory was found."""
    model = builders.small_model(head, hidden_size=64, num_attention_heads=2)
    bertfast.optimize(model, quantization="int8").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    gone = [name for name in weights if name.endswith((".query.bias", ".dense.bias")) and ".layer." in name]
    assert len(gone) >= 8
    save_file({name: t for name, t in weights.items() if name not in gone}, path, metadata={"format": "pt"})
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(math.nan) if made.is_floating_point() and not made.is_meta else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        patch.setattr(
            torch,
            "empty_like",
            lambda t, **kwargs: poisoned(t.shape, dtype=kwargs.get("dtype", t.dtype), device=kwargs.get("device", t.device)),
        )
        loaded = getattr(bertfast, head).from_pretrained(tmp_path).eval()
    for name in gone:
        assert loaded.state_dict()[name].eq(0).all(), name
