"""The suite's measurement with all subjects in this process: a GPU's kernels wait for nobody else's."""

import gc
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure.calls import Calls
from benchmarks.measure.client import Client, WorkerError
from benchmarks.measure.settings import Run
from benchmarks.measure.timed_rounds import TimedRounds
from benchmarks.measure.worker import Worker
from benchmarks.subjects import Spec
from benchmarks.suite.checks import Expected
from benchmarks.suite.stats import Spread
from benchmarks.suite.workloads import Workload

PROMPT, FEW, MANY = 32, 16, 80  # tokens of a prompt; new tokens of a short and of a long generation
NO_TIME = "no time was left"


class LocalClient(Client):
    """A subject in this process."""

    def __init__(self, spec: Spec, threads: int) -> None:
        super().__init__(spec, threads)
        self._worker: Worker | None = Worker(lambda answer: None)

    @property
    def process(self) -> int:
        return os.getpid()

    def ask(self, what: str, limit: float = 600, **arguments: Any) -> dict[str, Any]:
        try:
            return getattr(self._worker, f"do_{what}")(**arguments) or {}
        except Exception as error:
            raise WorkerError(type(error).__name__, str(error) or repr(error), traceback.format_exc()) from error

    def pause(self) -> None:
        """Nothing to stop: its kernels have finished."""

    def close(self) -> None:
        self._worker = None
        gc.unfreeze()  # the worker froze all objects, its model among them
        gc.collect()


class GpuCalls(Calls):
    """`exact`: the float32 subject that all are checked against; None if the reference is in float32."""

    def __init__(
        self, state: Run, specs: list[Spec], model: str, task: str, scratch: Path, exact: Spec | None, time_is_up: Callable[[], bool]
    ) -> None:
        super().__init__(state, specs, model, task, scratch)
        self._exact = exact
        self._time_is_up = time_is_up

    def client(self, spec: Spec) -> Client:
        return LocalClient(spec, self.settings.threads)

    def load_all(self, specs: list[Spec]) -> None:
        """One after the other: from_pretrained sets the process's default dtype."""
        if self._exact is not None:
            self.truth = self._exact.name
            self.clients[self.truth] = self.client(self._exact)
            specs = [self._exact, *specs]
        for spec in specs:
            self.load(spec)

    def check_first(self, spec: Spec, workload: Workload, path: Path, expected: Expected, timed: TimedRounds) -> None:
        """Compiling a subject takes minutes: it is left out when the time is up."""
        if self._time_is_up() and not spec.ours and spec.name != self.reference:
            timed.rows[spec.name] = {"status": "absent", "reason": NO_TIME}
            self.state.not_reached.append(f"{workload.name}: {spec.name}")
            return
        super().check_first(spec, workload, path, expected, timed)


class Decode(GpuCalls):
    """Kind "decode": a step of a generation, as the time that MANY - FEW more tokens take, over their number."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        short = super().measure(replace(workload, new_tokens=FEW))
        found = super().measure(workload)
        more = workload.new_tokens - FEW
        for name, row in found["rows"].items():
            turns = short["rows"].get(name, {}).get("turns", ())
            each = [(long - few) / more for long, few in zip(row.get("turns", ()), turns, strict=False)]
            if each:
                row["step"] = Spread.of(each).as_dict()
        return {**found, "cached": PROMPT + (FEW + workload.new_tokens) // 2}
