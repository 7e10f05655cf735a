"""bertfast convert: each format to a folder that transformers loads with the same weights."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bertfast
from bertfast.cli import app
from bertfast.convert import convert

MODELS = Path(__file__).parents[1] / "golden" / "models"
SOURCES = ["mini_tf", "mini_flax", "extra_tf_safetensors", "extra_tf_sharded", "extra_flax_safetensors", "extra_flax_sharded"]


@pytest.mark.parametrize("name", SOURCES)
def test_every_format(name, tmp_path):
    done = convert(MODELS / name, tmp_path / "new")
    want = load_file(MODELS / ("mini_tf" if "tf" in name else "mini_flax") / "model.safetensors")
    got = load_file(tmp_path / "new" / "model.safetensors")
    assert all(torch.equal(got[key], value) for key, value in want.items())
    assert done.architecture == ("BertForTokenClassification" if "tf" in name else "BertForPreTraining")
    assert done.unexpected == ()
    _, info = getattr(transformers, done.architecture).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(info.values())
    assert not list((tmp_path / "new").glob("*.h5"))


def test_half_precision_is_kept(tmp_path):
    convert(MODELS / "extra_flax_bf16", tmp_path / "new")
    assert {t.dtype for t in load_file(tmp_path / "new" / "model.safetensors").values()} == {torch.bfloat16}


def test_other_files_are_copied_and_weights_are_not(tmp_path):
    source = tmp_path / "old"
    shutil.copytree(MODELS / "extra_flax_chunked", source)
    (source / "vocab.txt").write_text("[PAD]\n")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "tf_model.onnx").write_text("x")
    assert convert(source, tmp_path / "new").copied == ("1_Pooling", "vocab.txt")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["1_Pooling", "config.json", "model.safetensors", "vocab.txt"]


def config_without_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))


def test_the_class_is_inferred_from_the_weights(tmp_path):
    for name, want in (("mini_flax", "BertForPreTraining"), ("tf_qa", "BertForQuestionAnswering"), ("flax_causal", "BertLMHeadModel")):
        shutil.copytree(MODELS / name, tmp_path / name)
        config_without_architecture(tmp_path / name)
        assert convert(tmp_path / name, tmp_path / f"{name}-new").architecture == want
    shutil.copytree(MODELS / "mini_tf", tmp_path / "mini_tf")
    config_without_architecture(tmp_path / "mini_tf")
    with pytest.raises(ValueError, match="name the class"):
        convert(tmp_path / "mini_tf", tmp_path / "new")
    assert convert(tmp_path / "mini_tf", tmp_path / "new", "BertForTokenClassification").architecture == "BertForTokenClassification"


def test_a_bare_model_without_pooler(tmp_path):
    done = convert(MODELS / "mini_tf", tmp_path / "new", "BertModel")
    assert done.unexpected == ("classifier.bias", "classifier.weight")
    assert not any("pooler" in name for name in load_file(tmp_path / "new" / "model.safetensors"))


def test_missing_weights_are_an_error_and_leave_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no weights for .*would be random"):
        convert(MODELS / "mini_tf", tmp_path / "new", "BertForPreTraining")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "tf_model.h5").write_bytes(b"x"), ValueError, r"tf_model\.h5"),
        (lambda folder: (folder / "tf_model.h5").unlink(), FileNotFoundError, "no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), ValueError, "'gpt2'"),
    ],
)
def test_unusable_sources(change, error, message, tmp_path):
    shutil.copytree(MODELS / "mini_tf", tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    change(tmp_path / "old")
    with pytest.raises(error, match=message):
        convert(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_not_empty_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert(MODELS / "mini_tf", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_two_conversions_to_one_folder(tmp_path, monkeypatch):
    """The second stops, and leaves the first one's files alone."""
    module = sys.modules[convert.__module__]
    load, ends = module._load, []

    def second_meanwhile(*args):
        if not ends:
            ends.append(None)
            with pytest.raises(FileExistsError, match="not an empty folder"):
                convert(MODELS / "mini_flax", tmp_path / "new")
        return load(*args)

    monkeypatch.setattr(module, "_load", second_meanwhile)
    convert(MODELS / "mini_tf", tmp_path / "new")
    assert ends == [None]
    assert "model.safetensors" in {p.name for p in (tmp_path / "new").iterdir()}
    assert not (tmp_path / "new" / ".converting").exists()


