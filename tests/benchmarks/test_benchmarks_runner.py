"""Whole runs on a tiny model in real worker processes; no test looks at times."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import subjects
from benchmarks.measure import runner
from benchmarks.report import plots, tables
from benchmarks.subjects import Spec
from benchmarks.suite.workloads import WORKLOADS
from benchmarks.tools import first_speed

ROOT = Path(__file__).parents[2]


def wrong(name: str, fault: str) -> Spec:
    return Spec(name, "wrong_subject:Wrong", "float32", ("torch",), f"wrong on purpose: {fault}", options=(("fault", fault),))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def settings(cache):
    return runner.Settings(threads=1, cache=cache, rounds=2, seconds=0.0, turn=0.0, starts=1)


@pytest.fixture(scope="module", autouse=True)
def at_the_root():
    """Where workers find benchmarks, and the wrong subject beside this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def result(settings):
    faults = {name: wrong(name, name) for name in ("offset", "later", "raises", "dies")}
    ghost = Spec("ghost", "nowhere:Ghost", "float32", ("no_such_library_at_all",), "")
    own = replace(subjects.again("transformers"), name="own", ours=True)
    specs = [*faults.values(), ghost, subjects.again("transformers"), own]
    return runner.run(specs, [WORKLOADS["tiny/2x8"]], settings)


def test_a_subject_with_an_error_of_a_hundredth_is_not_timed(result):
    row = result["workloads"]["tiny/2x8"]["rows"]["offset"]
    assert row["status"] == "refused", row
    assert "seconds" not in row
    assert "turns" not in row
    assert row["check"]["largest"] == pytest.approx(1e-2, rel=1e-3)


def test_a_subject_that_goes_wrong_while_it_is_timed_loses_its_time(result):
    row = result["workloads"]["tiny/2x8"]["rows"]["later"]
    assert row["status"] == "refused"
    assert "after it was timed" in row["reason"]
    assert "seconds" not in row


def test_failures_cost_their_own_rows_only(result):
    rows = result["workloads"]["tiny/2x8"]["rows"]
    assert rows["raises"]["status"] == "failed"
    assert "it does not load" in rows["raises"]["reason"]
    assert rows["dies"]["status"] == "failed"
    assert "status 7" in rows["dies"]["reason"]
    assert rows["transformers"]["status"] == "timed"
    assert result["subjects"]["ghost"]["absent"] == "not installed: no_such_library_at_all"


def test_without_its_reference_nothing_is_timed(settings, monkeypatch):
    broken = replace(wrong("transformers", "raises"), name="transformers")
    monkeypatch.setitem(subjects.SUBJECTS, "transformers", broken)
    result = runner.run([subjects.again("transformers")], [WORKLOADS["tiny/2x8"]], settings)
    rows = result["workloads"]["tiny/2x8"]["rows"]
    assert {row["status"] for row in rows.values()} == {"failed"}
    assert "it does not load" in rows["transformers"]["reason"]
    tables.markdown(result)


def test_timed_rows_are_complete(result):
    workload = result["workloads"]["tiny/2x8"]
    row = workload["rows"]["transformers (again)"]
    assert row["check"]["largest"] == 0.0  # the same program twice
    assert len(row["turns"]) == workload["quality"]["rounds"]
    assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
    assert row["ratio"]["to"] == "transformers"
    assert row["ratio"]["band"] > 0
    assert workload["rows"]["own"]["best_peer"]["to"] in ("transformers", "transformers (again)")
    if result["peaks"]:
        assert row["of_arithmetic"] > 0


def test_result_prints_and_draws(result, tmp_path):
    page = tables.markdown(result)
    assert "| offset | refused |" in page
    for picture in plots.draw(result, tmp_path / "tiny"):
        assert picture.stat().st_size > 0


