"""The GPU part of the benchmarks without a GPU: dry runs on the CPU, whose times mean nothing, and the plain-torch peer."""

import json
import os
import subprocess
import sys
import tarfile
from datetime import datetime
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import accuracy, adapters, measurer, tune
from benchmarks.gpu.options import Options
from benchmarks.gpu.timing import time_calls
from benchmarks.report import results
from benchmarks.suite.checks import COSINE
from benchmarks.suite.models import HEADS, MODELS, build
from benchmarks.suite.workloads import Workload, gpu_workload
from bertfast.ops import reference

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(part: str, out: Path, cache: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks", "gpu", part, "--device", "cpu", "--model", "tiny", "--dtype", "float32"]
    command += ["--out", str(out), "--cache", str(cache), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / f"{part}.json").read_text())


def options(out: Path, cache: Path, **changed) -> Options:
    given = {"model": "tiny", "dtypes": ["float32"], "shapes": ["1x16"], "subjects": ["bertfast"], "batches": [2], "rounds": 1, "turn": 0.0}
    return Options(**{**given, "inputs": 2, "device": "cpu", "seconds": 600.0, "out": out, "cache": cache, **changed})


def test_check(tmp_path, cache):
    rows = run("check", tmp_path, cache, "--inputs", "2")["rows"]
    assert {row["head"] for row in rows} == {HEADS[task][0] for task in accuracy.TASKS}
    assert len({row["head"] for row in rows}) == 5
    assert {row["batch"] for row in rows} == {"unpadded", "right-padded", "left-padded"}
    assert all(row["good"] and row["bertfast"] > 0 for row in rows)


def test_time_and_the_roofline_that_reads_it(tmp_path, cache):
    names = ["bertfast", "bertfast-eager", "transformers-eager", "varlen"]
    result = run("time", tmp_path, cache, "--shape", "1x16", "padded32", "--rounds", "1", "--turn", "0", "--subject", *names)
    assert results.load(tmp_path / "time.json") == result  # a result file of the suite
    datetime.fromisoformat(result["created"])
    assert {"torch", "transformers", "bertfast"} <= result["versions"].keys()
    assert "Python" in result["machine"]["system"]
    assert list(result["workloads"]) == ["tiny/1x16-float32", "tiny/padded32-float32"]
    for workload in result["workloads"].values():
        rows = workload["rows"]
        assert rows.pop("varlen") == {"status": "absent", "reason": "it runs under a CUDA graph, which needs an NVIDIA GPU"}
        assert set(rows) == {"bertfast", "bertfast-eager", "transformers-eager", "transformers"}
        assert all(row["seconds"]["median"] > 0 and row["back_to_back"]["median"] > 0 for row in rows.values())
        assert all(row["check"]["cosine"] > 0.99999 for row in rows.values())
        assert all(row["ratio"]["to"] == "transformers" for row in rows.values())
    assert "| bertfast-eager |" in (tmp_path / "time.md").read_text()
    command = [sys.executable, "-m", "benchmarks", "roofline", "--results", str(tmp_path / "time.json")]
    assert len(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()) == 2 + 8


def test_a_subject_that_computes_something_else_is_not_timed(tmp_path, cache, monkeypatch):
    load = adapters.Transformers.load

    def wrong(self, *arguments):
        load(self, *arguments)
        if self.attention == "eager":
            self.model.encoder.layer[1].output.dense.weight.neg_()

    monkeypatch.setattr(adapters.Transformers, "load", wrong)
    for dtype, reason in (("float32", "differs by"), ("bfloat16", f"at least {COSINE} is required")):
        result = time_calls(options(tmp_path, cache, dtypes=[dtype], subjects=["transformers-eager"]))
        rows = result["workloads"][f"tiny/1x16-{dtype}"]["rows"]
        assert rows["transformers"]["status"] == "timed"
        assert rows["transformers-eager"]["status"] == "refused"
        assert reason in rows["transformers-eager"]["reason"]
        assert "seconds" not in rows["transformers-eager"]


def test_half_precision_is_checked_against_float32(tmp_path, cache):
    rows = time_calls(options(tmp_path, cache, dtypes=["bfloat16"]))["workloads"]["tiny/1x16-bfloat16"]["rows"]
    assert set(rows) == {"transformers", "bertfast"}  # the float32 one is not timed
    assert all(row["status"] == "timed" and row["check"]["largest"] > 1e-4 for row in rows.values())


