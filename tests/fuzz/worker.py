"""The child process in which cases run: a crash ends it, not the fuzzer, and its memory has a limit."""

import contextlib
import faulthandler
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.case import Case

MEMORY = 4 << 30  # bytes of address space beyond those of the imports
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    outcome: str  # what happened, in a few words
    failure: str | None = None  # the traceback, or how the process died; None: the property holds
    signature: str = ""  # equal for findings that are probably the same


class Worker:
    """Runs cases one after another in a forked process, which is replaced when it dies or hangs."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._process: Any = None
        self._pipe: Connection

    def run(self, case: Case) -> Result:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(case)
            if self._pipe.poll(self.patience):
                result: Result = self._pipe.recv()
                return result
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return self._died(f"{type(case).__module__}.{type(case).__name__}")
        self.close()
        return Result("hangs", f"no answer within {self.patience:.0f} s", "hangs")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        context = get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = context.Process(target=_serve, args=(theirs, self._log.fileno()), daemon=False)
        self._process.start()
        theirs.close()

    def _died(self, where: str) -> Result:
        self._process.join()
        code = self._process.exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self._log.seek(0)
        said = self._log.read()[-4000:].decode(errors="replace")
        self.close()
        place = re.search(r'File "[^"]*/(bertfast/[^"]+)", line \d+ in (\w+)', said)
        return Result(f"died: {how}", f"the process died: {how}\n{said}", f"died {how} {place[0] if place else where}")


def _serve(pipe: Connection, log: int) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    faulthandler.enable(file=2)
    torch.set_num_threads(1)  # the parent may have run parallel ops: OpenMP would hang in a forked child
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            pipe.send(result_of(pipe.recv()))


def result_of(case: Case) -> Result:
    """What checking a case gives, in this process."""
    try:
        return Result(case.check())
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return Result(
            f"finding: {type(error).__name__}",
            text if len(text) < 5000 else f"{text[:2000]}\n...\n{text[-2000:]}",
            f"{type(error).__name__} {_place(error)}",
        )


def _place(error: BaseException) -> str:
    """Where an error was raised, or what an assertion says, without its numbers."""
    if isinstance(error, AssertionError):
        return re.sub(r"0x\w+|'[^']*'|[-+]?\d[\d.e+-]*", "#", str(error).partition("\n")[0])[:160]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(ROOT / "bertfast"))]
    return f"{(ours or frames)[-1].filename}:{(ours or frames)[-1].name} {frames[-1].name}"
