"""bertfast embed: the embedding of every line of a text file."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from bertfast.cli.embed_run import facts_of
from bertfast.cli.input_texts import InputTexts
from bertfast.cli.output_files import RESTART, OutputFile, check_output, finished_run, open_output, part_of
from bertfast.cli.run_file import Digests, Facts
from bertfast.cli.standard_streams import standard_input

if TYPE_CHECKING:
    from bertfast.text.embedder import Embedder


def run(source: str, output: str, *, reader: InputTexts, model: str, resume: bool, restart: bool, quiet: bool, **options: Any) -> None:
    """Embed every text of `source` (a path, or "-" for standard input) into `output`; row i belongs to text i.

    options: passed to Embedder.from_pretrained. Raises ValueError; rows finished before an error stay in OUT.part.
    """
    console = Console(stderr=True, quiet=quiet, soft_wrap=True)
    name = "standard input" if source == "-" else source
    if resume and restart:
        raise ValueError("--resume and --restart: got both, expected one of them")
    check_output(output)
    total = reader.count(source)
    from bertfast.checkpoints.hub import local_folder

    with ExitStack() as stack:
        stream: IO[bytes] = standard_input() if source == "-" else stack.enter_context(open(source, "rb"))
        texts = reader.read(stream, name)
        if resume and output != "-" and not os.path.lexists(part_of(Path(output))) and Path(output).exists():
            rows = check_finished(Path(output), facts_of(str(local_folder(model)), **options), texts, name)
            console.print(f"{output} is complete: {rows:,} rows of the same run; nothing to do", highlight=False)
            return
        output_file = open_output(output, resume=resume, restart=restart)  # before the model is loaded
        stack.callback(output_file.close)
        folder = str(local_folder(model))  # once: each look-up of a name asks the Hub
        facts = facts_of(folder, **options) if output_file.part is not None else {}
        with console.status(f"loading {model}"):
            from bertfast.text.embedder import Embedder

            embedder = Embedder.from_pretrained(folder, **options)
        digest = output_file.begin(embedder.dim, facts)
        if digest is not None:
            skip_finished(texts, output_file, digest, name)
        rows, start = output_file.rows, time.perf_counter()
        try:
            embed_lines(texts, embedder, output_file, console, total)
            if output_file.rows == 0:
                raise ValueError(f"{name} is empty: expected one text per line")
            output_file.finish()
        except (Exception, KeyboardInterrupt):
            if output_file.rows and output_file.part is not None:
                kept = f"{output_file.rows:,} finished rows are kept in {output_file.part}; repeat the command with --resume to continue"
                Console(stderr=True, soft_wrap=True).print(kept, highlight=False)
            raise
    seconds, rows = time.perf_counter() - start, output_file.rows - rows
    console.print(
        f"{output}: {output_file.rows:,} x {embedder.dim} float32; {rows:,} texts in {seconds:.1f} s, {rows / seconds:,.0f} texts/s; "
        f"{embedder.description()}",
        highlight=False,
    )


def skip_finished(texts: Iterator[str], output_file: OutputFile, digest: str, name: str) -> None:
    """Skip the texts whose rows are written. Raises ValueError where they are not the texts of those rows."""
    for row in range(output_file.rows):
        text = next(texts, None)
        if text is None:
            raise ValueError(f"{output_file.part} holds {output_file.rows:,} rows, {name} only {row:,} texts; {RESTART}")
        output_file.digests.add_text(text)
    if output_file.digests.texts.hexdigest() != digest:
        raise ValueError(f"the first {output_file.rows:,} texts of {name} are not those of the rows in {output_file.part}; {RESTART}")


def check_finished(output: Path, facts: Facts, texts: Iterator[str], name: str) -> int:
    """The rows of a complete result. Raises ValueError where the same command would not compute the same."""
    run = finished_run(output, facts)
    digests = Digests()
    for text in texts:
        digests.add_text(text)
    if digests.texts.hexdigest() != run.texts:
        raise ValueError(f"{output} is the result of other texts than those of {name}; leave --resume out to replace it")
    return run.rows


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
