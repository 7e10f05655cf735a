"""The folder of an embedding model: module kinds of sentence-transformers agree or are refused; damage and other vocabularies are named."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer import modules as kinds
from sentence_transformers.sentence_transformer.modules import Pooling

from bertfast.tasks import Embedder
from bertfast.text import pooling
from bertfast.text.sentence_transformers_folder import read_settings
from bertfast.text.tokenizer_files import load_tokenizer_of

TEXTS = ["A man is eating food.", "", "The quick brown fox jumps over the lazy dog, " * 8, "HELLO World", "a"]


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, float(np.abs(theirs).max())), rtol=0)


def saved(folder: Path, chain: list[torch.nn.Module], **options: Any) -> Path:
    SentenceTransformer(modules=chain, device="cpu", **options).save(str(folder))
    return folder


def transformer(small_dir: Path, **options: Any) -> Transformer:
    return Transformer(str(small_dir), **options)


@pytest.mark.parametrize("mode", pooling.MODES)
@pytest.mark.parametrize("prompt_counts", [True, False])
def test_every_pooling_agrees(small_dir, tmp_path, mode, prompt_counts):
    chain = [transformer(small_dir), Pooling(32, mode, include_prompt=prompt_counts)]
    folder = saved(tmp_path / "m", chain, prompts={"query": "look for: "}, default_prompt_name="query")
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = Embedder.from_pretrained(folder, device="cpu")
    for options in ({}, {"prompt": "other "}, {"prompt_name": "query"}):
        assert_close(Embedder.from_pretrained(folder, device="cpu", **options).encode(TEXTS), theirs.encode(TEXTS, **options))
    assert ours.dim == 32


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("modes", ["mean", ["cls", "max"]])
@pytest.mark.parametrize("truncate_dim", [1, 16, 48, 1000, None])
def test_truncation_agrees(small_dir, tmp_path, normalize, modes, truncate_dim):
    chain = [transformer(small_dir), Pooling(32, modes), *([Normalize()] if normalize else [])]
    folder = saved(tmp_path / "m", chain)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": truncate_dim}))
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = Embedder.from_pretrained(folder, device="cpu")
    assert_close(ours.encode(TEXTS), theirs.encode(TEXTS))
    assert ours.dim == ours.encode(TEXTS).shape[1]
    unit = Embedder.from_pretrained(folder, device="cpu", normalize=True)
    assert_close(unit.encode(TEXTS), theirs.encode(TEXTS, normalize_embeddings=True))
    eight = Embedder.from_pretrained(folder, device="cpu", truncate_dim=8)
    assert_close(eight.encode(TEXTS), theirs.encode(TEXTS, truncate_dim=8))


def test_length_and_case_agree(small_dir, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_dir)
    cased = Path(shutil.copytree(small_dir, tmp_path / "cased"))
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(cased)
    for i, (length, lower) in enumerate([(7, False), (None, True), (9, True)]):
        folder = saved(tmp_path / str(i), [transformer(cased, max_seq_length=length, do_lower_case=lower), Pooling(32, "mean")])
        path = folder / "sentence_bert_config.json"
        older = {"max_seq_length": length, "do_lower_case": lower}
        theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
        assert_close(Embedder.from_pretrained(folder, device="cpu").encode(TEXTS), theirs)
        path.write_text(json.dumps(older))
        assert_close(Embedder.from_pretrained(folder, device="cpu").encode(TEXTS), SentenceTransformer(str(folder)).encode(TEXTS))
        path.rename(path.with_name("sentence_distilbert_config.json"))
        assert_close(Embedder.from_pretrained(folder, device="cpu").encode(TEXTS), SentenceTransformer(str(folder)).encode(TEXTS))


OTHER_MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "Dense": lambda: Dense(32, 8),
    "LayerNorm": lambda: kinds.LayerNorm(32),
    "Dropout": lambda: kinds.Dropout(0.1),
    "Normalize": Normalize,
}


@pytest.mark.parametrize("kind", OTHER_MODULES)
def test_other_module_kinds_are_refused_by_name(small_dir, tmp_path, kind):
    chain = [transformer(small_dir), Pooling(32, "mean"), OTHER_MODULES[kind](), *([Normalize()] if kind == "Normalize" else [])]
    with pytest.raises(ValueError, match=rf"names the modules Transformer, Pooling, {kind}.*optimize\(SentenceTransformer"):
        read_settings(saved(tmp_path / "m", chain))


@pytest.mark.parametrize("kind", ["WeightedLayerPooling", "CNN", "LSTM", "WordWeights", "StaticEmbedding", "Router", "SpladePooling"])
def test_a_first_or_second_module_of_another_kind_is_refused(small_dir, tmp_path, kind):
    folder = saved(tmp_path / "m", [transformer(small_dir), Pooling(32, "mean")])
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    for i in (0, 1):
        changed = [dict(module) for module in modules]
        changed[i]["type"] = f"sentence_transformers.models.{kind}"
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"names the modules .*{kind}"):
            read_settings(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", [{"type": 3}], r"names the modules \?"),
        ("modules.json", [None, []], r"names the modules \?, \?"),
        ("config_sentence_transformers.json", {"prompts": [1]}, r"prompts is \[1\], expected a dict"),
        ("config_sentence_transformers.json", {"prompts": {"a": 3}}, "a value that is no text"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["a"]}, r"default_prompt_name is \['a'\], expected a str"),
        ("config_sentence_transformers.json", {"truncate_dim": "16"}, "truncate_dim is '16', expected an int"),
        ("config_sentence_transformers.json", {"truncate_dim": True}, "truncate_dim is True, expected an int"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim is 0, expected at least 1"),
        ("config_sentence_transformers.json", {"truncate_dim": -4}, "truncate_dim is -4, expected at least 1"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "max_seq_length is 'many', expected an int"),
        ("sentence_bert_config.json", {"max_seq_length": 1e3}, r"max_seq_length is 1000\.0, expected an int"),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case is 'yes', expected a bool"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length is 32"),
        ("sentence_bert_config.json", {"tokenizer_args": {"padding_side": "left"}}, "tokenizer_args has padding_side"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs is"),
        ("1_Pooling/config.json", {"pooling_mode": {"a": 1}}, "pooling_mode is {'a': 1}, expected a name"),
        ("1_Pooling/config.json", {"pooling_mode": []}, r"pooling_mode is \[\], expected a name"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "include_prompt is 'no', expected a bool"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ("config.json", {"model_type": ["bert"]}, r"model_type is \['bert'\]"),
    ],
)
def test_malformed_values_are_one_error_that_names_the_file(small_dir, tmp_path, name, content, message):
    folder = saved(tmp_path / "m", [transformer(small_dir), Pooling(32, "mean"), Normalize()])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_settings(folder)
    assert Path(name).name in str(error.value)


NAMES = ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json", "config.json"]


@pytest.mark.parametrize("name", [*NAMES, "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"", b"\xff", b'{"a": ' + b"9" * 5000 + b"}"])
def test_damaged_json_is_one_error_that_names_the_file(small_dir, tmp_path, name, content):
    folder = saved(tmp_path / "m", [transformer(small_dir), Pooling(32, "mean")])
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="m") as error:
        Embedder.from_pretrained(folder, device="cpu")
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("path", ["../other", "/etc", "1_Pooling/../../other", "link", 3, None, "a\0b", "x" * 5000])
def test_modules_may_not_leave_the_folder(small_dir, tmp_path, path):
    folder = saved(tmp_path / "m", [transformer(small_dir), Pooling(32, "mean")])
    shutil.copytree(folder / "1_Pooling", tmp_path / "other")
    (folder / "link").symlink_to(tmp_path / "other")
    for i in (0, 1):
        modules = json.loads((folder / "modules.json").read_text())
        modules[i]["path"] = path
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match=r"modules\.json"):
            read_settings(folder)


# The vocabulary


def copied(small_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_dir, tmp_path / "m"))


def only_the_model(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def five_tokens(folder: Path) -> None:
    only_the_model(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")


def half_a_vocabulary(folder: Path) -> None:
    words = list(transformers.AutoTokenizer.from_pretrained(folder).get_vocab())
    only_the_model(folder)
    (folder / "vocab.txt").write_text("\n".join(words[:15_000]))


def more_tokens_than_embeddings(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{i}" for i in range(3)])
    tokenizer.save_pretrained(folder)


def an_empty_vocabulary(folder: Path) -> None:
    only_the_model(folder)
    (folder / "vocab.txt").write_text("")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (only_the_model, r"neither tokenizer\.json nor vocab\.txt"),
        (five_tokens, "vocabulary has 5 tokens, but config.json says vocab_size 30,522"),
        (half_a_vocabulary, "vocab_size 30,522"),
        (more_tokens_than_embeddings, "vocabulary has 30,525 tokens, but config.json says vocab_size 30,522"),
        (an_empty_vocabulary, "vocab_size 30,522"),
    ],
)
def test_a_vocabulary_that_is_not_the_models_is_refused(small_dir, tmp_path, prepare, message):
    folder = copied(small_dir, tmp_path)
    prepare(folder)
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("length", ["many", -1, None, [512], float("nan"), 2])
def test_a_malformed_tokenizer_length_is_refused_by_name(small_dir, tmp_path, length):
    folder = copied(small_dir, tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    if length is None:  # transformers: no limit
        assert Embedder.from_pretrained(folder, device="cpu").max_seq_length == 64
        return
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: model_max_length|no tokenizer could be loaded"):
        Embedder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForTokenClassification", "BertModel", "BertForPreTraining"])
def test_a_head_that_embeddings_do_not_need_is_no_warning(small_dir, tmp_path, head):
    """Classifiers and cross-encoders have a pooler, which is no weight of the encoder."""
    folder = copied(small_dir, tmp_path)
    getattr(transformers, head)(transformers.BertConfig.from_pretrained(folder)).save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Embedder.from_pretrained(folder, device="cpu")


def test_a_vocabulary_without_the_unknown_token_is_refused_when_it_is_loaded(small_dir, tmp_path):
    """The first unknown word raised a bare Exception of the tokenizer."""
    folder = Path(shutil.copytree(small_dir, tmp_path / "m"))
    words = list(transformers.AutoTokenizer.from_pretrained(folder).get_vocab())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(words).replace("[UNK]", "[UNX]"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 30600}))  # room for what transformers adds
    with pytest.raises(ValueError, match=r"no tokenizer could be loaded from .*\[UNK\]"):
        load_tokenizer_of(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 10**9}),
        ("sentence_bert_config.json", {"max_seq_length": 2}),
        ("config_sentence_transformers.json", {"prompts": {"a": "b"}, "default_prompt_name": "c"}),
        ("1_Pooling/config.json", {"pooling_mode": "middle"}),
    ],
)
def test_a_setting_that_does_not_fit_is_an_error_that_names_the_folder(small_dir, tmp_path, name, content):
    folder = saved(tmp_path / "m", [transformer(small_dir), Pooling(32, "mean")])
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="m") as error:
        Embedder.from_pretrained(folder, device="cpu")
    assert str(folder) in str(error.value)


def test_a_long_value_is_cut_in_the_error(small_dir, tmp_path):
    folder = saved(tmp_path / "m", [transformer(small_dir), Pooling(32, "mean")])
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": "9" * 100_000}))
    with pytest.raises(ValueError, match="max_seq_length is '999") as error:
        read_settings(folder)
    assert len(str(error.value)) < 500
