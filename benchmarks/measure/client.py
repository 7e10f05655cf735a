"""The suite's end of a subject: starts its worker process, sends requests, waits with a time limit, ends the process."""

import json
import os
import select
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.subjects import Spec

_STOP = 5.0  # seconds that a worker has to end once its input is closed


class WorkerError(RuntimeError):
    """A subject failed. `kind` is the exception's name in its process."""

    def __init__(self, kind: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.detail = detail


class Client(ABC):
    """A subject that answers worker.Worker's requests."""

    def __init__(self, spec: Spec, threads: int) -> None:
        self.spec = spec
        self._threads = threads

    @property
    @abstractmethod
    def process(self) -> int:
        """The id of the process that it runs in."""

    @abstractmethod
    def ask(self, what: str, limit: float = 600, **arguments: Any) -> dict[str, Any]:
        """The answer; WorkerError if the subject raised, died, or took longer than `limit` seconds (its process is killed then)."""

    def convert(self, folder: Path, task: str, cache: Path, limit: float = 1800) -> None:
        """The first request."""
        self.ask(
            "convert",
            limit,
            factory=self.spec.factory,
            dtype=self.spec.dtype,
            threads=self._threads,
            options=dict(self.spec.options),
            folder=str(folder),
            task=task,
            cache=str(cache),
        )

    @abstractmethod
    def pause(self) -> None:
        """Stops it until the next request."""

    @abstractmethod
    def close(self) -> None: ...


class ProcessClient(Client):
    """A worker process. Make it in the main thread: the kernel kills a worker when the thread that started it ends (worker.py)."""

    def __init__(self, spec: Spec, threads: int, log: Path) -> None:
        super().__init__(spec, threads)
        self._log = log
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "FTE_THREADS": str(threads),
            "RAYON_NUM_THREADS": str(threads),  # the tokenizers
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OPENVINO_TELEMETRY_DISABLE": "1",
        }
        self.started = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [spec.python, "-m", "benchmarks.measure.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # a process group of its own, to stop and kill with its children
            )
        self._pending = b""

    @property
    def process(self) -> int:
        return self._process.pid

    def convert(self, folder: Path, task: str, cache: Path, limit: float = 1800) -> None:
        self._answer(60.0)  # it is ready
        super().convert(folder, task, cache, limit)

    def pause(self) -> None:
        """Stops the process group: idle threads of a pool spin, and would use the cores of the subject that is timed next."""
        self._signal(signal.SIGSTOP)

    def ask(self, what: str, limit: float = 600, **arguments: Any) -> dict[str, Any]:
        return self._send({"do": what, **arguments}, limit)

    def go_on(self, limit: float = 600) -> dict[str, Any]:
        """Continues after a rest: the next rest, or the answer."""
        return self._send({}, limit)

    def _send(self, line: dict[str, Any], limit: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._answer(limit)

    def close(self) -> None:
        """Closes its input, on which it ends; kills it if it does not."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self._end()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _answer(self, limit: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        until = time.monotonic() + limit
        while b"\n" not in self._pending:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                self._end()
                raise WorkerError("Timeout", f"no answer within {limit:.0f} s")
            data = os.read(pipe, 1 << 16)
            if not data:
                raise self._died()
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer["message"], answer.get("traceback", ""))
        return dict(answer)

    def _died(self) -> WorkerError:
        code = self._process.wait()
        tail = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        return WorkerError("Died", f"its process ended with status {code}", "\n".join(tail))

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
