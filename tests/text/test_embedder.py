"""Embedder against transformers' model, pooled by hand: values, input order, the folder's settings."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from accuracy import assert_as_accurate
from bertfast import ops
from bertfast.tasks import Embedder
from bertfast.text import pooling, tokenization
from bertfast.text.sentence_transformers_folder import read_settings
from bertfast.text.token_budget import plan_batches

TEXTS = [
    "A man is eating food.",
    "",
    "The quick brown fox jumps over the lazy dog, " * 8,
    "Übermäßig große Straßenbahnen",
    "中文 and emoji 🙂 and a very-long-hyphenated-word",
    "a",
    "The quick brown fox jumps over the lazy dog.",
]


def by_hand(folder: Path, texts: list[str], dtype: torch.dtype, pool: str = "mean", normalize: bool = False) -> torch.Tensor:
    """transformers' model on each text alone, pooled as in sentence-transformers, in `dtype`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=dtype, add_pooling_layer=False).eval()
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings, 256)
    vectors = []
    with torch.no_grad():
        for text in texts:
            hidden = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)).last_hidden_state[0]
            vector = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0).values}[pool]
            vectors.append(vector / vector.norm() if normalize else vector)
    return torch.stack(vectors)


def test_a_real_model_with_its_folders_settings(minilm_dir):
    embedder = Embedder.from_pretrained(minilm_dir, device="cpu")
    assert (embedder.settings.pooling, embedder.settings.normalize, embedder.max_seq_length) == (("mean",), True, 256)
    vectors = embedder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    assert_as_accurate(
        torch.from_numpy(vectors),
        yardstick=by_hand(minilm_dir, TEXTS, torch.float32, normalize=True),
        truth=by_hand(minilm_dir, TEXTS, torch.float64, normalize=True),
    )


