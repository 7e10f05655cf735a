"""Runs targets: the corpus, then rounds of new cases until the time is over."""

import importlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from zlib import crc32

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded

from tests.fuzz import corpus
from tests.fuzz.case import Case, Target
from tests.fuzz.worker import Result, Worker

SHRINK_SECONDS = 60.0
NAMES = tuple(sorted(path.stem for path in Path(__file__).with_name("targets").glob("[a-z]*.py")))


@dataclass(frozen=True)
class Finding:
    case: Case
    result: Result


@dataclass
class Report:
    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        return f"{self.name:22} {self.outcomes.total():6} examples in {self.seconds:4.0f} s: {outcomes or 'none'}"


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def fuzz(names: Sequence[str], seconds: float, seed: int, folder: Path = corpus.FOLDER) -> list[Report]:
    """A report of each target. `seconds` are shared between them; the corpus is replayed whole. The same seed makes the same cases."""
    modules = {name: module_of(name) for name in names}
    whole = sum(module.TARGET.share for module in modules.values())
    reports = []
    for name, module in modules.items():
        report = _fuzz_one(name, module, seconds * module.TARGET.share / whole, seed, folder)
        print(report, flush=True)
        for finding in report.findings:
            print(told(name, finding), flush=True)
        reports.append(report)
    return reports


def told(name: str, finding: Finding) -> str:
    return f"--- {name}: a finding\n{finding.result.failure}\nRun it again:\n\n{finding.case.program()}\n---"


class _EnoughError(KeyboardInterrupt):
    """Ends a round: hypothesis catches no KeyboardInterrupt."""


def _fuzz_one(name: str, module: ModuleType, seconds: float, seed: int, folder: Path) -> Report:
    target: Target = module.TARGET
    report, worker, start = Report(name), Worker(target.patience), time.monotonic()
    known: set[str] = set()
    try:
        for case in corpus.cases_of(module, folder):
            result = worker.run(case)
            report.outcomes[result.outcome] += 1
            if result.failure is not None:
                report.findings.append(Finding(case, result))
                known.add(result.signature)
        number = 0
        while time.monotonic() - start < seconds:
            finding = _round(target, worker, report, crc32(f"{seed} {name} {number}".encode()), known, start + seconds)
            if finding is not None:
                report.findings.append(finding)
                known.add(finding.result.signature)
                corpus.append(module, folder, finding.case, finding.result.outcome) if folder != corpus.FOLDER else None
            number += 1
    finally:
        worker.close()
    report.seconds = time.monotonic() - start
    return report


def _round(target: Target, worker: Worker, report: Report, seed: int, known: set[str], end: float) -> Finding | None:
    """Runs one batch of cases. Returns the smallest failing one of a kind that is not known."""
    failing: list[Finding] = []

    @seeded(seed)
    @settings(
        max_examples=target.batch, database=None, deadline=None, phases=[Phase.generate, Phase.shrink], verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    @given(target.cases)
    def run(case: Case) -> None:
        nonlocal end
        if time.monotonic() > end:
            raise _EnoughError
        result = worker.run(case)
        if result.failure is None or result.signature in known:
            if not failing:
                report.outcomes[result.outcome] += 1
            return
        if not failing:
            report.outcomes[result.outcome] += 1
            end = time.monotonic() + SHRINK_SECONDS
        elif result.signature != failing[0].result.signature:
            return
        failing.append(Finding(case, result))
        raise AssertionError(result.signature)

    try:
        run()
    except _EnoughError:
        pass
    except Exception:
        if not failing:
            raise  # a fault of the strategy
    return min(reversed(failing), key=lambda finding: len(repr(finding.case)), default=None)
