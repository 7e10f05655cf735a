"""The roofline: its FLOPs agree with torch's count, its floors with a calculation by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertLMHeadModel, BertModel

from benchmarks.gpu import roofline
from benchmarks.suite.models import MODELS, Model
from bertfast.cache import objects as kv_cache

ROOT = Path(__file__).parents[2]
H100 = roofline.GPUS["h100"]


def test_flops_are_those_that_torch_counts():
    config = BertConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, vocab_size=50, attn_implementation="eager"
    )  # fmt: skip
    model = BertModel(config).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.randint(50, (2, 11)))
    kernels = roofline.forward(Model("m", 3, 48, 4, 80, 50, 512), [11, 11], "float32")
    assert sum(k.flops for k in kernels) == counter.get_total_flops()


@pytest.mark.parametrize(("batch", "microseconds"), [("1x16", 57), ("1x128", 57), ("8x128", 224), ("32x128", 896), ("128x128", 3585)])
def test_floors_of_bert_base_on_an_h100(batch, microseconds):
    """Few tokens: 85 million weights of two bytes at 3.0 TB/s. Many: 2 FLOPs per weight and token, and attention, at 798 TFLOP/s."""
    kernels = list(roofline.forward(MODELS["bert-base"], roofline.parse_batch(batch), "float16", pooled=False))
    assert roofline.floor_seconds(kernels, H100, "float16") * 1e6 == pytest.approx(microseconds, rel=0.01)


@pytest.mark.parametrize(("batch", "microseconds"), [(1, 74), (32, 124)])
def test_floors_of_a_step_of_a_generation(batch, microseconds):
    """The encoder's and the decoder's weights, and 37 kB of cache for each of 128 tokens per sequence, at 3.0 TB/s."""
    kernels = list(roofline.decode(MODELS["bert-base"], batch, 128, "float16"))
    assert roofline.floor_seconds(kernels, H100, "float16") * 1e6 == pytest.approx(microseconds, rel=0.01)


def test_flops_of_a_step_are_those_that_torch_counts():
    config = BertConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, vocab_size=50, is_decoder=True,
        attn_implementation="eager",
    )  # fmt: skip
    model = BertLMHeadModel(config).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad():
        cache = getattr(model(torch.randint(50, (2, 10)), use_cache=True), kv_cache.CACHE_FIELD)
        with counter:
            model(torch.randint(50, (2, 1)), **{kv_cache.CACHE_FIELD: cache})
    kernels = roofline.decode(Model("m", 3, 48, 4, 80, 50, 512), 2, 11, "float32")
    assert sum(k.flops for k in kernels) == counter.get_total_flops()


def test_fp8_halves_the_products_that_it_has():
    half, fp8 = ({k.name: k for k in roofline.forward(MODELS["bert-base"], [128] * 128, dtype)} for dtype in ("bfloat16", "fp8"))
    for name in half:
        ratio = fp8[name].arithmetic(H100, "fp8") / half[name].arithmetic(H100, "bfloat16") if half[name].flops else 1.0
        assert ratio == pytest.approx(0.5 if name in ("QKV product", "up product", "down product") else 1.0)
    assert fp8["up product"].weights < 0.51 * half["up product"].weights
    assert fp8["residual + LayerNorm"].bytes == pytest.approx(half["residual + LayerNorm"].bytes * 7 / 6)  # writes one more byte per value
    assert fp8["bias + GELU"].bytes == pytest.approx(half["bias + GELU"].bytes * 3 / 4)


def test_weights_are_those_of_the_model():
    kernels = list(roofline.forward(MODELS["bert-base"], [16], "float32"))
    with torch.device("meta"):
        model = BertModel(BertConfig())
    linears = [*model.encoder.named_parameters(), *model.pooler.named_parameters()]
    assert sum(k.weights for k in kernels) == 4 * sum(p.numel() for name, p in linears if "LayerNorm" not in name)


def test_padding_costs_only_the_unpacking():
    """A ragged batch costs its tokens and the unpacking."""
    ragged, tight = ([128, 7, 30], [165]), ([165], [165])
    for (lengths, _), name in ((ragged, "unpack"), (tight, None)):
        names = [k.name for k in roofline.forward(MODELS["minilm"], lengths, "float16")]
        assert ("unpack" in names) is (name is not None)
    by_tokens = ("QKV product", "output product", "up product", "down product", "residual + LayerNorm", "bias + GELU")
    a, b = ({k.name: k for k in roofline.forward(MODELS["minilm"], lengths, "float16")} for lengths, _ in (ragged, tight))
    assert all(a[name] == b[name] for name in by_tokens)
    assert a["attention"].flops < b["attention"].flops


def test_every_kernel_is_at_or_above_the_floor():
    for gpu in roofline.GPUS.values():
        for batch in ("1x1", "32x128", "128,1,1"):
            kernels = list(roofline.forward(MODELS["bert-base"], roofline.parse_batch(batch), "bfloat16"))
            total = sum(k.seconds(gpu, "bfloat16") for k in kernels)
            assert total >= roofline.floor_seconds(kernels, gpu, "bfloat16")


@pytest.mark.parametrize("text", ["", "x", "3x", "0x5", "4x-1", "a,b", "1x2x3"])
def test_a_malformed_batch_is_refused(text):
    with pytest.raises(ValueError, match="expected ROWSxLENGTH"):
        roofline.parse_batch(text)


def test_a_chip_without_fp8_says_so():
    with pytest.raises(ValueError, match="a100 has no fp8 units"):
        roofline.GPUS["a100"].peak("fp8")


def test_the_command(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BertConfig(hidden_size=128, num_attention_heads=2).to_dict()))
    row = {"status": "timed", "seconds": {"median": 0.114e-3}}
    workload = {"model": "bert-base", "shape": "1x16", "lengths": [16], "dtype": "float16", "rows": {"bertfast": row}}
    subjects = {"bertfast": {"dtype": "float16"}}
    results = {"format": 1, "subjects": subjects, "workloads": {"bert-base/1x16-float16": workload}}
    (tmp_path / "results.json").write_text(json.dumps(results))

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "benchmarks", "roofline", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "residual + LayerNorm" in run(str(tmp_path), "2x5")
    line = run("--results", str(tmp_path / "results.json")).splitlines()[-1].split()
    assert line[:5] == ["bert-base", "1x16", "float16", "bertfast", "0.114"]
    assert float(line[5]) == pytest.approx(2.0, rel=0.02)  # twice the 57 microseconds


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"expected one of .*bert-base"):
        roofline.read_model("nothing-here")


def test_the_page_is_what_is_counted():
    assert (ROOT / "docs" / "roofline.md").read_text(encoding="utf-8") == roofline.page(), (
        "write it again: python -m benchmarks roofline --page > docs/roofline.md"
    )


def test_a_missing_result_file_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "roofline", "--results", str(tmp_path / "time.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "time.json: there is no such file" in done.stderr
