"""python -m benchmarks: checked against transformers first, then timed. steps, compare, readme, plot and list are subcommands."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import compare as comparing
from benchmarks import plots, readme, report, results, runner, subjects, workloads

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True)


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertfast-benchmarks"


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    workload: Annotated[
        list[str] | None, typer.Option("--workload", "-w", help="minilm/1x128, 1x128, minilm, embed, 'bert-base/*'; may be repeated")
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option("--subject", "-s", help="bertfast, onnxruntime, 'openvino*'; may be repeated")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="every workload and subject, at least 7 rounds: an hour and a half or two")] = False,
    threads: Annotated[int, typer.Option(help="of every subject")] = 2,
    rounds: Annotated[int | None, typer.Option(min=1, help="least number of undisturbed rounds")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="of rounds a workload at most, half of it on a quiet machine; not below ROUNDS")
    ] = None,
    twice: Annotated[str | None, typer.Option(help="a subject to run in a second process as well: its ratio to itself should be 1")] = None,
    out: Annotated[Path | None, typer.Option(help="the result file; .md, and .png pictures, are written beside it")] = None,
    add: Annotated[bool, typer.Option("--add", help="keep what OUT already holds of other workloads")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="the same, and measure only those that OUT lacks")] = False,
    cache: Annotated[Path | None, typer.Option(help="where weights and converted models are kept")] = None,
) -> None:
    """Check, time and show; without options the quick selection (under three minutes on 2 cores, with models converted before)."""
    if context.invoked_subcommand is not None:
        return
    try:
        specs = subjects.select(subject or [], full)
        chosen = workloads.select(workload or [], full)
        if twice is not None:
            specs = [*specs, subjects.again(twice)]
    except ValueError as error:
        _stop(str(error))
    settings = runner.Settings(
        threads=threads,
        cache=cache or default_cache(),
        rounds=rounds or (7 if full else 5),
        seconds=seconds if seconds is not None else (20.0 if full else 8.0),
        turn=0.1 if full else 0.05,
        named=bool(subject),
    )
    _measure(specs, chosen, settings, out, add, resume)


@app.command()
def steps(
    subject: Annotated[list[str] | None, typer.Option("--subject", "-s", help="beside transformers; may be repeated")] = None,
    threads: Annotated[int, typer.Option(help="of every subject")] = 2,
    generations: Annotated[int, typer.Option(min=1, help="of 400 tokens, of each subject and batch")] = 3,
    batch: Annotated[list[int] | None, typer.Option(help="1, 8; may be repeated")] = None,
    out: Annotated[Path, typer.Option(help="the result file; OUT-steps.png and .md are written beside it")] = Path("steps.json"),
    add: Annotated[bool, typer.Option("--add", help="keep what OUT already holds of other workloads")] = False,
    cache: Annotated[Path | None, typer.Option(help="where weights are kept")] = None,
) -> None:
    """Milliseconds a step over 400 generated tokens, bertfast beside transformers, as a picture: five minutes on 2 quiet cores."""
    try:
        specs = subjects.select(subject or ["bertfast"], full=False)
        if not subject:
            specs = [s for s in specs if s.name == "bertfast"]
        chosen = workloads.select([f"bert-base/steps-{B}" for B in batch or (1, 8)], full=False)
    except ValueError as error:
        _stop(str(error))
    chosen = [replace(w, most_rounds=generations) for w in chosen]
    _measure(specs, chosen, runner.Settings(threads, cache or default_cache(), named=True), out, add, resume=False)


def _measure(
    specs: list[subjects.Spec], chosen: list[workloads.Workload], settings: runner.Settings, out: Path | None, add: bool, resume: bool
) -> None:
    """Runs, prints, and writes OUT as it goes. Ends with status 130 where it was interrupted, with what was done until then."""
    try:
        old = results.load(out) if (add or resume) and out is not None and out.exists() else None
        if old is not None:
            results.merged(old, runner.Run(settings).as_dict())  # before hours are spent
            chosen = [w for w in chosen if not resume or w.name not in old["workloads"]]
    except ValueError as error:
        _stop(str(error))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=len(chosen))

        def keep(result: dict[str, Any]) -> None:
            progress.advance(task)
            if not errors.is_terminal:  # no bar is drawn there
                errors.print(f"{len(result['workloads'])} of {len(chosen)}: {list(result['workloads'])[-1]}", highlight=False)
            if out is not None:  # whatever ends this run, what it has measured is there
                results.save(results.merged(old, result) if old else result, out)

        settings.report = lambda doing: progress.update(task, description=doing)
        settings.advance = keep
        result = runner.run(specs, chosen, settings)
    report.print_result(result, console)
    if out is not None:
        whole = results.merged(old, result) if old else result
        results.save(whole, out)
        out.with_suffix(".md").write_text(report.markdown(whole), encoding="utf-8")
        pictures = plots.draw(whole, out.with_suffix(""))
        console.print(f"\nwritten: {out}, {out.with_suffix('.md')}" + "".join(f", {p}" for p in pictures), highlight=False)
    if any(row["status"] in ("failed", "refused") for w in result["workloads"].values() for row in w["rows"].values()):
        errors.print("some rows failed or were refused; see their reasons above", style="red")
    if result["interrupted"]:
        raise typer.Exit(130)


@app.command("list")
def list_all() -> None:
    """Workloads and subjects, and which of them are absent here."""
    for name, w in workloads.WORKLOADS.items():
        console.print(f"{name:24} {w.title or w.geometry.title}{'' if w.quick else ' (--full)'}", highlight=False)
    for name, s in subjects.SUBJECTS.items():
        console.print(f"{name:24} {s.dtype:9} {s.missing or s.setup}", highlight=False, markup=False)


@app.command()
def compare(before: Path, after: Path) -> None:
    """Two result files, row by row, with a verdict that knows the noise."""
    try:
        comparing.print_comparison(results.load(before), results.load(after), console)
    except ValueError as error:
        _stop(str(error))


@app.command("readme")
def write_readme(path: Annotated[Path, typer.Argument(help="the page with the markers")] = Path("README.md")) -> None:
    """Puts the committed results' table between the markers of README.md."""
    try:
        changed = readme.update(path, [results.load(p) for p in results.committed()])
    except ValueError as error:
        _stop(str(error))
    console.print(f"{path}: {'written' if changed else 'already so'}", highlight=False)


@app.command()
def plot(result: Path) -> None:
    """The pictures of a result file, beside it."""
    try:
        pictures = plots.draw(results.load(result), result.with_suffix(""))
    except ValueError as error:
        _stop(str(error))
    for picture in pictures:
        console.print(str(picture), highlight=False)
    if not pictures:
        _stop("no pictures: matplotlib is not installed (pip install 'bertfast[bench]'), or nothing in the file can be drawn")


def _stop(message: str) -> None:
    errors.print(message, style="red", highlight=False, markup=False)
    raise typer.Exit(2)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