def test_steps_are_timed_in_stretches_and_drawn(settings, tmp_path):
    """60 tokens in stretches of 25: the first of each, which follows a prefill or a rest, has no time."""
    specs = [subjects.SUBJECTS["transformers"], subjects.SUBJECTS["bertfast"], wrong("fails", "raises"), wrong("another", "offset")]
    specs[3] = replace(specs[3], tasks=("generate",), options=(("fault", "token"),))
    specs[2] = replace(specs[2], tasks=("generate",))
    result = runner.run(specs, [WORKLOADS["tiny/steps"]], settings)
    workload = result["workloads"]["tiny/steps"]
    for name in ("transformers", "bertfast"):
        row = workload["rows"][name]
        assert row["status"] == "timed", row
        assert row["check"]["agreement"] == 1.0
        assert [i for i, step in enumerate(row["steps"]) if step is None] == [0, 25, 50]
        assert len(row["steps"]) == 60
        assert all(step > 0 for step in row["steps"] if step is not None)
        assert row["ratio"]["value"] > 0
        assert len(row["turns"]) == workload["quality"]["rounds"] == 2
    assert workload["rows"]["transformers"]["ratio"] == {"to": "transformers", "value": 1.0, "band": 0.0}
    assert workload["rows"]["fails"]["status"] == "failed"
    assert workload["rows"]["another"]["status"] == "refused"
    assert "steps" not in workload["rows"]["another"]
    drawn = plots.draw(result, tmp_path / "tiny")
    assert tmp_path / "tiny-steps.png" in drawn
    assert "us more for each token before it" in tables.markdown(result)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_stopped_worker_does_not_outlive_the_suite(tmp_path):
    """The suite is killed: nobody would wake the stopped worker, which would keep its memory."""
    suite = f"""
import os, pathlib, signal, time
from benchmarks.measure.client import ProcessClient
from benchmarks.subjects import SUBJECTS
client = ProcessClient(SUBJECTS["transformers"], 1, pathlib.Path({str(tmp_path / "log")!r}))
client.ask("peak")  # the first answer says that it is ready
client.pause()
while open(f"/proc/{{client.process}}/stat").read().rpartition(")")[2].split()[0] != "T":
    time.sleep(0.01)
print(client.process, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", suite], cwd=ROOT, capture_output=True, text=True)
    worker = Path("/proc") / done.stdout.strip()
    assert worker != Path("/proc"), done.stderr
    until = time.monotonic() + 30
    while worker.exists() and worker.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until, "it is still there"
        time.sleep(0.05)


def test_an_interrupted_run_keeps_what_is_done(settings):
    def stop(result):
        raise KeyboardInterrupt

    names = ["tiny/2x8", "tiny/memory"]
    result = runner.run([], [WORKLOADS[name] for name in names], replace(settings, advance=stop))
    assert result["interrupted"]
    assert list(result["workloads"]) == ["tiny/2x8"]
    assert result["notes"][-1] == "interrupted: 1 of 2 workloads were measured"
    row = result["workloads"]["tiny/2x8"]["rows"]["transformers"]
    assert row["status"] == "timed"
    assert not result["peaks"] or row["of_arithmetic"] > 0


def test_other_subjects_join_a_workload_for_some_by_name_only(settings):
    workload = replace(WORKLOADS["tiny/2x8"], only=("transformers",))
    specs = [subjects.SUBJECTS["transformers"], subjects.SUBJECTS["bertfast"]]
    assert list(runner.run(specs, [workload], settings)["workloads"]["tiny/2x8"]["rows"]) == ["transformers"]
    named = runner.run(specs, [workload], replace(settings, named=True))
    assert list(named["workloads"]["tiny/2x8"]["rows"]) == ["transformers", "bertfast"]
    assert set(named["subjects"]) == {"transformers", "bertfast"}


def test_a_named_subject_that_takes_no_part_is_listed(settings):
    specs = [subjects.SUBJECTS["bertfast.optimize"], subjects.SUBJECTS["flax437"]]
    wanting = [replace(spec, modules=(), environment="") for spec in specs]  # whatever is installed here
    result = runner.run(wanting[:1], [WORKLOADS["tiny/2x8"]], replace(settings, named=True))
    rows = result["workloads"]["tiny/2x8"]["rows"]
    assert rows["bertfast.optimize"] == {"status": "absent", "reason": "it takes no part in 'encoder'"}
    assert rows["transformers"]["status"] == "timed"
    rows = runner.run(wanting[1:], [WORKLOADS["tiny/memory"]], replace(settings, named=True))["workloads"]["tiny/memory"]["rows"]
    assert rows["flax437"] == {"status": "absent", "reason": "it takes no part in 'memory'"}


@pytest.mark.parametrize("name", ["tiny/cold", "tiny/memory"])
def test_a_wrong_answer_has_no_cold_start_and_no_memory(settings, name):
    result = runner.run([wrong("offset", "offset"), wrong("raises", "raises")], [WORKLOADS[name]], settings)
    rows = result["workloads"][name]["rows"]
    assert rows["offset"]["status"] == "refused"
    assert not {"seconds", "mib"} & set(rows["offset"])
    assert rows["raises"]["status"] == "failed"
    assert rows["transformers"]["status"] == "timed"
    assert rows["transformers"]["check"]["largest"] == 0.0
    tables.markdown(result)


def test_the_quick_selection_lists_whom_it_leaves_out(result):
    said = tables.missing(result)
    assert any(line.startswith("left out: torch.compile (") for line in said)
    assert "absent: ghost (not installed: no_such_library_at_all)" in said
    assert set(subjects.SUBJECTS) <= set(result["subjects"])


def test_generation_cold_start_and_memory(settings):
    names = ["tiny/generate", "tiny/cold", "tiny/memory"]
    result = runner.run([subjects.SUBJECTS["transformers"]], [WORKLOADS[name] for name in names], settings)
    generate, cold, memory = (result["workloads"][name]["rows"]["transformers"] for name in names)
    assert generate["status"] == "timed", generate
    assert generate["check"]["agreement"] == 1.0
    assert set(cold["phases"]) == {"import", "load", "first"}
    assert cold["seconds"]["median"] == pytest.approx(sum(cold["phases"].values()))
    assert memory["mib"] >= memory["loaded_mib"] > 10


def test_promises_are_judged_by_ratio_and_noise():
    def file(ratio, band=0.02, noisy=False, isa=("AVX2",)):
        row = {"status": "timed", "ratio": {"to": "transformers", "value": ratio, "band": band}}
        workload = {"rows": {"bertfast": row}, "quality": {"noisy": noisy}}
        return {"machine": {"isa": list(isa)}, "workloads": {promise.workload: workload for promise in first_speed.PROMISES}}

    def codes(result):
        return [code for *_, code in first_speed.judge(result)]

    kept, broken, noisy = first_speed.KEPT, first_speed.BROKEN, first_speed.NOISY
    assert codes(file(4.5)) == [kept] * 4
    assert codes(file(2.5)) == [broken, kept, broken, kept]
    assert codes(file(2.5, isa=("AVX-512",))) == [kept, kept, broken, kept]
    assert codes(file(0.5)) == [broken] * 4  # and twice the memory
    assert codes(file(4.5, noisy=True)) == [noisy, noisy, noisy, kept]
    assert codes(file(4.5, band=0.2)) == [noisy, noisy, noisy, kept]
    absent = file(4.5)
    for workload in absent["workloads"].values():
        workload["rows"] = {}
    assert codes(absent) == [broken] * 4
