"""What the kinds of workload have in common: the subjects of one model and task, their clients, their failures."""

from abc import ABC, abstractmethod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from benchmarks.measure.client import Client, ProcessClient, WorkerError
from benchmarks.measure.settings import Run
from benchmarks.subjects import Spec
from benchmarks.suite.checks import Check
from benchmarks.suite.models import folder
from benchmarks.suite.workloads import Workload, reference_of

Row = dict[str, Any]  # of a result file: one subject's part of a workload

_ABSENT = "AbsentError"


def checked_row(result: Check) -> Row:
    """The row of a checked subject: "timed", without a time yet, or refused with the reason."""
    row: Row = {"status": "refused" if result.refused else "timed", "check": result.as_dict()}
    return {**row, "reason": result.refused} if result.refused else row


def failed_row(error: Exception) -> Row:
    """The row of a subject that raised: absent or failed, with the reason."""
    kind = error.kind if isinstance(error, WorkerError) else type(error).__name__
    if kind == _ABSENT:
        return {"status": "absent", "reason": f"{error}"}
    row = {"status": "failed", "reason": f"{kind}: {error}"[:500]}
    return {**row, "detail": error.detail[-4000:]} if isinstance(error, WorkerError) else row


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


class Group(ABC):
    """The workloads of one model, task and kind. `failed`: the rows of subjects that take no further part."""

    def __init__(self, state: Run, specs: list[Spec], model: str, task: str, scratch: Path) -> None:
        self.state = state
        self.settings = state.settings
        self.specs = specs
        self.model = model
        self.task = task
        self.reference = reference_of(task)
        self.scratch = scratch
        self.failed: dict[str, Row] = {}
        self.clients: dict[str, Client] = {}
        self._folder: Path | None = None
        self._writing = Lock()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.clients.clear()

    @abstractmethod
    def measure(self, workload: Workload) -> dict[str, Any]:
        """What the result file holds of the workload: `reference`, `rows`, and `quality` of what was timed."""

    def weights(self) -> Path:
        with self._writing:  # subjects load at the same time
            if self._folder is None:
                self.settings.report(f"weights of {self.model} for {self.task}")
                self._folder = folder(self.model, self.task, self.settings.cache)
            return self._folder

    def client(self, spec: Spec) -> Client:
        return ProcessClient(spec, self.settings.threads, self.scratch / f"{spec.name}.log")

    def start(self, spec: Spec) -> Client:
        """A client with its model converted."""
        client = self.client(spec)
        try:
            client.convert(self.weights(), self.task, self.settings.cache)
        except BaseException:
            client.close()
            raise
        return client

    def drop(self, spec: Spec, error: Exception) -> Row:
        """Ends a subject that raised; returns its row."""
        self.failed[spec.name] = failed_row(error)
        if spec.name in self.clients:
            self.clients.pop(spec.name).close()
        return self.failed[spec.name]

    def inputs(self, workload: Workload) -> tuple[Path, dict[str, np.ndarray]]:
        arrays = workload.inputs()
        path = self.scratch / "inputs.npz"
        np.savez(path, **arrays)
        return path, arrays

    def peak(self) -> float:
        """The machine's float32 peak now; 0 where it cannot be measured."""
        return self.state.meter.rate() if self.state.meter else 0.0

    def without_reference(self, why: str) -> str:
        return f"nothing to check against: {self.reference} failed ({why})"

    def unchecked(self, reason: str) -> dict[str, Any]:
        """The result of a workload whose reference failed."""
        rows = {s.name: {"status": "failed", "reason": reason, **self.failed.get(s.name, {})} for s in self.specs}
        return {"reference": self.reference, "rows": rows}

    def in_order(self, rows: dict[str, Row]) -> dict[str, Row]:
        return {s.name: rows[s.name] for s in self.specs if s.name in rows}
