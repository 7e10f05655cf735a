"""The fuzzer: the corpus holds; a wrong reader, a crash, a hang and a waste of memory are each reported with a program that shows them."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import strategies as st

from bertfast.checkpoints import flax_msgpack
from tests.fuzz import corpus, runner
from tests.fuzz.bounds import bounded
from tests.fuzz.case import Case, Target
from tests.fuzz.worker import Worker


@pytest.mark.parametrize("name", runner.NAMES)
def test_the_corpus_holds(name: str) -> None:
    module = runner.module_of(name)
    assert module.__doc__, "say which property the target checks"
    cases = corpus.cases_of(module, corpus.FOLDER)
    assert cases, f"tests/fuzz/corpus/{name}.txt has no case"
    worker = Worker(module.TARGET.patience)
    try:
        for case in cases:
            result = worker.run(case)
            assert result.failure is None, f"{result.failure}\nRun it again:\n\n{case.program()}"
    finally:
        worker.close()


@dataclass(frozen=True)
class Number(Case):
    """A case that goes wrong from 100 on, in the way its target says."""

    kind: str
    n: int

    def check(self) -> str:
        if self.n >= 100:
            WRONG[self.kind]()
        return f"number {self.n}"


def waste() -> None:
    with bounded(60.0, 50.0):
        bytearray(200_000_000)


def hang() -> None:
    time.sleep(60)


WRONG = {"raises": lambda: 1 // 0, "dies": os.abort, "hangs": hang, "wastes": waste}


def target_of(kind: str) -> ModuleType:
    module = ModuleType(f"tests.fuzz.targets.{kind}")
    module.TARGET = Target(st.builds(Number, st.just(kind), st.integers(0, 300)), batch=60, patience=2.0)
    return module


@pytest.mark.parametrize(
    ("kind", "what"),
    [("raises", "ZeroDivisionError"), ("dies", "SIGABRT"), ("hangs", "no answer within 2 s"), ("wastes", "MB, at most 50")],
)
def test_what_goes_wrong_is_found_shrunk_and_reported(kind: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "module_of", target_of)
    monkeypatch.setattr(runner, "SHRINK_SECONDS", 4.0)
    [report] = runner.fuzz([kind], 8.0, 0, tmp_path)
    [finding] = report.findings
    assert what in (finding.result.failure or "")
    assert finding.case.n >= 100  # type: ignore[attr-defined]
    if kind in ("raises", "dies"):
        assert finding.case == Number(kind, 100)
    assert "number 0" in report.outcomes
    assert repr(finding.case) in runner.told(kind, finding)
    assert repr(finding.case) in (tmp_path / f"{kind}.txt").read_text()


@pytest.mark.parametrize("fault", ["another error", "another value", "no file named"])
def test_a_reader_that_misbehaves_is_reported_with_a_program(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = flax_msgpack.read

    def wrong(path: Path) -> object:
        try:
            for name, tensor in read(path):
                yield name, tensor + (tensor == tensor) if fault == "another value" else tensor
        except ValueError as error:
            if fault == "another value":
                raise
            raise (KeyError("x") if fault == "another error" else ValueError("damaged")) from error

    monkeypatch.setattr(flax_msgpack, "read", wrong)
    [report] = runner.fuzz(["msgpack_file"], 20.0, 0, tmp_path)
    assert report.findings, report
    program = report.findings[0].case.program()
    assert len(program.splitlines()) < 10
    if fault == "another value":
        exec(program, {})
    else:
        with pytest.raises(KeyError if fault == "another error" else ValueError, match="x" if fault == "another error" else r"^damaged$"):
            exec(program, {})


def test_the_same_seed_makes_the_same_cases() -> None:
    def outcomes(seed: int) -> list[str]:
        report, worker = runner.Report("raises"), Worker(30.0)
        target = Target(st.builds(Number, st.just("raises"), st.integers(0, 99)), batch=30)
        runner._round(target, worker, report, seed, set(), time.monotonic() + 60)
        worker.close()
        return sorted(report.outcomes)

    assert outcomes(1) == outcomes(1) != outcomes(2)


def test_the_command_says_by_its_exit_status_whether_something_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.fuzz.__main__ import main

    monkeypatch.setattr(runner, "module_of", target_of)
    monkeypatch.setattr("sys.argv", ["fuzz", "--minutes", "0.05", "--target", runner.NAMES[0]])
    monkeypatch.setattr(runner, "module_of", lambda name: target_of("raises"))
    monkeypatch.setattr(corpus, "cases_of", lambda module, folder: [Number("raises", 5)])
    assert main() == 1
    monkeypatch.setattr(runner, "_round", lambda *args: None)
    assert main() == 0
    assert "1 number 5" in capsys.readouterr().out
