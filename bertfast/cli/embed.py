"""bertfast embed: a file of texts in, their vectors out."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from bertfast.cli.files import OutputFile, check_output, open_output, read_lines

if TYPE_CHECKING:
    from bertfast.text.embedder import Embedder

SAME_ROW = 0.02  # relative: far above what another batch or device changes in a vector, far below the distance of two texts


def run(source: str, output: str, *, model: str, resume: bool, restart: bool, quiet: bool, **options: Any) -> None:
    """Embed every line of `source` (a path, or "-" for standard input) into `output`; row i belongs to line i.

    options go to Embedder.from_pretrained. Errors are ValueErrors; what was finished before one is kept in OUTPUT.part.
    """
    console = Console(stderr=True, quiet=quiet)
    name = "standard input" if source == "-" else source
    if resume and restart:
        raise ValueError("--resume and --restart: got both, expected one of them")
    check_output(output, resume=resume, restart=restart)  # before the long part
    total = count_lines(source)
    with console.status(f"loading {model}"):
        from bertfast.text.embedder import Embedder

        embedder = Embedder.from_pretrained(model, **options)
    with ExitStack() as stack:
        stream: IO[bytes] = sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
        sink = open_output(output, embedder.dim, resume=resume)
        stack.callback(sink.close)
        texts = read_lines(stream, name)
        if sink.rows:
            skip_finished(texts, sink, embedder, name)
        rows, start = sink.rows, time.perf_counter()
        try:
            embed_lines(texts, embedder, sink, console, total)
            if sink.rows == 0:
                raise ValueError(f"{name} is empty: expected one text a line")
        except (Exception, KeyboardInterrupt):
            if sink.rows and sink.part is not None:
                kept = f"{sink.rows:,} finished rows are kept in {sink.part}; the same command with --resume goes on from them"
                Console(stderr=True, soft_wrap=True).print(kept, highlight=False)
            raise
        sink.finish()
    seconds, rows = time.perf_counter() - start, sink.rows - rows
    console.print(
        f"{output}: {sink.rows:,} x {embedder.dim} float32; {rows:,} texts in {seconds:.1f} s, {rows / seconds:,.0f} a second; "
        f"{embedder.description()}",
        highlight=False,
        soft_wrap=True,
    )


def count_lines(source: str) -> int | None:
    """How many texts there are, None where that cannot be known before they are read. Finds a bad line before any work is done."""
    path = Path(source)
    if source == "-":
        return None
    if not path.exists():
        raise ValueError(f"input file {source!r} does not exist")
    if path.is_dir():
        raise ValueError(f"input file {source!r} is a folder; expected a text file with one text a line, or - for standard input")
    if not path.is_file():
        return None  # a pipe can be read only once
    with path.open("rb") as stream:
        total = sum(1 for _ in read_lines(stream, source))
    if total == 0:
        raise ValueError(f"{source} is empty: expected one text a line")
    return total


def skip_finished(texts: Iterator[str], sink: OutputFile, embedder: "Embedder", name: str) -> None:
    """Pass over the texts that have their rows, and make sure by the last of them that these rows came from these texts and this model."""
    text = None
    for row in range(sink.rows):
        text = next(texts, None)
        if text is None:
            raise ValueError(f"{sink.part} holds {sink.rows:,} rows, {name} only {row:,} lines; --restart begins anew")
    assert text is not None
    old, new = sink.last(), embedder.encode([text])[0]
    if not np.linalg.norm(old - new) <= SAME_ROW * np.linalg.norm(new):
        raise ValueError(
            f"row {sink.rows:,} of {sink.part} does not belong to line {sink.rows:,} of {name} with this model and these options"
        )


def embed_lines(texts: Iterator[str], embedder: "Embedder", sink: OutputFile, console: Console, total: int | None) -> None:
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, completed=sink.rows)
        for chunk, vectors in embedder.encode_stream(texts, on_rows=lambda rows: progress.advance(task, rows)):
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                raise ValueError(f"line {sink.rows + int(np.argmin(finite)) + 1}: the model gave a vector that is not finite")
            sink.append(chunk, vectors)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} a second" if task.speed else "")
