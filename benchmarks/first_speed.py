"""python -m benchmarks.first_speed: what bertfast promises of MiniLM against transformers' sdpa, checked in one interleaved run.

Ends with status 1 if a promise is not kept, and with 3 if the machine was too busy to tell.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, report, results, runner, subjects, workloads
from benchmarks.__main__ import default_cache


@dataclass(frozen=True)
class Promise:
    """At least this many times as fast as transformers; `memory` is the largest share of its peak memory."""

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
    """Workload, promised, measured, and KEPT, BROKEN or NOISY, of bertfast's rows."""
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
        noisy = not promise.memory and (row["ratio"]["band"] > report.NOISY or workload["quality"]["noisy"])
        found.append((promise.workload, promised, measured, NOISY if noisy else KEPT if ratio >= least else BROKEN))
    return found


def main(
    threads: int = 2,
    rounds: Annotated[int, typer.Option(help="least number of undisturbed rounds")] = 15,
    out: Annotated[Path | None, typer.Option(help="keep the result file as well")] = None,
    cache: Annotated[Path | None, typer.Option(help="where weights are kept")] = None,
) -> None:
    """Checks the promises of MiniLM's speed and memory against transformers."""
    console = Console()
    specs = [subjects.SUBJECTS[name] for name in ("transformers", "bertfast")]
    chosen = [workloads.WORKLOADS[promise.workload] for promise in PROMISES]
    settings = runner.Settings(threads=threads, cache=cache or default_cache(), rounds=rounds, seconds=5.0, turn=0.2)
    with console.status("starting") as status:
        settings.report = status.update
        result = runner.run(specs, chosen, settings)
    report.print_result(result, console)
    if out is not None:
        results.save(result, out)
    table = Table(title=f"promises on {machine.this_machine().title}", title_justify="left")
    for heading in ("workload", "promised", "measured", ""):
        table.add_column(heading)
    verdicts = judge(result)
    words = {KEPT: "[green]kept[/]", BROKEN: "[red]not kept[/]", NOISY: "[yellow]noisy machine, no verdict[/]"}
    for workload, promised, measured, verdict in verdicts:
        table.add_row(workload, promised, measured, words[verdict])
    console.print(table)
    codes = [verdict for *_, verdict in verdicts]
    sys.exit(BROKEN if BROKEN in codes else NOISY if NOISY in codes else KEPT)


if __name__ == "__main__":
    typer.run(main)
