"""Kind "steps": the time of each step of a long generation.

A generation of 400 tokens takes half a minute, and a machine may change its speed every few seconds. So subjects take turns within their
generations, STRETCH tokens each, and are compared stretch by stretch.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine.disturbance import disturbance, usage
from benchmarks.measure.calls import Calls
from benchmarks.measure.client import ProcessClient, WorkerError
from benchmarks.measure.group import Row, checked_row
from benchmarks.subjects import Spec
from benchmarks.suite.checks import Expected
from benchmarks.suite.stats import FEWEST, PLACEMENT, Spread
from benchmarks.suite.workloads import Workload

STRETCH = 25  # tokens; about 1 s of the slowest subject

Steps = list[list[float | None]]  # per generation, seconds per token; None after a rest or the prefill


class StepTimes(Calls):
    """Checks the tokens after every generation."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, arrays = self.inputs(workload)
        try:
            expected = self.expected(workload, path, arrays)
        except (WorkerError, KeyError) as error:
            return self.failed_reference(error)
        rows: dict[str, Row] = {}
        generations: dict[str, Steps] = {}
        disturbed = 0
        peak_before = self.peak()
        self._prepare(workload, path)
        wanted = workload.most_rounds or self.settings.rounds
        for done in range(wanted):
            processes = [os.getpid(), *(c.process for c in self.clients.values())]
            before, begin = usage(processes), time.monotonic()
            for name, steps in self._generate(workload, f"{workload.name}: generation {done + 1} of {wanted}").items():
                generations.setdefault(name, []).append(steps)
            disturbed += disturbance(before, usage(processes), time.monotonic() - begin).disturbed
            for spec in self.alive():
                if rows.get(spec.name, {}).get("status") != "refused":
                    self._check(spec, expected, rows)
        rows.update(self.failed)
        quality = {"rounds": wanted, "disturbed": disturbed, "disturbed_kept": disturbed, "noisy": disturbed > 0}
        quality.update(peak_before=peak_before, peak_after=self.peak())
        self._summarise(rows, generations)
        return {"reference": self.reference, "quality": quality, "rows": self.in_order(rows)}

    def _prepare(self, workload: Workload, path: Path) -> None:
        for spec in self.alive():
            if spec.name != self.truth:  # which has its inputs
                try:
                    self.ask_inputs(spec.name, workload, path)
                    self.clients[spec.name].pause()
                except (WorkerError, OSError) as error:
                    self.drop(spec, error)

    def _check(self, spec: Spec, expected: Expected, rows: dict[str, Row]) -> None:
        try:
            got, _ = self.outputs(spec, again=True)
            self.clients[spec.name].pause()
            rows[spec.name] = checked_row(expected.check(got, spec.dtype))
        except (WorkerError, KeyError) as error:
            self.drop(spec, error)

    def _summarise(self, rows: dict[str, Row], generations: dict[str, Steps]) -> None:
        reference = self.reference
        for name, row in rows.items():
            if row["status"] == "timed":
                row.update(summary(generations[name]))
                if reference in generations and rows[reference]["status"] == "timed":
                    row["ratio"] = {"to": reference, **ratio(generations[reference], generations[name], same=name == reference)}

    def _generate(self, workload: Workload, doing: str) -> dict[str, list[float | None]]:
        """One generation of every subject, in stretches by turns: seconds per step by subject."""
        unfinished = self.alive()
        found: dict[str, list[float | None]] = {}
        begun: set[str] = set()
        while unfinished:
            for spec in list(unfinished):
                client = self.clients[spec.name]
                assert isinstance(client, ProcessClient)
                try:
                    if spec.name in begun:
                        answer = client.go_on()
                    else:
                        begun.add(spec.name)
                        answer = client.ask("steps", every=STRETCH)
                    client.pause()
                except WorkerError as error:
                    unfinished.remove(spec)
                    self.drop(spec, error)
                    continue
                if "steps" in answer:
                    found[spec.name] = answer["steps"]
                    unfinished.remove(spec)
                else:
                    self.settings.report(f"{doing}, {answer['rest']} of {workload.new_tokens} tokens")
        return {name: steps for name, steps in found.items() if name in self.clients}


def summary(generations: Steps) -> dict[str, Any]:
    """`steps`: the median over generations in seconds, None where no step was timed. `seconds`: of whole generations, all steps taken as
    their mean. `line`: the fit through the stretches' medians, `first` seconds for the first step and `slope` seconds more per token."""
    steps = medians(generations)
    known = [[i for i in range(at, min(at + STRETCH, len(steps))) if steps[i] is not None] for at in range(0, len(steps), STRETCH)]
    slope, first = np.polyfit([np.mean(part) for part in known if part], _stretches(steps), 1)
    totals = [float(np.mean([s for s in steps if s is not None])) * len(steps) for steps in generations]
    return {
        "seconds": Spread.of(totals).as_dict(),
        "turns": totals,
        "steps": steps,
        "line": {"first": float(first), "slope": float(slope)},
    }


def medians(generations: Steps) -> list[float | None]:
    return [None if any(s is None for s in each) else float(np.median(each)) for each in zip(*generations, strict=True)]


def ratio(slower: Steps, faster: Steps, same: bool = False) -> dict[str, float]:
    """slower / faster of adjacent stretches: the median of all; the band is how far generations differ in the same stretch."""
    each = [[_stretches(a)[i] / _stretches(b)[i] for a, b in zip(slower, faster, strict=True)] for i in range(len(_stretches(slower[0])))]
    value = float(np.median(each))
    residuals = Spread.of([r / float(np.median(stretch)) for stretch in each for r in stretch])
    if same:
        return {"value": value, "band": 0.0}
    return {"value": value, "band": max(residuals.relative, PLACEMENT) if len(slower) >= FEWEST else 1.0}


def _stretches(steps: list[float | None]) -> list[float]:
    """The median step of each stretch."""
    parts = [[s for s in steps[at : at + STRETCH] if s is not None] for at in range(0, len(steps), STRETCH)]
    return [float(np.median(part)) for part in parts if part]