KILLED = """
import os, sys
from bertfast.convert import convert
sys.modules[convert.__module__]._outputs = lambda model: os._exit(9)
convert(sys.argv[1], sys.argv[2])
"""


def test_what_a_killed_conversion_left_does_not_block_the_next(tmp_path):
    source, new = MODELS / "mini_tf", tmp_path / "new"
    assert subprocess.run([sys.executable, "-c", KILLED, source, new], check=False, timeout=300).returncode == 9
    assert {"config.json", "model.safetensors"} < {path.name for path in new.iterdir()}
    (new / "half").mkdir()
    convert(source, new)
    convert(source, tmp_path / "undisturbed")
    assert contents(new) == contents(tmp_path / "undisturbed")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert(source, new)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_failed_conversion_removes_its_claim_last(tmp_path, monkeypatch):
    """Killed while it removes its files, it must not leave a folder without a claim."""
    module, seen = sys.modules[convert.__module__], []
    unlink = Path.unlink

    def watched(path, **options):
        seen.append(path.name)
        assert path.name == ".converting" or (path.parent / ".converting").exists()
        unlink(path, **options)

    monkeypatch.setattr(module, "_copy_other_files", lambda *folders: [][0])
    monkeypatch.setattr(Path, "unlink", watched)
    with pytest.raises(IndexError):
        convert(MODELS / "mini_tf", tmp_path / "new")
    assert len(seen) > 2
    assert not (tmp_path / "new").exists()


def test_unknown_classes(tmp_path):
    for name in ("GPT2Model", "BertNothing", "BertConfig2"):
        with pytest.raises(ValueError, match="not a BERT class"):
            convert(MODELS / "mini_tf", tmp_path / "new", name)


def test_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        app.main(["convert", str(MODELS / "extra_tf_sharded"), str(tmp_path / "new")])
    assert done.value.code == 0
    assert "BertForTokenClassification, 2,483 parameters, from tf_h5; the same outputs" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as failed:
        app.main(["convert", str(tmp_path / "nothing"), str(tmp_path / "other")])
    assert failed.value.code == 1


def test_old_layernorm_names(tmp_path):
    source = tmp_path / "old"
    shutil.copytree(MODELS / "mini_tf", source, ignore=shutil.ignore_patterns("*.h5", "*.safetensors"))
    weights = load_file(MODELS / "mini_tf" / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in weights.items()}
    save_file(old, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "new")
    assert load_file(tmp_path / "new" / "model.safetensors").keys() == weights.keys()


def test_quantized(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        app.main(["convert", str(MODELS / "mini_tf"), str(tmp_path / "new"), "--quantization", "int8"])
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert 0.99 < float(re.search(r"in int8, worst cosine to the source ([\d.]+)\.", out)[1]) < 1
    weights = load_file(tmp_path / "new" / "model.safetensors")
    assert weights["bert.encoder.layer.0.output.dense.weight_int8"].dtype == torch.int8
    done = convert(MODELS / "mini_tf", tmp_path / "again", quantization="int8")
    assert done.difference == 0
    loaded = bertfast.BertForTokenClassification.from_pretrained(MODELS / "mini_tf", quantization="int8").state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.items())
    with pytest.raises(ValueError, match="quantized to int8 already"):
        convert(tmp_path / "new", tmp_path / "third")
    with pytest.raises(ValueError, match="quantization: got 'int3'"):
        convert(MODELS / "mini_tf", tmp_path / "third", quantization="int3")
    assert not (tmp_path / "third").exists()
