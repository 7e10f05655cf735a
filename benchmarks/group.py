"""The workloads of one model, task and kind; and the kind "call": check, then time, side by side.

One call of each subject in turn, A B C A B C, in rounds that are repeated when somebody disturbs. A turn is a warm-up call where calls are
short (the others have had the caches) and as many timed calls as fill `turn` seconds; its result is their median.
"""

import os
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from benchmarks import checks, machine
from benchmarks.checks import Check
from benchmarks.client import Client, WorkerError
from benchmarks.models import folder
from benchmarks.rounds import ratios, schedule, settled, times
from benchmarks.settings import Run
from benchmarks.stats import Round, Spread, Turn
from benchmarks.subjects import EMBED_REFERENCE, REFERENCE, Spec
from benchmarks.workloads import Workload

_GATED = ("AbsentError",)
_SHORT = 0.1  # seconds: a call shorter than this notices that another process has had the caches
_MOST_CALLS = 200  # of a turn


def reference_of(task: str) -> str:
    return EMBED_REFERENCE if task == "embed" else REFERENCE


def verdict_of(result: Check) -> dict[str, Any]:
    """A row for who was checked: "timed", without a time yet, or refused, and why."""
    row: dict[str, Any] = {"status": "refused" if result.refused else "timed", "check": result.as_dict()}
    return {**row, "reason": result.refused} if result.refused else row


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


class Group(ABC):
    """The workloads of one model, task and kind."""

    def __init__(self, state: Run, specs: list[Spec], model: str, task: str, scratch: Path) -> None:
        self.state = state
        self.settings = state.settings
        self.specs = specs
        self.model = model
        self.task = task
        self.scratch = scratch
        self.failed: dict[str, dict[str, Any]] = {}
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
    def measure(self, workload: Workload) -> dict[str, Any]: ...

    def weights(self) -> Path:
        with self._writing:  # subjects get ready side by side
            if self._folder is None:
                self.settings.report(f"weights of {self.model} for {self.task}")
                self._folder = folder(self.model, self.task, self.settings.cache)
            return self._folder

    def process(self, spec: Spec) -> Client:
        return Client(spec, self.settings.threads, self.scratch / f"{spec.name}.log")

    def start(self, spec: Spec) -> Client:
        client = self.process(spec)
        try:
            client.convert(self.weights(), self.task, self.settings.cache)
        except BaseException:
            client.close()
            raise
        return client

    def fail(self, spec: Spec, error: Exception) -> dict[str, Any]:
        """A row that says why there is no time in it."""
        kind = error.kind if isinstance(error, WorkerError) else type(error).__name__
        status = "absent" if kind in _GATED else "failed"
        row = {"status": status, "reason": f"{error}" if status == "absent" else f"{kind}: {error}"[:500]}
        if isinstance(error, WorkerError) and status == "failed":
            row["detail"] = error.detail[-4000:]
        return row

    def drop(self, spec: Spec, error: Exception) -> None:
        self.failed[spec.name] = self.fail(spec, error)
        if spec.name in self.clients:
            self.clients.pop(spec.name).close()

    def inputs(self, workload: Workload) -> tuple[Path, dict[str, np.ndarray]]:
        arrays = workload.inputs()
        path = self.scratch / "inputs.npz"
        np.savez(path, **arrays)
        return path, arrays

    def nothing_to_check_against(self, why: str) -> str:
        return f"nothing to check against: {reference_of(self.task)} failed ({why})"

    def unchecked(self, reason: str) -> dict[str, Any]:
        rows = {s.name: {"status": "failed", "reason": reason, **self.failed.get(s.name, {})} for s in self.specs}
        return {"reference": reference_of(self.task), "rows": rows}


