"""A result in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import tables


def print_result(result: dict[str, Any], console: Console) -> None:
    for line in tables.headline(result):
        console.print(line, highlight=False, markup=False)
    for name, workload in result["workloads"].items():
        table = Table(title=tables.title(name, workload), title_justify="left", title_style="bold", header_style="dim")
        for i, heading in enumerate(tables.headings(workload)):
            table.add_column(heading, justify="left" if i in (0, 5, 6) else "right", overflow="fold")
        for line in tables.lines(workload):
            table.add_row(*line.cells, style=line.style)
        console.print()
        console.print(table)
    for line in tables.missing(result):
        console.print(line, style="dim", highlight=False, markup=False)