def test_a_subject_is_not_compiled_when_the_time_is_up(tmp_path, cache, monkeypatch):
    over = options(tmp_path, cache, subjects=["bertfast", "transformers-eager"])
    begun = []

    def time_is_up():  # once the workload has begun
        begun.append(True)
        return len(begun) > 2

    monkeypatch.setattr(over, "time_is_up", time_is_up)
    rows = time_calls(over)["workloads"]["tiny/1x16-float32"]["rows"]
    assert rows["bertfast"]["status"] == "timed"
    assert rows["transformers-eager"] == {"status": "absent", "reason": measurer.NO_TIME}
    assert over.not_reached == ["tiny/1x16-float32: transformers-eager"]


def test_decode_and_the_roofline_that_reads_it(tmp_path, cache):
    names = ["bertfast", "bertfast-eager"]
    workload = run("decode", tmp_path, cache, "--batch", "2", "--rounds", "1", "--subject", *names)["workloads"]["tiny/decode-2-float32"]
    rows = workload["rows"]
    assert set(rows) == {"bertfast", "bertfast-eager", "transformers"}
    assert [row["check"]["agreement"] for row in rows.values()] == [1.0] * 3
    assert all(row["seconds"]["median"] > row["step"]["median"] for row in rows.values())
    assert workload["cached"] > measurer.PROMPT
    assert "ms a step" in (tmp_path / "decode.md").read_text()
    command = [sys.executable, "-m", "benchmarks", "roofline", "--results", str(tmp_path / "decode.json")]
    assert "decode-2" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_step_is_what_more_tokens_cost(tmp_path):
    """100 ms for 16 tokens and 740 ms for 80: 10 ms for each of the 64 more."""

    class Made(measurer.Decode):
        def __init__(self):
            pass

    def measure(self, workload):
        seconds = {measurer.FEW: 0.1, measurer.MANY: 0.74}[workload.new_tokens]
        return {"rows": {"bertfast": {"status": "timed", "turns": [seconds] * 3}, "other": {"status": "failed"}}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurer.GpuCalls, "measure", measure)
        found = Made().measure(Workload("tiny", "decode-1", (32,), 32, "generate", "decode", measurer.MANY))
    assert found["rows"]["bertfast"]["step"]["median"] == pytest.approx(0.01)
    assert "step" not in found["rows"]["other"]


def test_fp8_beside_bfloat16(tmp_path, cache):
    """Without fp8 in the GPU its row says what it needs; bfloat16 is timed, with its error."""
    result = run("fp8", tmp_path, cache, "--shape", "1x16", "padded32", "--rounds", "1", "--turn", "0")
    assert {w["dtype"] for w in result["workloads"].values()} == {"bfloat16"}
    for workload in result["workloads"].values():
        rows = workload["rows"]
        assert set(rows) == {"transformers", "bertfast", "bertfast-fp8"}
        assert all(0.99 < row["check"]["cosine"] <= 1 + 1e-9 and 0 < row["check"]["rms"] < 0.1 for row in rows.values() if "check" in row)
        assert rows["bertfast"]["status"] == "timed"
        if not torch.cuda.is_available():
            assert rows["bertfast-fp8"]["status"] == "absent"
            assert "fp8" in rows["bertfast-fp8"]["reason"]


def test_trace(tmp_path, cache):
    run("trace", tmp_path, cache, "--shape", "1x16")
    assert (tmp_path / "trace-1x16.json.gz").stat().st_size > 0


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-m", "benchmarks", "gpu", "time"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs an NVIDIA GPU" in done.stderr


def test_the_plain_torch_peer_computes_bert(monkeypatch):
    """Its attention runs on a GPU only; here the reference op takes its place."""
    from benchmarks.gpu import varlen_bert

    monkeypatch.setattr(varlen_bert, "varlen_attn", reference.varlen_attention)
    bert = build(MODELS["tiny"], "encoder")
    arrays = Workload("tiny", "ragged", (9, 4, 7), 9).inputs()
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    p = adapters.packed(given)
    with torch.no_grad():
        hidden, pooled = varlen_bert.VarlenBert(bert)(p["ids"], p["positions"], p["types"], p["cu_seqlens"], 9)
        want = bert(**given)
    torch.testing.assert_close(hidden, want.last_hidden_state[given["attention_mask"].bool()])
    torch.testing.assert_close(pooled, want.pooler_output)


def test_the_plain_torch_peer_is_compared_at_real_tokens():
    adapter = adapters.Varlen("float32", 1, "cpu")
    arrays = Workload("tiny", "ragged", (3, 2), 3).inputs()
    adapter._mask = arrays["attention_mask"].astype(bool)
    found = adapter.outputs({"last_hidden_state": torch.arange(10.0).view(5, 2), "pooler_output": torch.ones(2, 2)})
    assert found["last_hidden_state"][arrays["attention_mask"].astype(bool)].tolist() == torch.arange(10.0).view(5, 2).tolist()
    assert found["last_hidden_state"].shape == (2, 3, 2)


