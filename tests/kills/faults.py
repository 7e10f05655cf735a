"""What happens to a running command: a signal at a random moment, a full disk, a limit on files, a reader that goes away.

A moment is a time, or the k-th operation on a file of the command's folder: times fall into the long phases (start, loading, computing,
writing), operations between two renames.
"""

import os
import random
import signal
from contextlib import suppress
from dataclasses import dataclass

from tests.kills.commands import Command, Contents, Ended

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Undisturbed:
    """A command's run without a fault."""

    seconds: float
    operations: int  # on files of its folder
    left: Contents

    @property
    def largest(self) -> int:
        return max(map(len, self.left.values()))


@dataclass(frozen=True)
class Fault:
    number: signal.Signals | None = None  # the signal
    seconds: float | None = None  # the moment of the signal
    operation: int | None = None  # likewise: before the operation of that number, from 1
    file_size: int | None = None  # RLIMIT_FSIZE, in bytes
    disk: int | None = None  # size of the disk, in bytes
    reads: int | None = None  # standard output is a pipe, closed by its reader after so many bytes
    dev_full: bool = False  # standard output is /dev/full

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.number.name} " + (f"after {self.seconds:.3f} s" if self.operation is None else f"at operation {self.operation}")
        if self.file_size is not None:
            return f"RLIMIT_FSIZE of {self.file_size:,} bytes"
        if self.disk is not None:
            return f"a disk of {self.disk:,} bytes"
        return "/dev/full" if self.dev_full else f"a pipe closed after {self.reads} bytes"

    def why_unexpected(self, ended: Ended) -> str | None:
        """What is wrong about how the command ended under this fault; None where it ended as it should."""
        if "Traceback" in ended.err or "Exception ignored" in ended.err:
            return "a traceback"
        if ended.code == 0:
            return None  # the fault came after the end, or did not matter
        expected = {signal.SIGINT: 130, None: 1}.get(self.number, -(self.number or 0))
        return None if ended.code == expected else f"exit code {ended.code}, expected 0 or {expected}"


def draw(rng: random.Random, command: Command, run: Undisturbed, disks: bool) -> Fault:
    """A random fault of one of the kinds that the command can meet."""
    kinds = ["signal"] * 6 + ["file_size"]
    kinds += ["reads", "dev_full"] if command.output == "-" else ["disk"] if disks else []
    kind = rng.choice(kinds)
    size = rng.randint(0, max(1, run.largest - 1))
    if kind == "file_size":
        return Fault(file_size=size)
    if kind == "disk":
        return Fault(disk=4096 * rng.randint(2, 2 + sum(map(len, run.left.values())) // 4096))
    if kind == "reads":
        return Fault(reads=size)
    if kind == "dev_full":
        return Fault(dev_full=True)
    chosen = rng.choices(SIGNALS, (4, 1, 2))[0]
    if run.operations and rng.random() < 0.5:
        return Fault(chosen, operation=rng.randint(1, run.operations))
    return Fault(chosen, seconds=rng.uniform(0.0, 1.05 * run.seconds))


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended
        os.kill(pid, number)