@pytest.mark.parametrize("saved_by", ["version-2", "this-version"])
def test_agrees_with_sentence_transformers(minilm_dir, tmp_path, saved_by):
    """MiniLM's folder was saved by version 2; the current version writes other files and keys."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm_dir), device="cpu")
    folder = minilm_dir
    if saved_by == "this-version":
        theirs.save(str(tmp_path))
        folder = tmp_path
    vectors = Embedder.from_pretrained(folder, device="cpu").encode(TEXTS)
    truth = by_hand(minilm_dir, TEXTS, torch.float64, normalize=True)
    assert_as_accurate(torch.from_numpy(vectors), yardstick=torch.from_numpy(theirs.encode(TEXTS)), truth=truth)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_arguments_override_the_folder(small_dir, mode, normalize):
    vectors = Embedder.from_pretrained(small_dir, pooling=mode, normalize=normalize, device="cpu").encode(TEXTS)
    truth, yardstick = (by_hand(small_dir, TEXTS, dtype, mode, normalize) for dtype in (torch.float64, torch.float32))
    assert_as_accurate(torch.from_numpy(vectors), yardstick=yardstick, truth=truth)


@pytest.mark.parametrize("max_tokens", [1, 40, 8192])
def test_a_text_has_the_same_bits_alone_and_in_any_batch(small_dir, max_tokens, monkeypatch):
    monkeypatch.setattr(tokenization, "TOKENIZE_TEXTS", 3)  # several blocks
    alone = Embedder.from_pretrained(small_dir, device="cpu")
    together = Embedder.from_pretrained(small_dir, device="cpu", max_tokens=max_tokens).encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(alone.encode([text])[0], vector)


def test_no_texts(small_dir):
    assert Embedder.from_pretrained(small_dir, device="cpu").encode([]).shape == (0, 32)


def test_a_stream_reads_one_block_for_its_first_chunk(small_dir):
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for read in itertools.count(1):
            yield f"text {read}"

    embedder = Embedder.from_pretrained(small_dir, device="cpu", max_tokens=64)
    chunk, vectors = next(embedder.encode_stream(endless()))
    assert len(chunk) == len(vectors) == read == tokenization.TOKENIZE_TEXTS
    np.testing.assert_array_equal(vectors[:5], embedder.encode(chunk[:5]))


def test_progress_counts_every_text_once(small_dir):
    finished: list[int] = []
    Embedder.from_pretrained(small_dir, device="cpu", max_tokens=40).encode(TEXTS * 3, on_rows=finished.append)
    assert sum(finished) == 3 * len(TEXTS)
    assert len(finished) > 1


def test_the_prompt_is_prepended_to_every_text(small_dir):
    prompted = Embedder.from_pretrained(small_dir, device="cpu", prompt="query: ").encode(TEXTS[:2])
    plain = Embedder.from_pretrained(small_dir, device="cpu").encode(["query: " + text for text in TEXTS[:2]])
    np.testing.assert_array_equal(prompted, plain)


def sentence_folder(
    small_dir: Path, folder: Path, pooling_config: dict, *, normalize: bool = True, prefix: str = "models", **files
) -> Path:
    """`small_dir` as sentence-transformers would save it. files: name -> content of further JSON files."""
    shutil.copytree(small_dir, folder, dirs_exist_ok=True)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.{prefix}.{kind}"} for i, kind in enumerate(kinds)
    ]
    for name, content in {"modules": modules, "1_Pooling/config": pooling_config, **files}.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


OLD_STYLE = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(OLD_STYLE, ("mean",), id="older-mean"),
        pytest.param(OLD_STYLE | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, ("cls",), id="older-cls"),
        pytest.param(OLD_STYLE | {"pooling_mode_max_tokens": True}, ("max", "mean"), id="older-two-concatenated"),
        pytest.param({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, ("cls",), id="newer"),
        pytest.param({"embedding_dimension": 32, "pooling_mode": ["mean", "max"]}, ("mean", "max"), id="newer-two-concatenated"),
        pytest.param({"embedding_dimension": 32}, ("mean",), id="not-given"),
    ],
)
def test_pooling_of_a_sentence_transformers_folder(small_dir, tmp_path, config, expected):
    embedder = Embedder.from_pretrained(sentence_folder(small_dir, tmp_path, config), device="cpu")
    assert embedder.settings.pooling == expected
    assert embedder.settings.normalize
    assert embedder.encode(TEXTS).shape == (len(TEXTS), 32 * len(expected))


def test_max_length_lowercase_and_prompt_of_a_sentence_transformers_folder(small_dir, tmp_path):
    folder = sentence_folder(
        small_dir,
        tmp_path,
        {"pooling_mode": "mean", "include_prompt": False},
        normalize=False,
        prefix="base.modules.transformer",
        sentence_bert_config={"max_seq_length": 12, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"q": "ask me: ", "d": ""}, "default_prompt_name": "q"},
    )
    embedder = Embedder.from_pretrained(folder, device="cpu")
    assert (embedder.max_seq_length, embedder.settings.prompt, embedder.settings.normalize) == (12, "ask me: ", False)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float64).eval()
    unpooled = len(tokenizer("ask me: ")["input_ids"]) - 1
    for text in ("some text", "a text that is too long for twelve tokens, and then some more of it"):
        inputs = tokenizer("ask me: " + text, return_tensors="pt", truncation=True, max_length=12)
        with torch.no_grad():
            truth = model(**inputs).last_hidden_state[0, unpooled:].mean(0)
            yardstick = model.float()(**inputs).last_hidden_state[0, unpooled:].mean(0)
        model.double()
        assert_as_accurate(torch.from_numpy(embedder.encode([text])[0]), yardstick=yardstick, truth=truth)
    by_name = Embedder.from_pretrained(folder, device="cpu", prompt_name="d")
    np.testing.assert_array_equal(by_name.encode(["x"]), Embedder.from_pretrained(folder, device="cpu", prompt="").encode(["x"]))


def test_do_lower_case_with_a_cased_tokenizer(small_dir, tmp_path):
    folder = sentence_folder(small_dir, tmp_path, {"pooling_mode": "mean"}, sentence_bert_config={"do_lower_case": True})
    cased = transformers.AutoTokenizer.from_pretrained(folder)
    cased.backend_tokenizer.normalizer = None
    cased.save_pretrained(folder)
    assert cased("HELLO")["input_ids"] != cased("hello")["input_ids"]
    embedder = Embedder.from_pretrained(folder, device="cpu")
    np.testing.assert_array_equal(*embedder.encode(["HELLO", "hello"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "median"}, "pooling: got 'median', expected one of cls, max, mean"),
        ({"max_seq_length": 65}, "max_seq_length: got 65, expected 3 to 64"),
        ({"max_seq_length": 2}, "max_seq_length: got 2, expected 3 to 64"),
        ({"max_tokens": 0}, "max_tokens: got 0, expected at least 1"),
        ({"dtype": "int8"}, "dtype: got 'int8', expected one of float32, bfloat16, float16"),
        ({"device": "gpu"}, "device: got 'gpu', expected cpu, cuda"),
        ({"prompt_name": "query"}, r"prompt_name: got 'query', expected one of \[\]"),
        ({"prompt": "a", "prompt_name": "b"}, "prompt and prompt_name: got both"),
    ],
)
def test_bad_arguments(small_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(small_dir, **arguments)


def test_bad_texts(small_dir):
    embedder = Embedder.from_pretrained(small_dir, device="cpu")
    with pytest.raises(TypeError, match="texts: got one str, expected a list"):
        embedder.encode("one text")
    with pytest.raises(TypeError, match="texts: got a int among them, expected str: 5"):
        embedder.encode(["a", 5])


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bad_folders(small_dir, tmp_path):
    with pytest.raises(ValueError, match="does not exist; expected a local folder"):
        read_settings(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a local folder"):
        read_settings(tmp_path / "file")
    with pytest.raises(ValueError, match=r"config\.json does not exist; expected the folder of a BERT model"):
        read_settings(tmp_path)
    folder = sentence_folder(small_dir, tmp_path / "m", {"pooling_mode": "mean"})
    for name, content, message in [
        ("1_Pooling/config.json", "{", "not valid JSON"),
        ("1_Pooling/config.json", "[]", "holds a JSON list, expected a dict"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "q"}', r"default_prompt_name is 'q', expected one of \[\]"),
        (
            "modules.json",
            json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Dense")]),
            "Transformer, Pooling, Dense; expected",
        ),
        ("modules.json", "[1, 2]", r"names the modules \?, \?; expected"),
        ("config.json", '{"model_type": "roberta"}', "model_type is 'roberta', bertfast runs 'bert'"),
    ]:
        before = (folder / name).read_text() if (folder / name).exists() else None
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            read_settings(folder)
        (folder / name).write_text(before or "{}")
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(ValueError, match=r"does not exist, but modules\.json names it"):
        read_settings(folder)


def test_missing_weights_are_refused_and_unexpected_ones_warned_about(small_dir, tmp_path):
    folder = Path(shutil.copytree(small_dir, tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    incomplete = {name: tensor for name, tensor in weights.items() if "layer.1.output" not in name}
    save_file(incomplete, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys, so embeddings would be random: .*layer\.1\.output.* and 1 more"):
        Embedder.from_pretrained(folder, device="cpu")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", num_hidden_layers=1)
    with pytest.warns(UserWarning, match=r"weights that its config\.json has no place for: encoder\.layer\.1"):
        Embedder.from_pretrained(folder, device="cpu")


def test_a_half_precision_model_returns_float32_vectors(small_dir):
    vectors = Embedder.from_pretrained(small_dir, device="cpu", dtype="bfloat16").encode(TEXTS)
    assert vectors.dtype == np.float32
    yardstick = by_hand(small_dir, TEXTS, torch.bfloat16).float()
    assert_as_accurate(torch.from_numpy(vectors), yardstick=yardstick, truth=by_hand(small_dir, TEXTS, torch.float64))


def test_a_dtype_without_kernels_is_logged_once(small_dir, caplog):
    ops.dispatch.backend_of.cache_clear()
    embedder = Embedder.from_pretrained(small_dir, device="cpu", dtype="float16")
    embedder.encode(TEXTS)
    embedder.encode(TEXTS)
    logged = [record.getMessage() for record in caplog.records if record.name == "bertfast"]
    assert logged == ["no kernels for torch.float16 on cpu: plain torch operations are used"]


@pytest.mark.parametrize("mode", pooling.MODES)
def test_every_pooling_against_its_formula(mode):
    lengths = [1, 7, 2, 64]
    rows = torch.randn(sum(lengths), 33) * 3 + 1

    def formula(x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        weights = torch.arange(1, n + 1, dtype=x.dtype)[:, None]
        return {
            "cls": lambda: x[0],
            "max": lambda: x.max(0).values,
            "mean": lambda: x.sum(0) / n,
            "mean_sqrt_len_tokens": lambda: x.sum(0) / n**0.5,
            "weightedmean": lambda: (x * weights).sum(0) / weights.sum(),
            "lasttoken": lambda: x[-1],
        }[mode]()

    yardstick, truth = (torch.stack([formula(x) for x in rows.to(dtype).split(lengths)]) for dtype in (torch.float32, torch.float64))
    assert_as_accurate(pooling.pool(rows, torch.tensor(lengths), (mode,)), yardstick=yardstick, truth=truth)
    unit = pooling.pool(rows, torch.tensor(lengths), (mode,), normalize=True)
    wide = truth / truth.norm(dim=1, keepdim=True)
    assert_as_accurate(unit, yardstick=yardstick / yardstick.norm(dim=1, keepdim=True), truth=wide)


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(1, 1), (100, 7), (10**6, 3), (10**6, 10**6)])
def test_batches_hold_every_text_once_within_the_limits(max_tokens, max_rows):
    lengths = np.random.default_rng(0).integers(1, 120, size=500)
    batches = plan_batches(lengths, max_tokens=max_tokens, max_rows=max_rows)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or lengths[batch].sum() <= max_tokens
    assert plan_batches([], max_tokens=1, max_rows=1) == []
    with pytest.raises(ValueError, match="max_rows: got 0, expected at least 1"):
        plan_batches([1], max_tokens=1, max_rows=0)
