"""Two result files side by side. Verdicts compare each subject's ratio to the reference of its own run, since a machine's speed differs
from day to day; the times are shown beside it."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report.tables import amount
from benchmarks.suite.stats import PLACEMENT, Ratio, change, verdict

OTHER_MACHINE = "other machine class"


@dataclass(frozen=True)
class Row:
    workload: str
    subject: str
    before: str
    after: str
    moved: str
    verdict: str  # faster, slower, same, noisy (no verdict), other machine class, or which side lacks it


def same_class(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before["machine"]["key"] == after["machine"]["key"] and before["threads"] == after["threads"]


def rows(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """One for every subject of every workload in either file."""
    found = []
    comparable = same_class(before, after)
    names = [*before["workloads"], *(n for n in after["workloads"] if n not in before["workloads"])]
    for name in names:
        a, b = before["workloads"].get(name), after["workloads"].get(name)
        subjects = [*(a or b)["rows"], *(s for s in (b or a)["rows"] if a and s not in a["rows"])]
        found += [_row(name, subject, a, b, comparable) for subject in subjects]
    return found


def _row(name: str, subject: str, a: Any, b: Any, comparable: bool) -> Row:
    left, right = (w["rows"].get(subject) if w else None for w in (a, b))
    shown = [_shown(row, w) for row, w in ((left, a), (right, b))]
    timed = [row is not None and row["status"] == "timed" and "ratio" in row for row in (left, right)]
    if not all(timed):
        which = {(True, False): "only before", (False, True): "only after"}.get((timed[0], timed[1]), "not timed")
        return Row(name, subject, *shown, "", which)
    if not comparable:
        return Row(name, subject, *shown, "", OTHER_MACHINE)
    # Memory is read once and has a band of 0, but two starts of one process differ.
    ratios = [Ratio(row["ratio"]["value"], max(row["ratio"]["band"], PLACEMENT)) for row in (left, right)]
    moved = change(*ratios)
    noisy = any(w.get("quality", {}).get("noisy", False) for w in (a, b))
    said = "noisy" if noisy else verdict(*ratios)
    if subject == a["reference"]:
        return Row(name, subject, *shown, "", "reference")
    return Row(name, subject, *shown, f"{moved.value:.2f} ± {moved.band:.0%}", said)


def _shown(row: Any, workload: Any) -> str:
    if row is None:
        return ""
    if row["status"] != "timed":
        return str(row["status"])
    ratio = f" ({row['ratio']['value']:.2f}x)" if "ratio" in row else ""
    return (f"{row['mib']:.0f} MiB" if "mib" in row else amount(row["seconds"]["median"], workload)) + ratio


def print_comparison(before: dict[str, Any], after: dict[str, Any], console: Console) -> None:
    for label, result in (("before", before), ("after", after)):
        console.print(
            f"{label}: {result['machine']['title']}; {result['threads']} threads; {result['created']}", highlight=False, markup=False
        )
    if not same_class(before, after):
        console.print("two machine classes: shown side by side, without a verdict", style="yellow")
    table = Table(header_style="dim")
    for heading in ("workload", "subject", "before", "after", "after / before", "verdict"):
        table.add_column(heading, justify="left" if heading in ("workload", "subject", "verdict") else "right")
    colours = {"faster": "green", "slower": "red", "noisy": "yellow"}
    for row in rows(before, after):
        said = "noisy machine, no verdict" if row.verdict == "noisy" else row.verdict
        table.add_row(row.workload, row.subject, row.before, row.after, row.moved, said, style=colours.get(row.verdict, ""))
    console.print(table)
    console.print("after / before: speed relative to the reference of the same run; the same if 1 lies within the band", style="dim")
