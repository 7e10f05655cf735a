"""The promised speed and memory of MiniLM against transformers' sdpa, checked in one interleaved run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import subjects
from benchmarks.machine.identity import this_machine
from benchmarks.measure import runner
from benchmarks.report import results, terminal
from benchmarks.suite import stats, workloads


@dataclass(frozen=True)
class Promise:
    """At least this many times as fast as transformers; with `memory`, at least this many times as small."""

    workload: str
    avx2: float
    avx512: float
    memory: bool = False

    def least(self, isa: tuple[str, ...]) -> float:
        return self.avx512 if "AVX-512" in isa else self.avx2


PROMISES = (
    Promise("minilm/1x16", 3.0, 2.2),
    Promise("minilm/1x128", 1.6, 2.0),
    Promise("minilm/padded32", 3.0, 4.0),
    Promise("minilm/memory", 1 / 1.25, 1 / 1.25, memory=True),
)
KEPT, BROKEN, NOISY = 0, 1, 3


def judge(result: dict[str, Any]) -> list[tuple[str, str, str, int]]:
    """(workload, promised, measured, KEPT or BROKEN or NOISY) for each promise."""
    found = []
    for promise in PROMISES:
        workload = result["workloads"][promise.workload]
        row = workload["rows"].get("bertfast", {"status": "absent", "reason": "it did not run"})
        least = promise.least(tuple(result["machine"]["isa"]))
        promised = f"at most {1 / least:.2f}x the memory" if promise.memory else f"at least {least:.1f}x as fast"
        if row["status"] != "timed":
            found.append((promise.workload, promised, f"{row['status']}: {row.get('reason', '')}", BROKEN))
            continue
        ratio = row["ratio"]["value"]
        measured = f"{1 / ratio:.2f}x" if promise.memory else f"{ratio:.2f}x ± {row['ratio']['band']:.0%}"
        noisy = not promise.memory and (row["ratio"]["band"] > stats.NOISY or workload["quality"]["noisy"])
        found.append((promise.workload, promised, measured, NOISY if noisy else KEPT if ratio >= least else BROKEN))
    return found


def run(settings: runner.Settings, out: Path | None, console: Console) -> int:
    """The exit status: BROKEN if any promise is broken, otherwise NOISY if the machine was too noisy for one, otherwise KEPT."""
    specs = [subjects.SUBJECTS[name] for name in ("transformers", "bertfast")]
    chosen = [workloads.WORKLOADS[promise.workload] for promise in PROMISES]
    with console.status("starting") as status:
        settings.report = status.update
        result = runner.run(specs, chosen, settings)
    terminal.print_result(result, console)
    if out is not None:
        results.save(result, out)
    table = Table(title=f"promises on {this_machine().title}", title_justify="left")
    for heading in ("workload", "promised", "measured", ""):
        table.add_column(heading)
    verdicts = judge(result)
    words = {KEPT: "[green]kept[/]", BROKEN: "[red]not kept[/]", NOISY: "[yellow]noisy machine, no verdict[/]"}
    for workload, promised, measured, verdict in verdicts:
        table.add_row(workload, promised, measured, words[verdict])
    console.print(table)
    codes = [verdict for *_, verdict in verdicts]
    return BROKEN if BROKEN in codes else NOISY if NOISY in codes else KEPT