class Calls(Group):
    """All subjects' processes are alive at once, one of them at work at a time; while they are timed the others are stopped."""

    def __enter__(self) -> "Calls":
        self.settings.report(f"{self.model} {self.task}: {len(self.specs)} subjects get ready")
        try:
            for spec in self.specs:
                self._begin(spec)
            with ThreadPoolExecutor(self.settings.threads) as pool:  # nothing is timed yet: one core each
                list(pool.map(self._get_ready, [s for s in self.specs if s.name in self.clients]))
        except BaseException:
            self.close()
            raise
        return self

    def _begin(self, spec: Spec) -> None:
        try:
            self.clients[spec.name] = self.process(spec)
        except OSError as error:
            self.drop(spec, error)

    def _get_ready(self, spec: Spec) -> None:
        try:
            client = self.clients[spec.name]
            client.convert(self.weights(), self.task, self.settings.cache)
            client.ask("load")
            client.ask("settle")
            client.pause()
        except Exception as error:  # whatever it is, it costs this subject's rows and nobody else's
            self.drop(spec, error)

    def without_reference(self, error: Exception) -> dict[str, Any]:
        reference = reference_of(self.task)
        return self.unchecked(self.nothing_to_check_against(self.failed.get(reference, {}).get("reason", str(error))))

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, arrays = self.inputs(workload)
        reference = reference_of(self.task)
        try:
            expected, gaps, first = self.expected(workload, path)
        except (WorkerError, KeyError) as error:
            return self.without_reference(error)
        rows: dict[str, dict[str, Any]] = dict(self.failed)

        def checked(spec: Spec, again: bool) -> tuple[Check, float]:
            got, seconds = self.outputs(spec, again)
            if gaps is not None:
                return checks.check_tokens(got["sequences"], expected["sequences"], gaps, spec.dtype), seconds
            return checks.check(got, expected, arrays.get("attention_mask"), spec.dtype), seconds

        seconds: dict[str, float] = {}
        for spec in self.specs:
            if spec.name not in self.clients:
                continue
            self.settings.report(f"{workload.name}: checking {spec.name}")
            try:
                if spec.name == reference:  # which has just been asked
                    result, took = checked(spec, again=True)[0], first
                else:
                    self.ask_inputs(spec, workload, path)
                    result, took = checked(spec, again=False)
                rows[spec.name] = verdict_of(result)
                if not result.refused:
                    seconds[spec.name] = self.once_more(spec, took, seconds.get(reference, took))
                self.clients[spec.name].pause()
            except (WorkerError, KeyError, OSError) as error:
                self.drop(spec, error)
                rows[spec.name] = self.failed[spec.name]
        rounds, quality = self.rounds(workload, seconds, rows)
        for spec in self.specs:  # what was timed must still be right: a replayed plan may go wrong on its second use
            if rows.get(spec.name, {}).get("status") != "timed":
                continue
            try:
                result, _ = checked(spec, again=True)
                self.clients[spec.name].pause()
            except (WorkerError, KeyError) as error:
                rows[spec.name] = self.fail(spec, error)
                continue
            rows[spec.name]["check"] = result.as_dict()
            if result.refused:
                rows[spec.name] = {"status": "refused", "check": result.as_dict(), "reason": f"after it was timed: {result.refused}"}
        self.fill(rows, rounds, reference)
        return {"reference": reference, "quality": quality, "rows": in_order(rows, self.specs)}

    def ask_inputs(self, spec: Spec, workload: Workload, path: Path) -> None:
        self.clients[spec.name].ask("inputs", path=str(path), new_tokens=workload.new_tokens)

    def outputs(self, spec: Spec, again: bool) -> tuple[dict[str, np.ndarray], float]:
        """What its call returned, and the seconds that it took; `again`: of its last call, without another one."""
        found = self.scratch / f"{spec.name}.npz"
        answer = self.clients[spec.name].ask("outputs", path=str(found), again=again)
        got = read_arrays(found)
        found.unlink()
        return got, answer["seconds"]

    def once_more(self, spec: Spec, took: float, slowest: float) -> float:
        """Seconds of a call, for a first guess; the rounds correct it. A first call that was short says little about the next, and one that
        took far longer than the reference's was compiling."""
        if 3 * _SHORT < took < 3 * slowest:
            return took
        return float(self.clients[spec.name].ask("time", calls=1, warm=0)["seconds"][0])

    def expected(self, workload: Workload, path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None, float]:
        """The reference's outputs; when generating, by how much its best score led at each step; and the seconds that the outputs took."""
        name = reference_of(self.task)
        self.settings.report(f"{workload.name}: what {name} says")
        client = self.clients[name]
        client.ask("inputs", path=str(path), new_tokens=workload.new_tokens)
        found = self.scratch / "reference.npz"
        seconds = client.ask("outputs", path=str(found), again=False)["seconds"]
        expected = read_arrays(found)
        if not workload.new_tokens:
            return expected, None, seconds
        client.ask("reference_gaps", path=str(found), inputs=str(path), new_tokens=workload.new_tokens)
        return expected, read_arrays(found)["gaps"], seconds

    def rounds(self, workload: Workload, seconds: dict[str, float], rows: dict[str, dict[str, Any]]) -> tuple[list[Round], dict[str, Any]]:
        """The rounds that nobody disturbed, if they were enough, and what is known about all of them. `seconds` of a call, by subject."""
        settings, reference = self.settings, reference_of(self.task)
        good: list[Round] = []
        bad: list[Round] = []
        disturbances = []
        used = dict.fromkeys(seconds, 0.0)
        walls = dict.fromkeys(seconds, 0.0)
        peak_before = self.state.meter.rate() if self.state.meter else 0.0
        begin = time.monotonic()
        most = workload.most_rounds or settings.most_rounds
        wanted = min(settings.rounds, most)
        while seconds and len(good) < most:
            spent = time.monotonic() - begin
            enough = spent > settings.seconds or (spent > settings.seconds / 2 and settled(self.specs, reference, good))
            if len(good) >= wanted and enough:
                break
            if len(good) + len(bad) >= wanted and spent > 2 * settings.seconds:
                break
            done = len(good) + len(bad)
            settings.report(f"{workload.name}: round {done + 1}")
            ours = [os.getpid(), *(c.process for c in self.clients.values())]
            before, at = machine.usage(ours), time.monotonic()
            turns: list[Turn] = []
            for name in schedule(self.specs, reference, seconds, settings.turn, backwards=done % 2 == 1):
                if name not in seconds:  # it failed in this very round
                    continue
                calls = max(1, min(_MOST_CALLS, round(settings.turn / max(seconds[name], 1e-6))))
                start = time.monotonic()
                try:
                    answer = self.clients[name].ask("time", calls=calls, warm=int(seconds[name] < _SHORT))
                except WorkerError as error:
                    del seconds[name]
                    self.drop(next(s for s in self.specs if s.name == name), error)
                    rows[name] = self.failed[name]
                    continue
                turns.append(Turn(name, float(np.median(answer["seconds"])), start, time.monotonic()))
                self.clients[name].pause()
                used[name] += answer["cpu"]
                walls[name] += sum(answer["seconds"])
            seen = machine.disturbance(before, machine.usage(ours), time.monotonic() - at)
            disturbances.append(seen)
            (bad if seen.disturbed else good).append(turns)
            seconds.update({name: times([*good, *bad], name).median for name in seconds})
        kept = good if len(good) >= wanted else good + bad
        peak_after = self.state.meter.rate() if self.state.meter else 0.0
        for name in seconds:
            rows[name]["cores"] = used[name] / walls[name] if walls[name] else 0.0
        quality = {
            "rounds": len(kept),
            "disturbed": len(bad),
            "disturbed_kept": len(kept) - len(good),
            "others": float(np.median([d.others for d in disturbances])) if disturbances else 0.0,
            "stolen": float(np.median([d.stolen for d in disturbances])) if disturbances else 0.0,
            "peak_before": peak_before,
            "peak_after": peak_after,
            "noisy": kept is not good,
        }
        return kept, quality

    def fill(self, rows: dict[str, dict[str, Any]], rounds: list[Round], reference: str) -> None:
        """Times and ratios into the rows of those that were timed and stayed right."""
        kept = [[turn for turn in turns if rows[turn.name]["status"] == "timed"] for turns in rounds]
        for name, found in ratios(self.specs, reference, kept).items():
            each = [turn.seconds for turns in kept for turn in turns if turn.name == name]
            rows[name].update(seconds=spread(Spread.of(each)), turns=each, **found)


def spread(found: Spread) -> dict[str, float]:
    return {"median": found.median, "p20": found.p20, "p80": found.p80}


def in_order(rows: dict[str, dict[str, Any]], specs: list[Spec]) -> dict[str, dict[str, Any]]:
    return {s.name: rows[s.name] for s in specs if s.name in rows}