def test_a_mask_without_padding_is_left_out():
    """Its tokens would have to be counted on the device."""
    adapter = adapters.Bertfast("float32", 1, "cpu")
    for shape, masked in (("1x16", False), ("padded32", True)):
        given = adapter._given(gpu_workload("tiny", shape, "float32", "cpu").inputs(), 0)
        assert ("attention_mask" in given) is masked


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)
    refused = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "nonsense"], env={**os.environ, "RESULTS": os.devnull}, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "no part nonsense" in refused.stderr


def test_nothing_begins_without_time(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "gpu", "time", "--device", "cpu", "--model", "tiny", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--seconds", "0", "--shape", "1x16"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert json.loads((tmp_path / "time.json").read_text())["not_reached"] == ["tiny/1x16-float16"]


def test_a_dry_run_of_the_script(tmp_path):
    """The script's own commands with a tiny model on the CPU. OUT holds exactly two files."""
    places = {"RESULTS": str(tmp_path / "results"), "OUT": str(tmp_path / "out")}
    environment = {**os.environ, **places, "DRY": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "trace", "fp8"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all parts passed" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.tar.gz", "summary.md"]
    assert "- roofline-fp8: passed" in (tmp_path / "out" / "summary.md").read_text()
    with tarfile.open(tmp_path / "out" / "gpu.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"./fp8.json", "./fp8.md", "./fp8.log", "./trace.json", "./trace-1x128.json.gz", "./roofline-fp8.log"} <= names


def test_the_script_says_what_it_had_no_time_for(tmp_path):
    environment = {**os.environ, "DRY": "1", "BUDGET": "5", "RESULTS": str(tmp_path / "results"), "OUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh"), "check"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3
    assert "check: NOT RUN, the 5 s are used up" in done.stdout
    assert "incomplete: check" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_the_search_has_every_tile_in_use_and_compiles_each_kernel_once(dtype):
    pytest.importorskip("triton")
    problems = list(tune.problems(dtype, "meta"))
    found = [problem.candidates() for problem in problems]
    for problem, candidates in zip(problems, found, strict=True):
        assert sum(candidate.default for candidate in candidates) == 1, problem.where
        assert len({candidate.tile for candidate in candidates}) == len(candidates)
    chosen = tune.to_compile(dtype)
    assert chosen == sorted(chosen), "a process makes the operands of a problem once"
    binaries = [found[i][j].binary for i, j in chosen]
    assert len(set(binaries)) == len(binaries)
    assert set(binaries) == {candidate.binary for candidates in found for candidate in candidates} - {None}


def test_the_search_prints_from_which_number_of_rows_on_a_tile_always_wins():
    tuning = pytest.importorskip("bertfast.kernels.tuning", reason="triton is published for Linux only")

    def rows(F: int, wins: dict[int, bool]) -> list[dict]:
        where = {"kernel": "linear", "dtype": "float16", "K": 768, "F": F}
        tiles = {T: str(tuning.linear_tile(torch.float16, T)) for T in wins}
        ours = [{**where, "T": T, "tile": tiles[T], "ms": 1.0 if won else 3.0} for T, won in wins.items()]
        return [*ours, *({**where, "T": T, "tile": "cuBLAS", "ms": 2.0} for T in wins), {**where, "T": 16, "tile": "another", "ms": 0.1}]

    measured = [
        *rows(3072, {16: True, 128: False, 1024: True, 4096: True}),
        *rows(768, {16: True, 4096: False}),
        *rows(2304, {16: True, 128: True}),
    ]
    assert tune.triton_linear_wins(measured, "a GPU") == [
        "    ('a GPU', torch.float16, 768, 3072): 1024,",
        "    ('a GPU', torch.float16, 768, 2304): 16,",
    ]
    for T in (16, 128, 512, 1024, 4096, 16384):  # the tile in use is among those measured
        candidates = next(p for p in tune.problems(torch.float16, "meta") if p.where.get("T") == T).candidates()
        assert str(tuning.linear_tile(torch.float16, T)) in {candidate.tile for candidate in candidates}


def test_the_search_goes_on_where_the_tile_in_use_does_not_run(capsys):
    ran = {"tile": "Tile(16)", "default": False, "ms": 2.0}
    tune.report_best([ran], "D=64")
    tune.report_best([{**ran, "tile": "Tile(64)", "default": True, "ms": 3.0}, ran], "D=64")
    tune.report_best([], "D=64")
    assert capsys.readouterr().out.splitlines() == [
        "  D=64: in use did not run; best 2.0000 ms (Tile(16))",
        "  D=64: in use 3.0000 ms (Tile(64)); best 2.0000 ms (Tile(16))",
        "  D=64: in use did not run; best nothing ran",
    ]
