"""Kind "steps": what each step of a long generation costs, the subjects taking turns within their generations.

A generation of 400 tokens takes half a minute where a machine may change its speed every few seconds. So every subject rests after
`STRETCH` tokens while the others make the same tokens of theirs, A B A B, and is compared stretch by stretch.
"""

import os
import time
from typing import Any

import numpy as np

from benchmarks import checks, machine
from benchmarks.client import WorkerError
from benchmarks.group import Calls, in_order, reference_of
from benchmarks.stats import FEWEST, PLACEMENT, Spread
from benchmarks.workloads import Workload

STRETCH = 25  # tokens; 1 s of the slowest

Steps = list[list[float | None]]  # a generation each, of seconds a token; None where a rest or the prefill lies in between


class StepTimes(Calls):
    """Tokens are compared with the reference's after every generation, as those of calls are."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, _ = self.inputs(workload)
        reference = reference_of(self.task)
        try:
            expected, gaps, _ = self.expected(workload, path)
        except (WorkerError, KeyError) as error:
            return self.without_reference(error)
        assert gaps is not None
        rows: dict[str, dict[str, Any]] = {}
        generations: dict[str, Steps] = {}
        disturbed = 0
        peak_before = self.state.meter.rate() if self.state.meter else 0.0
        for spec in self.specs:
            if spec.name in self.clients and spec.name != reference:
                try:
                    self.ask_inputs(spec, workload, path)
                    self.clients[spec.name].pause()
                except (WorkerError, OSError) as error:
                    self.drop(spec, error)
        wanted = workload.most_rounds or self.settings.rounds
        for done in range(wanted):
            processes = [os.getpid(), *(c.process for c in self.clients.values())]
            before, at = machine.usage(processes), time.monotonic()
            for name, steps in self._together(workload, f"{workload.name}: generation {done + 1} of {wanted}").items():
                generations.setdefault(name, []).append(steps)
            disturbed += machine.disturbance(before, machine.usage(processes), time.monotonic() - at).disturbed
            for spec in self.specs:
                if spec.name not in self.clients or rows.get(spec.name, {}).get("status") == "refused":
                    continue
                try:
                    got, _ = self.outputs(spec, again=True)
                    self.clients[spec.name].pause()
                    result = checks.check_tokens(got["sequences"], expected["sequences"], gaps, spec.dtype)
                except (WorkerError, KeyError) as error:
                    self.drop(spec, error)
                    continue
                rows[spec.name] = {"status": "refused" if result.refused else "timed", "check": result.as_dict()}
                if result.refused:
                    rows[spec.name]["reason"] = result.refused
        rows.update(self.failed)
        peak_after = self.state.meter.rate() if self.state.meter else 0.0
        for name, row in rows.items():
            if row["status"] == "timed":
                row.update(summary(generations[name]))
                if reference in generations and rows[reference]["status"] == "timed":
                    row["ratio"] = {"to": reference, **ratio(generations[reference], generations[name], same=name == reference)}
        quality = {"rounds": wanted, "disturbed": disturbed, "disturbed_kept": disturbed, "noisy": disturbed > 0}
        quality.update(peak_before=peak_before, peak_after=peak_after)
        return {"reference": reference, "quality": quality, "rows": in_order(rows, self.specs)}

    def _together(self, workload: Workload, doing: str) -> dict[str, list[float | None]]:
        """One generation of every subject, in stretches by turns."""
        under_way = [s for s in self.specs if s.name in self.clients]
        found: dict[str, list[float | None]] = {}
        begun: set[str] = set()
        while under_way:
            for spec in list(under_way):
                client = self.clients[spec.name]
                try:
                    if spec.name in begun:
                        answer = client.go_on()
                    else:
                        begun.add(spec.name)
                        answer = client.ask("steps", every=STRETCH)
                    client.pause()
                except WorkerError as error:
                    under_way.remove(spec)
                    self.drop(spec, error)
                    continue
                if "steps" in answer:
                    found[spec.name] = answer["steps"]
                    under_way.remove(spec)
                else:
                    self.settings.report(f"{doing}, {answer['rest']} of {workload.new_tokens} tokens")
        return {name: steps for name, steps in found.items() if name in self.clients}


def summary(generations: Steps) -> dict[str, Any]:
    """`steps`: the median over generations, in seconds, None where none was timed; `seconds` of all of them, as a generation's time is told
    elsewhere; and the straight line through the stretches' medians: `first`, seconds of a step with nothing generated yet, and `slope`,
    seconds more for each token generated."""
    steps = medians(generations)
    known = [[i for i in range(at, min(at + STRETCH, len(steps))) if steps[i] is not None] for at in range(0, len(steps), STRETCH)]
    slope, first = np.polyfit([np.mean(part) for part in known if part], _stretches(steps), 1)
    totals = [float(np.mean([s for s in steps if s is not None])) * len(steps) for steps in generations]
    spread = Spread.of(totals)
    return {
        "seconds": {"median": spread.median, "p20": spread.p20, "p80": spread.p80},
        "turns": totals,
        "steps": steps,
        "line": {"first": float(first), "slope": float(slope)},
    }


def medians(generations: Steps) -> list[float | None]:
    return [None if any(s is None for s in each) else float(np.median(each)) for each in zip(*generations, strict=True)]


def ratio(slower: Steps, faster: Steps, same: bool = False) -> dict[str, float]:
    """Of the stretches that lay side by side: the median over all, and how far generations differ in the same stretch."""
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
