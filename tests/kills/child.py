"""One run of a command: in a child forked from a process that has imported everything, or in an interpreter of its own."""

import faulthandler
import importlib
import io
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr
from pathlib import Path
from typing import NoReturn

from tests.kills.commands import Ended
from tests.kills.faults import Fault, send

PATIENCE = 180  # seconds before a run counts as hung
_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")  # audit events of operations on files
NO_FAULT = Fault()


def preload() -> None:
    """Imports what the commands import, once for all children."""
    importlib.import_module("transformers.models.bert.modeling_bert")
    for module in ("cli.convert", "cli.embed", "cli.generate", "text.embedder"):
        importlib.import_module(f"bertfast.{module}")
    with redirect_stderr(io.StringIO()):  # a wrong command line: typer imports more when it reads one
        _main(["embed", "nowhere", "-m", "nowhere", "-o", "nowhere"])


def run(line: list[str], folder: Path, printed: Path, fault: Fault = NO_FAULT, *, fresh: bool = False, count: Path | None = None) -> Ended:
    """Runs `bertfast LINE` under a fault. folder: of the files whose operations count; count: receives their number.

    printed: receives standard output, unless the fault is about it. fresh: in an interpreter of its own. A run that hangs is aborted: its
    error is where it hung.
    """
    sys.stdout.flush()
    errors, errors_in = os.pipe()
    reader = None
    if fault.reads is not None:
        reader, out = os.pipe()
    else:
        out = os.open("/dev/full" if fault.dev_full else printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    if fresh:
        pid = _start_interpreter(line, out, errors_in, fault)
    elif (pid := os.fork()) == 0:
        for inherited in (errors, reader):
            if inherited is not None:
                os.close(inherited)
        _child(line, folder, out, errors_in, fault, count)
    os.close(out)
    os.close(errors_in)
    try:
        return Ended(_wait(pid, fault, reader), _read(errors))
    finally:
        os.close(errors)


def _limit(fault: Fault) -> None:
    if fault.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, fault.file_size))


def _start_interpreter(line: list[str], out: int, errors: int, fault: Fault) -> int:
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "bertfast", *line],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=errors,
        preexec_fn=lambda: _limit(fault),
    )
    process.returncode = 0  # _wait reaps it
    return process.pid


def _child(line: list[str], folder: Path, out: int, errors: int, fault: Fault, count: Path | None) -> NoReturn:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((null, 0), (out, 1), (errors, 2)):
            os.dup2(descriptor, number)
        faulthandler.enable(2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        operations = _count_operations(str(folder), fault)
        _limit(fault)
        code = _main(line)
        if count is not None:
            count.write_text(str(len(operations)))
    finally:
        os._exit(code)


def _count_operations(folder: str, fault: Fault) -> list[str]:
    done: list[str] = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in _CHANGES and str(arguments[0]).startswith(folder):
            done.append(event)
            if fault.operation == len(done):
                os.kill(os.getpid(), fault.number or signal.SIGKILL)

    sys.addaudithook(audit)
    return done


def _main(line: list[str]) -> int:
    from bertfast.cli import app

    try:
        app.main(line)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()  # as the interpreter does when it ends
    except OSError:
        return 120
    return code


def _wait(pid: int, fault: Fault, reader: int | None) -> int:
    begin = time.monotonic()
    left = fault.reads or 0
    signalled = fault.number is None or fault.operation is not None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        elapsed = time.monotonic() - begin
        if not signalled and elapsed >= (fault.seconds or 0.0):
            send(pid, fault.number or signal.SIGKILL)
            signalled = True
        if reader is not None and select.select([reader], [], [], 0)[0]:
            left -= len(os.read(reader, max(1, min(left, 65536))))
            if left <= 0:
                os.close(reader)
                reader = None
        if elapsed > PATIENCE:
            send(pid, signal.SIGABRT)
            status = os.waitpid(pid, 0)[1]
            break
        time.sleep(0.002)
    if reader is not None:
        os.close(reader)
    return os.waitstatus_to_exitcode(status)


def _read(descriptor: int) -> str:
    """What is in a pipe; a process that the command has left behind may still hold its other end."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace").strip()
    except BlockingIOError:
        return ""
