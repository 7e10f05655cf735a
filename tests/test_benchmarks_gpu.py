"""benchmarks/gpu.py and its plain-torch peer, as far as they go without a GPU: a dry run on the CPU, whose times mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_decode
from bertfast.ops import reference

ROOT = Path(__file__).parents[1]


def run(part: str, out: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.gpu", part, "--device", "cpu", "--model", "tiny", "--dtype", "float32"]
    done = subprocess.run([*command, "--out", str(out), *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / f"{part}.json").read_text())


def test_check(tmp_path):
    rows = run("check", tmp_path, "--inputs", "2")["rows"]
    assert {row["head"] for row in rows} == set(gpu.HEADS)
    assert {row["batch"] for row in rows} == {"unpadded", "right-padded", "left-padded"}
    assert all(row["good"] and row["bertfast"] > 0 for row in rows)


def test_time_and_the_roofline_that_reads_it(tmp_path):
    subjects = ["bertfast", "launches", "eager", "sdpa", "varlen"]
    rows = run("time", tmp_path, "--shape", "1x16", "padded32", "--rounds", "1", "--turn", "0", "--subject", *subjects)["rows"]
    # The unpadded peer needs a GPU: it says so and stays out.
    timed = {"bertfast", "bertfast, plain launches", "transformers eager", "transformers sdpa"}
    assert {(row["batch"], row["subject"]) for row in rows} == {(batch, name) for batch in ("1x16", "padded32") for name in timed}
    assert all(row["ms"] > 0 and row["ms_stream"] > 0 for row in rows)
    assert "| bertfast, plain launches |" in (tmp_path / "time.md").read_text()
    command = [sys.executable, "-m", "benchmarks.roofline", "--results", str(tmp_path / "time.json")]
    assert len(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()) == 2 + len(rows)


def test_decode_and_the_roofline_that_reads_it(tmp_path):
    rows = run("decode", tmp_path, "--batch", "2", "--rounds", "1", "--subject", "bertfast", "launches", "dynamic")["rows"]
    assert {row["subject"] for row in rows} == {"bertfast", "bertfast, plain launches", "transformers, dynamic cache"}
    assert all(row["ms_generation"] > 0 and row["cached"] > gpu_decode.PROMPT for row in rows)
    assert "milliseconds a step" in (tmp_path / "decode.md").read_text()
    command = [sys.executable, "-m", "benchmarks.roofline", "--results", str(tmp_path / "decode.json")]
    assert "decode 2" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_fp8_beside_bfloat16(tmp_path):
    """Here without fp8, which says what it needs; what is left is bfloat16, with its accuracy."""
    rows = run("fp8", tmp_path, "--shape", "1x16", "padded32", "--rounds", "1", "--turn", "0")["rows"]
    assert {row["dtype"] for row in rows} == ({"bfloat16", "fp8"} if torch.cuda.is_available() else {"bfloat16"})
    assert all(0.99 < row["worst_cosine"] <= 1 + 1e-9 and 0 < row["rms"] < 0.1 for row in rows)


def test_trace(tmp_path):
    run("trace", tmp_path, "--shape", "1x16")
    assert (tmp_path / "trace-1x16.json.gz").stat().st_size > 0


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "time"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs an NVIDIA GPU" in done.stderr


def test_the_plain_torch_peer_computes_bert(monkeypatch):
    """Its attention runs on a GPU alone; with the plain definition in its place the rest is as it will be timed."""
    from benchmarks import varlen_bert

    monkeypatch.setattr(varlen_bert, "varlen_attn", reference.varlen_attention)
    bert = gpu.build("tiny", torch.float32, "cpu")
    given = gpu.make_inputs([9, 4, 7], 1000, "cpu")
    p = gpu.packed(given, 9)
    hidden, pooled = varlen_bert.VarlenBert(bert)(p["ids"], p["positions"], p["types"], p["cu_seqlens"], 9)
    want = bert(**given)
    torch.testing.assert_close(hidden, want.last_hidden_state[given["attention_mask"].bool()])
    torch.testing.assert_close(pooled, want.pooler_output)


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)
    refused = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh"), "nonsense"], capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2
    assert "no part nonsense" in refused.stderr
