"""One trial: a command is disturbed once or more, then its user goes on; what is left must be what an undisturbed run leaves."""

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.kills import child, commands
from tests.kills.commands import Command, Contents, Ended, Setting
from tests.kills.faults import Fault, Undisturbed, draw

PAGE = 4096  # bytes
MOST_FAULTS = 3  # of a trial


@dataclass
class Subject:
    """A command with what is known of it."""

    command: Command
    run: Undisturbed
    older: Contents  # of a finished result of other texts, which the command replaces; empty for commands that replace nothing
    fresh_seconds: float = 0.0  # of a run in an interpreter of its own; 0: not yet measured


def prepare(setting: Setting, command: Command) -> Subject:
    folder, printed, count = setting.folder / "undisturbed", setting.folder / "printed", setting.folder / "count"

    def counted(line: list[str], out: Path) -> Ended:
        return child.run(line, folder, out, count=count)

    commands.undisturbed(command, folder, counted)  # warms the page cache
    begin = time.monotonic()
    left = commands.undisturbed(command, folder, counted)
    seconds = time.monotonic() - begin
    older = {}
    if command.resumes:
        other = Command(command.name, setting.embed(command.arguments[-1], "others.txt"), command.output)
        older = commands.undisturbed(other, folder, partial(_run, folder))
    printed.unlink(missing_ok=True)
    return Subject(command, Undisturbed(seconds, int(count.read_text()), left), older)


def _run(folder: Path, line: list[str], printed: Path) -> Ended:
    return child.run(line, folder, printed)


def trial(setting: Setting, subject: Subject, rng: random.Random, *, disks: bool, fresh: bool) -> tuple[list[Fault], list[str]]:
    """The faults, and what went wrong."""
    command = subject.command
    faults = [draw(rng, command, subject.run, disks) for _ in range(rng.randint(1, MOST_FAULTS if command.resumes else 1))]
    if (full := next((fault for fault in faults if fault.disk is not None), None)) is not None:
        faults = [full]
    if fresh:
        faults = [_in_fresh_time(setting, subject, fault) for fault in faults]
    before = subject.older if rng.random() < 0.5 else {}
    size = None if full is None or full.disk is None else full.disk + 2 * PAGE * len(before) + sum(map(len, before.values()))
    with _folder(setting.folder / "trial", size) as (folder, grow):
        for name, content in before.items():
            (folder / name).write_bytes(content)
        wrong = []
        for fault in faults:
            wrong += _disturb(setting, subject, folder, fault, rng, before, fresh)
        grow()
        if not (command.output == "new" and commands.is_whole(folder)):  # a conversion that has finished is not repeated
            left = commands.go_on(command, folder, partial(_run, folder), rng)
        else:
            left = commands.contents(folder)
        wrong += _differences(left, subject.run.left) if isinstance(left, dict) else [left]
    return faults, wrong


def _in_fresh_time(setting: Setting, subject: Subject, fault: Fault) -> Fault:
    """The fault at a moment of a run in an interpreter of its own, which takes longer and counts no operations."""
    if fault.number is None:
        return fault
    if subject.fresh_seconds == 0.0:
        begin = time.monotonic()
        folder = setting.folder / "fresh"
        commands.undisturbed(subject.command, folder, lambda line, printed: child.run(line, folder, printed, fresh=True))
        subject.fresh_seconds = time.monotonic() - begin
    share = fault.seconds / subject.run.seconds if fault.seconds is not None else (fault.operation or 0) / subject.run.operations
    return Fault(fault.number, seconds=share * subject.fresh_seconds)


def _disturb(
    setting: Setting, subject: Subject, folder: Path, fault: Fault, rng: random.Random, before: Contents, fresh: bool
) -> list[str]:  # what went wrong
    command = subject.command
    if command.output == "new" and commands.is_whole(folder):
        return []
    flags = []
    if (folder / f"{command.output}.part").exists():
        flags = [rng.choice(("--resume", "--restart"))]
    ended = child.run(command.line(folder, *flags), folder, setting.folder / "printed", fault, fresh=fresh)
    wrong = [] if (why := fault.why_unexpected(ended)) is None else [f"{fault}: {why}: {ended.err}"]
    left = commands.contents(folder)
    if command.resumes:
        allowed = [before.get(command.output), subject.run.left[command.output]]
        if left.get(command.output) not in allowed:
            wrong.append(f"{fault}: {command.output} is neither the older result nor the whole new one")
        if ended.code == 0 and left.get(command.output) != allowed[1]:
            wrong.append(f"{fault}: exit code 0 without the result")
    if command.output == "-" and left:
        wrong.append(f"{fault}: files are left: {sorted(left)}")
    if command.output == "new" and ended.code == 0:
        wrong += _differences(left, subject.run.left)
    return wrong


def _differences(left: Contents, expected: Contents) -> list[str]:
    wrong = [f"{name} is left" for name in sorted(left.keys() - expected.keys())]
    wrong += [f"{name} is missing" for name in sorted(expected.keys() - left.keys())]
    changed = [name for name in sorted(left.keys() & expected.keys()) if left[name] != expected[name]]
    return wrong + [f"{name} has other bytes than undisturbed" for name in changed]


@contextmanager
def _folder(path: Path, disk: int | None) -> "Iterator[tuple[Path, object]]":
    """A new folder, on a disk of that size if there is one, and a function that makes room on it."""
    path.mkdir()
    if disk is not None:
        mount(path, disk)
    try:
        yield path, (lambda: None) if disk is None else partial(_remount, path)
    finally:
        if disk is not None:
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(path)


def mount(path: Path, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True, capture_output=True)


def _remount(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", path], check=True)


def why_no_disks(folder: Path) -> str | None:
    """Why small disks cannot be made here; None where they can."""
    probe = folder / "probe"
    probe.mkdir()
    try:
        mount(probe, 65536)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"") or str(error).encode()
        return detail.decode().strip()
    subprocess.run(["umount", probe], check=True)
    return None
