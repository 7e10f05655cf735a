"""Kind "call": check every subject, time all of them in interleaved rounds, check them again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.client import WorkerError
from benchmarks.measure.group import Group, Row, checked_row, failed_row, read_arrays
from benchmarks.measure.rounds import ratios
from benchmarks.measure.timed_rounds import SHORT, TimedRounds
from benchmarks.subjects import Spec
from benchmarks.suite.checks import Expected
from benchmarks.suite.stats import Round, Spread
from benchmarks.suite.workloads import Workload


class Calls(Group):
    """All subjects' processes run for the whole group; all but the one that is timed are stopped. `truth` names the subject whose outputs
    the others are compared with."""

    def __enter__(self) -> "Calls":
        self.settings.report(f"{self.model} {self.task}: {len(self.specs)} subjects load")
        self.truth = self.reference
        try:
            for spec in self.specs:
                self._begin(spec)
            self.load_all([s for s in self.specs if s.name in self.clients])
        except BaseException:
            self.close()
            raise
        return self

    def _begin(self, spec: Spec) -> None:
        try:
            self.clients[spec.name] = self.client(spec)
        except OSError as error:
            self.drop(spec, error)

    def load_all(self, specs: list[Spec]) -> None:
        with ThreadPoolExecutor(self.settings.threads) as pool:  # nothing is timed yet: one core each
            list(pool.map(self.load, specs))

    def load(self, spec: Spec) -> None:
        try:
            client = self.clients[spec.name]
            client.convert(self.weights(), self.task, self.settings.cache)
            client.ask("load")
            client.ask("settle")
            client.pause()
        except Exception as error:  # costs this subject's rows only
            self.drop(spec, error)

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, arrays = self.inputs(workload)
        try:
            expected = self.expected(workload, path, arrays)
        except (WorkerError, KeyError) as error:
            return self.failed_reference(error)
        rows = dict(self.failed)
        timed = TimedRounds(self, workload, rows)
        for spec in self.alive():
            self.settings.report(f"{workload.name}: checking {spec.name}")
            try:
                self.check_first(spec, workload, path, expected, timed)
            except (WorkerError, KeyError, OSError) as error:
                rows[spec.name] = self.drop(spec, error)
        timed.run()
        self._check_again(rows, expected)
        self._fill(rows, timed.kept)
        return {"reference": self.reference, "quality": timed.quality(), "rows": self.in_order(rows)}

    def alive(self) -> list[Spec]:
        return [spec for spec in self.specs if spec.name in self.clients]

    def failed_reference(self, error: Exception) -> dict[str, Any]:
        return self.unchecked(self.without_reference(self.failed.get(self.truth, {}).get("reason", str(error))))

    def check_first(self, spec: Spec, workload: Workload, path: Path, expected: Expected, timed: TimedRounds) -> None:
        if spec.name == self.truth:  # it has just computed what is expected
            got, seconds = self.outputs(spec, again=True)[0], expected.seconds
        else:
            self.ask_inputs(spec.name, workload, path)
            got, seconds = self.outputs(spec, again=False)
        result = expected.check(got, spec.dtype)
        timed.rows[spec.name] = checked_row(result)
        if not result.refused:
            timed.seconds[spec.name] = self._estimate(spec, seconds, timed.seconds.get(self.reference, seconds))
        self.clients[spec.name].pause()

    def _check_again(self, rows: dict[str, Row], expected: Expected) -> None:
        """Checks the last timed call: a replayed plan may go wrong on a later use."""
        for spec in self.specs:
            if rows.get(spec.name, {}).get("status") != "timed":
                continue
            try:
                got, _ = self.outputs(spec, again=True)
                result = expected.check(got, spec.dtype)
                self.clients[spec.name].pause()
            except (WorkerError, KeyError) as error:
                rows[spec.name] = failed_row(error)
                continue
            rows[spec.name]["check"] = result.as_dict()
            if result.refused:
                rows[spec.name] = {"status": "refused", "check": result.as_dict(), "reason": f"after it was timed: {result.refused}"}

    def ask_inputs(self, name: str, workload: Workload, path: Path) -> None:
        self.clients[name].ask("inputs", path=str(path), new_tokens=workload.new_tokens)

    def outputs(self, spec: Spec, again: bool) -> tuple[dict[str, np.ndarray], float]:
        """A call's outputs and its seconds; with `again` those of the last call."""
        found = self.scratch / f"{spec.name}.npz"
        answer = self.clients[spec.name].ask("outputs", path=str(found), again=again)
        got = read_arrays(found)
        found.unlink()
        return got, answer["seconds"]

    def _estimate(self, spec: Spec, first: float, reference: float) -> float:
        """Seconds of a call; the rounds refine it. A second call is made where the first was short, or so much longer than the reference's
        that it compiled."""
        if 3 * SHORT < first < 3 * reference:
            return first
        return float(self.clients[spec.name].ask("time", calls=1, warm=0)["seconds"][0])

    def expected(self, workload: Workload, path: Path, arrays: dict[str, np.ndarray]) -> Expected:
        self.settings.report(f"{workload.name}: outputs of {self.truth}")
        client = self.clients[self.truth]
        self.ask_inputs(self.truth, workload, path)
        found = self.scratch / "reference.npz"
        seconds = client.ask("outputs", path=str(found), again=False)["seconds"]
        outputs, gaps = read_arrays(found), None
        if workload.new_tokens:
            client.ask("reference_gaps", path=str(found), inputs=str(path), new_tokens=workload.new_tokens)
            gaps = read_arrays(found)["gaps"]
        return Expected(outputs, arrays.get("attention_mask"), gaps, seconds)

    def _fill(self, rows: dict[str, Row], rounds: list[Round]) -> None:
        """Writes times and ratios into the rows of the subjects that are still right."""
        kept = [[turn for turn in turns if rows[turn.name]["status"] == "timed"] for turns in rounds]
        for name, found in ratios(self.specs, self.reference, kept).items():
            turns = [turn for turns in kept for turn in turns if turn.name == name]
            each = [turn.seconds for turn in turns]
            rows[name].update(seconds=Spread.of(each).as_dict(), turns=each, **found)
            back_to_back = [turn.back_to_back for turn in turns if turn.back_to_back is not None]
            if back_to_back:
                rows[name]["back_to_back"] = Spread.of(back_to_back).as_dict()
