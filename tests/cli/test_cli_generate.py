"""bertfast generate prints what generate() returns."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers

import bertfast
import builders
from bertfast.cli import app, errors
from bertfast.cli.token_printer import TokenPrinter

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def decoder_dir(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder with seeded weights and MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("decoder")
    return builders.save_with_tokenizer(transformers.BertLMHeadModel, minilm_dir, folder, {}, is_decoder=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(errors, "debug", False)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        app.main(["generate", *map(str, arguments)])
    return stop.value.code


def expected_tokens(folder: Path, prompt: list[int], **options) -> list[int]:
    model = bertfast.BertLMHeadModel.from_pretrained(folder).eval()
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), pad_token_id=0, **options)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("options", [
    pytest.param({}, id="greedy"),
    pytest.param({"num_beams": 3}, id="beams"),
    pytest.param({"repetition_penalty": 1.5}, id="penalty"),
])  # fmt: skip
def test_ids_in_ids_out(decoder_dir, capfd, options):
    flags = [piece for name, value in options.items() for piece in (f"--{name.replace('_', '-')}", value)]
    assert run("101, 2023 2003", "--ids", "-m", decoder_dir, "-n", 9, *flags) == 0
    out, err = capfd.readouterr()
    assert [int(piece) for piece in out.split()] == expected_tokens(decoder_dir, [101, 2023, 2003], max_new_tokens=9, **options)
    assert out.endswith("\n")
    assert out.count("\n") == 1
    assert re.search(r"9 tokens in [\d.]+ s", err)


def test_quantized(decoder_dir, capfd):
    assert run("101, 2023 2003", "--ids", "-m", decoder_dir, "-n", 9, "--quantization", "int8") == 0
    out = capfd.readouterr().out
    model = bertfast.BertLMHeadModel.from_pretrained(decoder_dir, quantization="int8").eval()
    tokens = model.generate(torch.tensor([[101, 2023, 2003]]), attention_mask=torch.ones(1, 3), pad_token_id=0, max_new_tokens=9)
    assert [int(piece) for piece in out.split()] == tokens[0, 3:].tolist()


def test_text_in_text_out(decoder_dir, capfd):
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder_dir)
    prompt = [tokenizer.cls_token_id, *tokenizer("A man is", add_special_tokens=False)["input_ids"]]
    tokens = expected_tokens(decoder_dir, prompt, max_new_tokens=12, eos_token_id=tokenizer.sep_token_id)
    assert run("A man is", "-m", decoder_dir, "-n", 12, "-q") == 0
    out, err = capfd.readouterr()
    assert out == tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False) + "\n"
    assert err == ""


def test_sampling_is_reproducible_with_a_seed(decoder_dir, capfd):
    printed = []
    for seed in (1, 1, 2):
        assert run("101", "--ids", "-m", decoder_dir, "-n", 20, "--temperature", 2.0, "--seed", seed) == 0
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_standard_input(decoder_dir, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("101 2023\n2003\n"))
    assert run("-", "--ids", "-m", decoder_dir, "-n", 3) == 0
    assert [int(piece) for piece in capfd.readouterr().out.split()] == expected_tokens(decoder_dir, [101, 2023, 2003], max_new_tokens=3)


def test_a_word_is_printed_when_complete(minilm_dir, capfd):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    tokens = tokenizer("embedding tokenizers", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 3, "needs words of several tokens"
    printer = TokenPrinter(tokenizer)
    printer.put(torch.tensor([[101]]))  # the prompt, which is not printed
    seen = []
    for token in tokens:
        printer.put(torch.tensor([token]))
        seen.append(capfd.readouterr().out)
    printer.end()
    assert [piece for piece in seen if piece] == ["embedding "]
    assert capfd.readouterr().out == "tokenizers\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1 x", "--ids"], "--ids: got 'x'"),
        (["1 40000", "--ids"], "--ids: got '40000', expected token ids from 0 to 30521"),
        (["", "--ids"], "the prompt is empty"),
        (["1", "--ids", "-n", "0"], "--max-new-tokens: got 0"),
        (["1", "--ids", "--temperature", "-1"], "--temperature"),
        (["1", "--ids", "-n", "65"], "max_position_embeddings=64"),
        (["1", "--ids", "--dtype", "int3"], "dtype: got 'int3'"),
    ],
)
def test_errors_are_one_line(decoder_dir, capfd, arguments, message):
    capfd.readouterr()
    assert run(*arguments, "-m", decoder_dir) == 1
    out, err = capfd.readouterr()
    assert message in err.splitlines()[-1]
    assert "Traceback" not in out + err


def test_unusable_folders(small_dir, tmp_path, capfd):
    assert run("a", "-m", tmp_path / "nothing") == 1
    assert "is not a model folder" in capfd.readouterr().err
    assert run("a", "-m", small_dir) == 1
    assert "is not a language model" in capfd.readouterr().err


def test_a_folder_without_a_tokenizer_needs_ids(decoder_dir, tmp_path, capfd):
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((decoder_dir / name).read_bytes())
    assert run("a", "-m", tmp_path) == 1
    assert "--ids" in capfd.readouterr().err
    assert run("101", "--ids", "-m", tmp_path, "-n", 2) == 0


def test_a_model_of_another_type_is_named(decoder_dir, tmp_path, capfd):
    transformers.RobertaForCausalLM(
        transformers.RobertaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, is_decoder=True)
    ).save_pretrained(tmp_path)
    assert run("A man", "-m", tmp_path, "--ids") == 1
    assert "config.json: model_type is 'roberta', bertfast runs 'bert'" in capfd.readouterr().err
