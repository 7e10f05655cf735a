"""Kinds that take a fresh process for every measurement: "cold" and "memory"."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checks, machine
from benchmarks.client import WorkerError
from benchmarks.group import Group, in_order, read_arrays, reference_of, spread, verdict_of
from benchmarks.stats import Spread, ratio_of
from benchmarks.subjects import Spec
from benchmarks.workloads import Workload


class Fresh(Group):
    """A first process of every subject says what it computes, and is compared with the reference's; it also converts, and fills the page
    cache. Only then do those start that are measured."""

    def checked(self, workload: Workload) -> tuple[Path, dict[str, dict[str, Any]]]:
        """The inputs' file, and a row for every subject: "timed", without a time yet, or why it will have none."""
        path, arrays = self.inputs(workload)
        reference = reference_of(self.task)
        expected: dict[str, np.ndarray] | None = None
        rows: dict[str, dict[str, Any]] = {}
        for spec in self.specs:  # the reference stands first
            self.settings.report(f"{workload.name}: checking {spec.name}")
            try:
                got = self._answer(spec, workload, path)
            except (WorkerError, RuntimeError, OSError) as error:
                rows[spec.name] = self.fail(spec, error)
                continue
            if spec.name == reference:
                expected = got
            if expected is None:
                why = rows.get(reference, {}).get("reason", "it takes no part")
                rows[spec.name] = {"status": "failed", "reason": self.nothing_to_check_against(why)}
                continue
            rows[spec.name] = verdict_of(checks.check(got, expected, arrays.get("attention_mask"), spec.dtype))
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
    """From the start of a process to its first answer. Files are in the page cache: what a restart costs, not a first boot."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, rows = self.checked(workload)
        reference = reference_of(self.task)
        phases: dict[str, list[tuple[float, float, float]]] = {}
        disturbed = 0
        for start in range(self.settings.starts):
            before, at = machine.usage([os.getpid()], children=True), time.monotonic()
            for spec in self.specs:
                if rows[spec.name]["status"] != "timed":
                    continue
                self.settings.report(f"{workload.name}: {spec.name}, start {start + 1} of {self.settings.starts}")
                try:
                    phases.setdefault(spec.name, []).append(self._start(spec, workload, path))
                except (WorkerError, RuntimeError, OSError) as error:
                    rows[spec.name] = self.fail(spec, error)
            disturbed += machine.disturbance(before, machine.usage([os.getpid()], children=True), time.monotonic() - at).disturbed
        timed = {name: found for name, found in phases.items() if rows[name]["status"] == "timed"}  # those of who failed later are fewer
        for name, found in timed.items():
            totals = [sum(phase) for phase in found]
            process, load, first = (float(np.median(phase)) for phase in zip(*found, strict=True))
            rows[name].update(
                seconds=spread(Spread.of(totals)),
                turns=totals,
                phases={"import": process, "load": load, "first": first},
            )
            if reference in timed:
                ratio = ratio_of([sum(theirs) / own for theirs, own in zip(timed[reference], totals, strict=True)])
                rows[name]["ratio"] = {"to": reference, "value": ratio.value, "band": ratio.band if name != reference else 0.0}
        quality = {"rounds": self.settings.starts, "disturbed": disturbed, "noisy": disturbed > 0}
        return {"reference": reference, "quality": quality, "rows": in_order(rows, self.specs)}

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
    """The most that a fresh process ever held, after loading and a few calls."""

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
                rows[spec.name] = self.fail(spec, error)
        reference = rows.get(reference_of(self.task), {}).get("mib")
        for row in rows.values():
            if reference and "mib" in row:
                row["ratio"] = {"to": reference_of(self.task), "value": reference / row["mib"], "band": 0.0}
        return {"reference": reference_of(self.task), "rows": in_order(rows, self.specs)}
