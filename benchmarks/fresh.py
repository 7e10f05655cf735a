"""Kinds that take a fresh process for every measurement: "cold" and "memory"."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.client import WorkerError
from benchmarks.group import Group, in_order, reference_of, spread
from benchmarks.stats import Spread, ratio_of
from benchmarks.subjects import Spec
from benchmarks.workloads import Workload


class Cold(Group):
    """From the start of a process to its first answer. Files are in the page cache: what a restart costs, not a first boot."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, _ = self.inputs(workload)
        phases: dict[str, list[tuple[float, float, float]]] = {}
        rows: dict[str, dict[str, Any]] = {}
        seen = []
        for start in range(self.settings.starts + 1):  # the first one converts, and fills the page cache
            before, at = machine.usage([os.getpid()], children=True), time.monotonic()
            for spec in self.specs:
                if spec.name in rows:
                    continue
                self.settings.report(f"{workload.name}: {spec.name}, start {start} of {self.settings.starts}")
                try:
                    found = self._start(spec, workload, path)
                except (WorkerError, RuntimeError, OSError) as error:
                    rows[spec.name] = self.fail(spec, error)
                    continue
                if start:
                    phases.setdefault(spec.name, []).append(found)
            seen.append(machine.disturbance(before, machine.usage([os.getpid()], children=True), time.monotonic() - at))
        reference = phases.get(reference_of(self.task))
        for name, found in phases.items():
            if name in rows:
                continue
            totals = [sum(phase) for phase in found]
            process, load, first = (float(np.median(phase)) for phase in zip(*found, strict=True))
            rows[name] = {
                "status": "timed",
                "seconds": spread(Spread.of(totals)),
                "turns": totals,
                "phases": {"import": process, "load": load, "first": first},
            }
            if reference:
                ratio = ratio_of([sum(theirs) / own for theirs, own in zip(reference, totals, strict=True)])
                rows[name]["ratio"] = {
                    "to": reference_of(self.task),
                    "value": ratio.value,
                    "band": ratio.band if name != reference_of(self.task) else 0.0,
                }
        disturbed = sum(d.disturbed for d in seen[1:])
        quality = {"rounds": self.settings.starts, "disturbed": disturbed, "noisy": disturbed > 0}
        return {"reference": reference_of(self.task), "quality": quality, "rows": in_order(rows, self.specs)}

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


class Memory(Group):
    """The most that a fresh process ever held, after loading and a few calls."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, _ = self.inputs(workload)
        rows: dict[str, dict[str, Any]] = {}
        for spec in self.specs:
            self.settings.report(f"{workload.name}: {spec.name}")
            try:
                self.start(spec).close()  # converts, in a process that does not count
                client = self.start(spec)
                try:
                    client.ask("load")
                    loaded = client.ask("peak")["mib"]
                    client.ask("inputs", path=str(path), new_tokens=workload.new_tokens)
                    client.ask("time", calls=3, warm=0)
                    rows[spec.name] = {"status": "timed", "mib": client.ask("peak")["mib"], "loaded_mib": loaded}
                finally:
                    client.close()
            except (WorkerError, RuntimeError, OSError) as error:
                rows[spec.name] = self.fail(spec, error)
        reference = rows.get(reference_of(self.task), {}).get("mib")
        for row in rows.values():
            if reference and "mib" in row:
                row["ratio"] = {"to": reference_of(self.task), "value": reference / row["mib"], "band": 0.0}
        return {"reference": reference_of(self.task), "rows": in_order(rows, self.specs)}
