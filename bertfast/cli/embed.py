"""bertfast embed: the embedding of every line of a text file."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from bertfast.cli.input_lines import count_lines, read_lines
from bertfast.cli.output_files import OutputFile, check_output, open_output

if TYPE_CHECKING:
    from bertfast.text.embedder import Embedder

SAME_ROW = 0.02  # relative distance: far above the effect of another batch or device, far below the distance of two texts


def run(source: str, output: str, *, model: str, resume: bool, restart: bool, quiet: bool, **options: Any) -> None:
    """Embed every line of `source` (a path, or "-" for standard input) into `output`; row i belongs to line i.

    options: passed to Embedder.from_pretrained. Raises ValueError; rows finished before an error stay in OUT.part.
    """
    console = Console(stderr=True, quiet=quiet)
    name = "standard input" if source == "-" else source
    if resume and restart:
        raise ValueError("--resume and --restart: got both, expected one of them")
    check_output(output, resume=resume, restart=restart)  # before loading the model
    total = count_lines(source)
    with console.status(f"loading {model}"):
        from bertfast.text.embedder import Embedder

        embedder = Embedder.from_pretrained(model, **options)
    with ExitStack() as stack:
        stream: IO[bytes] = sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
        output_file = open_output(output, embedder.dim, resume=resume)
        stack.callback(output_file.close)
        texts = read_lines(stream, name)
        if output_file.rows:
            skip_finished(texts, output_file, embedder, name)
        rows, start = output_file.rows, time.perf_counter()
        try:
            embed_lines(texts, embedder, output_file, console, total)
            if output_file.rows == 0:
                raise ValueError(f"{name} is empty: expected one text per line")
        except (Exception, KeyboardInterrupt):
            if output_file.rows and output_file.part is not None:
                kept = f"{output_file.rows:,} finished rows are kept in {output_file.part}; repeat the command with --resume to continue"
                Console(stderr=True, soft_wrap=True).print(kept, highlight=False)
            raise
        output_file.finish()
    seconds, rows = time.perf_counter() - start, output_file.rows - rows
    console.print(
        f"{output}: {output_file.rows:,} x {embedder.dim} float32; {rows:,} texts in {seconds:.1f} s, {rows / seconds:,.0f} texts/s; "
        f"{embedder.description()}",
        highlight=False,
        soft_wrap=True,
    )


def skip_finished(texts: Iterator[str], output_file: OutputFile, embedder: "Embedder", name: str) -> None:
    """Skip the texts whose rows are written. Raises ValueError where the last of those rows differs from its text's embedding."""
    text = None
    for row in range(output_file.rows):
        text = next(texts, None)
        if text is None:
            raise ValueError(f"{output_file.part} holds {output_file.rows:,} rows, {name} only {row:,} lines; --restart starts over")
    assert text is not None
    old, new = output_file.last(), embedder.encode([text])[0]
    if not np.linalg.norm(old - new) <= SAME_ROW * np.linalg.norm(new):
        raise ValueError(
            f"row {output_file.rows:,} of {output_file.part} is not what this model and these options give for line {output_file.rows:,} "
            f"of {name}; --restart starts over"
        )


def embed_lines(texts: Iterator[str], embedder: "Embedder", output_file: OutputFile, console: Console, total: int | None) -> None:
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, completed=output_file.rows)
        for chunk, vectors in embedder.encode_stream(texts, on_rows=lambda rows: progress.advance(task, rows)):
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                raise ValueError(f"line {output_file.rows + int(np.argmin(finite)) + 1}: the model returned NaN or infinity")
            output_file.append(chunk, vectors)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} texts/s" if task.speed else "")
