"""The command line: `python -m benchmarks` and its sub-commands."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import subjects
from benchmarks.commands import OWN_ARGUMENTS
from benchmarks.measure import runner
from benchmarks.measure.settings import default_cache
from benchmarks.report import compare as comparing
from benchmarks.report import plots, readme, results, tables, terminal
from benchmarks.suite import workloads
from benchmarks.tools import first_speed as promises

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            "-w",
            help="Workload: minilm/1x128, minilm, 1x128, 'bert-base/*'. May be repeated.",
        ),
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", "-s", help="Subject: bertfast, onnxruntime, 'openvino*'. May be repeated."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every workload and subject, at least 7 rounds: up to two hours.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of each subject.")] = 2,
    rounds: Annotated[int | None, typer.Option(min=1, help="Least number of undisturbed rounds per workload.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time limit for the rounds of a workload; half of it on a quiet machine. ROUNDS come first.")
    ] = None,
    twice: Annotated[str | None, typer.Option(help="Run this subject in a second process too; its ratio to itself should be 1.")] = None,
    out: Annotated[Path | None, typer.Option(help="The result file; tables (.md) and pictures (.png) are written beside it.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep the other workloads in OUT.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the workloads in OUT and measure only the others.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder for weights and converted models.")] = None,
) -> None:
    """Check subjects against transformers, time them side by side, show the result.

    Without options the quick selection runs, in under three minutes on 2 cores once models are converted.
    """
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
    subject: Annotated[
        list[str] | None, typer.Option("--subject", "-s", help="Subject to run beside transformers. May be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each subject.")] = 2,
    generations: Annotated[int, typer.Option(min=1, help="Generations of 400 tokens per subject and batch size.")] = 3,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size, 1 or 8. May be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="The result file; OUT-steps.png and OUT.md are written beside it.")] = Path("steps.json"),
    add: Annotated[bool, typer.Option("--add", help="Keep the other workloads in OUT.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder for weights.")] = None,
) -> None:
    """Time each step of generating 400 tokens, bertfast beside transformers; draw it. Five minutes on 2 quiet cores."""
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
    """Runs, prints, and writes OUT after each workload. Exits with status 130 if interrupted."""
    try:
        old = results.load(out) if (add or resume) and out is not None and out.exists() else None
        if old is not None:
            results.merged(old, runner.Run(settings).as_dict())  # raises now, not after hours
            chosen = [w for w in chosen if not resume or w.name not in old["workloads"]]
    except ValueError as error:
        _stop(str(error))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=len(chosen))

        def keep(result: dict[str, Any]) -> None:
            progress.advance(task)
            if not errors.is_terminal:  # where no progress bar is drawn
                errors.print(f"{len(result['workloads'])} of {len(chosen)}: {list(result['workloads'])[-1]}", highlight=False)
            if out is not None:
                results.save(results.merged(old, result) if old else result, out)

        settings.report = lambda doing: progress.update(task, description=doing)
        settings.advance = keep
        result = runner.run(specs, chosen, settings)
    terminal.print_result(result, console)
    if out is not None:
        whole = results.merged(old, result) if old else result
        results.save(whole, out)
        out.with_suffix(".md").write_text(tables.markdown(whole), encoding="utf-8")
        pictures = plots.draw(whole, out.with_suffix(""))
        console.print(f"\nwritten: {out}, {out.with_suffix('.md')}" + "".join(f", {p}" for p in pictures), highlight=False)
    if any(row["status"] in ("failed", "refused") for w in result["workloads"].values() for row in w["rows"].values()):
        errors.print("some rows failed or were refused; the reasons are in the tables above", style="red")
    if result["interrupted"]:
        raise typer.Exit(130)


@app.command("list")
def list_all() -> None:
    """List workloads and subjects, and what is missing for them."""
    for name, w in workloads.WORKLOADS.items():
        console.print(f"{name:24} {w.title or w.geometry.title}{'' if w.quick else ' (--full)'}", highlight=False)
    for name, s in subjects.SUBJECTS.items():
        console.print(f"{name:24} {s.dtype:9} {s.missing or s.setup}", highlight=False, markup=False)


@app.command()
def compare(before: Path, after: Path) -> None:
    """Compare two result files row by row, with verdicts where the noise allows one."""
    try:
        comparing.print_comparison(results.load(before), results.load(after), console)
    except ValueError as error:
        _stop(str(error))


@app.command("readme")
def write_readme(path: Annotated[Path, typer.Argument(help="The page with the markers.")] = Path("README.md")) -> None:
    """Write the committed results' tables between the markers of README.md."""
    try:
        changed = readme.update(path, [results.load(p) for p in results.committed()])
    except ValueError as error:
        _stop(str(error))
    console.print(f"{path}: {'written' if changed else 'unchanged'}", highlight=False)


@app.command()
def plot(result: Path) -> None:
    """Draw the pictures of a result file, beside it."""
    try:
        pictures = plots.draw(results.load(result), result.with_suffix(""))
    except ValueError as error:
        _stop(str(error))
    for picture in pictures:
        console.print(str(picture), highlight=False)
    if not pictures:
        _stop("no pictures: matplotlib is not installed (pip install 'bertfast[bench]'), or the file has nothing to draw")


@app.command("first_speed")
def first_speed(
    threads: Annotated[int, typer.Option(help="Threads of each subject.")] = 2,
    rounds: Annotated[int, typer.Option(help="Least number of undisturbed rounds per workload.")] = 15,
    out: Annotated[Path | None, typer.Option(help="Write the result file here.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for weights.")] = None,
) -> None:
    """Check MiniLM's promised speed and memory against transformers. Exit status 1: a promise is broken; 3: a noisy machine."""
    settings = runner.Settings(threads, cache or default_cache(), rounds, seconds=5.0, turn=0.2)
    raise typer.Exit(promises.run(settings, out, console))


def _stop(message: str) -> None:
    errors.print(message, style="red", highlight=False, markup=False)
    raise typer.Exit(2)


def _with_own_arguments(name: str, module: str, help: str) -> None:
    @app.command(name, help=help, add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def command(context: typer.Context) -> None:
        raise typer.Exit(import_module(module).main(context.args))


for _name, (_module, _help) in OWN_ARGUMENTS.items():
    _with_own_arguments(_name, _module, _help)
