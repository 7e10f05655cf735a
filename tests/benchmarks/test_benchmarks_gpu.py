"""benchmarks/gpu.py and its plain-torch peer, as far as they go without a GPU: a dry run on the CPU, whose times mean nothing."""

import argparse
import json
import os
import subprocess
import sys
import tarfile
from datetime import datetime
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_common, gpu_decode, gpu_tune
from bertfast.ops import reference

ROOT = Path(__file__).parents[2]


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
    result = run("time", tmp_path, "--shape", "1x16", "padded32", "--rounds", "1", "--turn", "0", "--subject", *subjects)
    rows = result["rows"]
    for batch in ("1x16 float32", "padded32 float32"):  # the unpadded peer needs a GPU: it says so and stays out
        assert result["absent"][batch] == {"varlen": "RuntimeError: it runs under a CUDA graph, which needs an NVIDIA GPU"}
    datetime.fromisoformat(result["environment"]["date"])
    assert {"device", "python", "torch", "transformers", "bertfast"} <= result["environment"].keys()
    timed = {"bertfast", "bertfast, plain launches", "transformers eager", "transformers sdpa"}
    assert {(row["batch"], row["subject"]) for row in rows} == {(batch, name) for batch in ("1x16", "padded32") for name in timed}
    assert all(row["ms"] > 0 and row["ms_stream"] > 0 and row["worst_cosine"] > 0.99999 for row in rows)
    assert "| bertfast, plain launches |" in (tmp_path / "time.md").read_text()
    command = [sys.executable, "-m", "benchmarks.roofline", "--results", str(tmp_path / "time.json")]
    assert len(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()) == 2 + len(rows)


def test_a_rival_that_computes_something_else_is_not_timed(monkeypatch):
    def built(*arguments, **config):
        model = gpu_common.build(*arguments, **config)
        if config["attn_implementation"] == "eager":
            model.encoder.layer[1].output.dense.weight.neg_()
        return model

    monkeypatch.setattr(gpu, "build", built)
    options = argparse.Namespace(model="tiny", device="cpu", subject=["sdpa", "eager"], time_is_up=lambda: False)
    given, absent = gpu_common.make_inputs([8, 5], 1000, "cpu"), {}
    with torch.no_grad():
        found = gpu.subjects(options, torch.float32, given, [8, 5], absent)
    assert [subject.name for subject in found] == ["transformers sdpa"]
    assert "its hidden states are not transformers': worst cosine" in absent["eager"]


def test_decode_and_the_roofline_that_reads_it(tmp_path):
    rows = run("decode", tmp_path, "--batch", "2", "--rounds", "1", "--subject", "bertfast", "launches", "dynamic")["rows"]
    assert {row["subject"] for row in rows} == {"bertfast", "bertfast, plain launches", "transformers, dynamic cache"}
    assert [row["equal_tokens"] for row in rows] == [1.0] * 3
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
    refused = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "nonsense"], env={**os.environ, "RESULTS": os.devnull}, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "no part nonsense" in refused.stderr


def test_without_time_nothing_is_begun_and_that_is_said(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "time", "--device", "cpu", "--model", "tiny", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--seconds", "0", "--shape", "1x16"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert json.loads((tmp_path / "time.json").read_text())["not_reached"] == ["1x16 float16"]


def test_a_dry_run_of_the_script(tmp_path):
    """The commands of the script as they are, with a tiny model on the CPU. In OUT it leaves two files, whatever the parts write."""
    places = {"RESULTS": str(tmp_path / "results"), "OUT": str(tmp_path / "out")}
    environment = {**os.environ, **places, "DRY": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "trace", "fp8"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all parts passed" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.tar.gz", "summary.md"]
    assert "- roofline-fp8: passed" in (tmp_path / "out" / "summary.md").read_text()
    with tarfile.open(tmp_path / "out" / "gpu.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"./fp8.json", "./fp8.md", "./fp8.log", "./trace.json", "./trace-1x128.json.gz", "./roofline-fp8.log"} <= names


def test_the_script_stops_for_want_of_time_and_says_so(tmp_path):
    environment = {**os.environ, "DRY": "1", "BUDGET": "5", "RESULTS": str(tmp_path / "results"), "OUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh"), "check"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3
    assert "check: NOT RUN, the 5 s are used up" in done.stdout
    assert "incomplete: check" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_what_the_search_would_run(dtype):
    """Each problem once with what is in use; and every kernel compiled once, by one of the processes that share the work."""
    gpu_tune = pytest.importorskip("benchmarks.gpu_tune", reason="triton is published for Linux only")
    pytest.importorskip("triton")
    problems = list(gpu_tune.problems(dtype, "meta"))
    found = [problem.candidates() for problem in problems]
    for problem, candidates in zip(problems, found, strict=True):
        assert sum(candidate.default for candidate in candidates) == 1, problem.where
        assert len({candidate.tile for candidate in candidates}) == len(candidates)
    chosen = gpu_tune.to_compile(dtype)
    assert chosen == sorted(chosen), "a process makes the operands of a problem once"
    binaries = [found[i][j].binary for i, j in chosen]
    assert len(set(binaries)) == len(binaries)
    assert set(binaries) == {candidate.binary for candidates in found for candidate in candidates} - {None}


def test_what_the_search_writes_for_the_table():
    """From the fewest rows on at which the tile in use wins at them and at all larger ones."""
    gpu_tune = pytest.importorskip("benchmarks.gpu_tune", reason="triton is published for Linux only")
    tuning = pytest.importorskip("bertfast.kernels.tuning", reason="triton is published for Linux only")

    def rows(F: int, wins: dict[int, bool]) -> list[dict]:
        where = {"kernel": "gemm", "dtype": "float16", "K": 768, "F": F}
        tiles = {T: str(tuning.gemm_tile(torch.float16, T)) for T in wins}
        ours = [{**where, "T": T, "tile": tiles[T], "ms": 1.0 if won else 3.0} for T, won in wins.items()]
        return [*ours, *({**where, "T": T, "tile": "cuBLAS", "ms": 2.0} for T in wins), {**where, "T": 16, "tile": "another", "ms": 0.1}]

    measured = [
        *rows(3072, {16: True, 128: False, 1024: True, 4096: True}),
        *rows(768, {16: True, 4096: False}),
        *rows(2304, {16: True, 128: True}),
    ]
    assert gpu_tune.gemm_wins(measured, "a GPU") == [
        "    ('a GPU', torch.float16, 768, 3072): 1024,",
        "    ('a GPU', torch.float16, 768, 2304): 16,",
    ]
    for T in (16, 128, 512, 1024, 4096, 16384):  # the tile in use is among those measured
        candidates = next(p for p in gpu_tune.problems(torch.float16, "meta") if p.where.get("T") == T).candidates()
        assert str(tuning.gemm_tile(torch.float16, T)) in {candidate.tile for candidate in candidates}


def test_the_search_goes_on_where_the_tile_in_use_does_not_run(capsys):
    ran = {"tile": "Tile(16)", "default": False, "ms": 2.0}
    gpu_tune.report_best([ran], "D=64")
    gpu_tune.report_best([{**ran, "tile": "Tile(64)", "default": True, "ms": 3.0}, ran], "D=64")
    gpu_tune.report_best([], "D=64")
    assert capsys.readouterr().out.splitlines() == [
        "  D=64: in use did not run; best 2.0000 ms (Tile(16))",
        "  D=64: in use 3.0000 ms (Tile(64)); best 2.0000 ms (Tile(16))",
        "  D=64: in use did not run; best nothing ran",
    ]
