"""Kinds "cold" and "memory": a fresh process for every measurement."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine.disturbance import disturbance, usage
from benchmarks.measure.client import WorkerError
from benchmarks.measure.group import Group, Row, checked_row, failed_row, read_arrays
from benchmarks.subjects import Spec
from benchmarks.suite.checks import Expected
from benchmarks.suite.stats import Spread, ratio_of
from benchmarks.suite.workloads import Workload


class Fresh(Group):
    """A first process of every subject converts the model, fills the page cache and is checked; later ones are measured."""

    def checked(self, workload: Workload) -> tuple[Path, dict[str, Row]]:
        """The inputs' file, and a row for every subject: "timed", without a time yet, or the reason why not."""
        path, arrays = self.inputs(workload)
        expected: Expected | None = None
        rows: dict[str, Row] = {}
        for spec in self.specs:  # the reference is the first
            self.settings.report(f"{workload.name}: checking {spec.name}")
            try:
                got = self._answer(spec, workload, path)
            except (WorkerError, RuntimeError, OSError) as error:
                rows[spec.name] = failed_row(error)
                continue
            if spec.name == self.reference:
                expected = Expected(got, arrays.get("attention_mask"))
            if expected is None:
                why = rows.get(self.reference, {}).get("reason", "it takes no part")
                rows[spec.name] = {"status": "failed", "reason": self.without_reference(why)}
                continue
            rows[spec.name] = checked_row(expected.check(got, spec.dtype))
        return path, rows

    def _answer(self, spec: Spec, workload: Workload, path: Path) -> dict[str, np.ndarray]:
        found = self.scratch / f"{spec.name}.npz"
        client = self.start(spec)
        try:
            client.ask("load")
            client.ask("inputs", path=str(path), new_tokens=workload.new_tokens)
            client.ask("outputs", path=str(found), again=False)
        finally:
            client.close()
        return read_arrays(found)


class Cold(Fresh):
    """Seconds from the start of a process to its first answer, with its files in the page cache: a restart, not a first boot."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, rows = self.checked(workload)
        phases: dict[str, list[tuple[float, float, float]]] = {}
        disturbed = 0
        for start in range(self.settings.starts):
            before, begin = usage([os.getpid()], children=True), time.monotonic()
            for spec in self.specs:
                if rows[spec.name]["status"] != "timed":
                    continue
                self.settings.report(f"{workload.name}: {spec.name}, start {start + 1} of {self.settings.starts}")
                try:
                    phases.setdefault(spec.name, []).append(self._start(spec, workload, path))
                except (WorkerError, RuntimeError, OSError) as error:
                    rows[spec.name] = failed_row(error)
            disturbed += disturbance(before, usage([os.getpid()], children=True), time.monotonic() - begin).disturbed
        timed = {name: found for name, found in phases.items() if rows[name]["status"] == "timed"}  # one that failed later has fewer
        for name, found in timed.items():
            totals = [sum(phase) for phase in found]
            process, load, first = (float(np.median(phase)) for phase in zip(*found, strict=True))
            rows[name].update(
                seconds=Spread.of(totals).as_dict(),
                turns=totals,
                phases={"import": process, "load": load, "first": first},
            )
            if self.reference in timed:
                ratio = ratio_of([sum(theirs) / own for theirs, own in zip(timed[self.reference], totals, strict=True)])
                rows[name]["ratio"] = {"to": self.reference, "value": ratio.value, "band": ratio.band if name != self.reference else 0.0}
        quality = {"rounds": self.settings.starts, "disturbed": disturbed, "noisy": disturbed > 0}
        return {"reference": self.reference, "quality": quality, "rows": self.in_order(rows)}

    def _start(self, spec: Spec, workload: Workload, path: Path) -> tuple[float, float, float]:
        client = self.start(spec)
        try:
            ready = time.perf_counter() - client.started
            load = client.ask("load")["seconds"]
            begin = time.perf_counter()
            client.ask("inputs", path=str(path), new_tokens=workload.new_tokens)
            client.ask("time", calls=1, warm=0)
            return ready, load, time.perf_counter() - begin
        finally:
            client.close()


class Memory(Fresh):
    """Peak memory of a fresh process that loads the model and makes a few calls."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, rows = self.checked(workload)
        for spec in self.specs:
            if rows[spec.name]["status"] != "timed":
                continue
            self.settings.report(f"{workload.name}: {spec.name}")
            try:
                client = self.start(spec)
                try:
                    client.ask("load")
                    loaded = client.ask("peak")["mib"]
                    client.ask("inputs", path=str(path), new_tokens=workload.new_tokens)
                    client.ask("time", calls=3, warm=0)
                    rows[spec.name].update(mib=client.ask("peak")["mib"], loaded_mib=loaded)
                finally:
                    client.close()
            except (WorkerError, RuntimeError, OSError) as error:
                rows[spec.name] = failed_row(error)
        reference = rows.get(self.reference, {}).get("mib")
        for row in rows.values():
            if reference and "mib" in row:
                row["ratio"] = {"to": self.reference, "value": reference / row["mib"], "band": 0.0}
        return {"reference": self.reference, "rows": self.in_order(rows)}
