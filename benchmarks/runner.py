"""Check, then time, side by side: one call of each subject in turn, A B C A B C, in rounds that are repeated when somebody disturbs.

A turn is a warm-up call (the others have had the caches) and as many timed calls as fill `turn` seconds; its result is their median. A
subject's time is the median of its turns, and a ratio of two subjects is the median of the ratios within each round.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checks, machine
from benchmarks.checks import Check
from benchmarks.client import Client, WorkerError
from benchmarks.models import folder
from benchmarks.peaks import NoCompilerError, PeakMeter, Peaks
from benchmarks.stats import Spread, ratio_of
from benchmarks.subjects import EMBED_REFERENCE, REFERENCE, SUBJECTS, Spec
from benchmarks.workloads import Workload

FORMAT = 1
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_SLOWED = 0.9  # a peak below this share of the run's best: the machine was busy or throttled
_GATED = ("AbsentError",)


@dataclass
class Settings:
    """`rounds` that nothing disturbed are wanted of every workload, more while `seconds` are not used up; disturbed ones are repeated
    until as many again have been spent."""

    threads: int
    cache: Path
    rounds: int = 5
    seconds: float = 6.0
    turn: float = 0.1
    most_rounds: int = 41
    starts: int = 3  # of processes, for kind "cold"
    report: Callable[[str], None] = lambda _: None  # what is being done now
    advance: Callable[[dict[str, Any]], None] = lambda _: None  # another workload is done: the result so far


@dataclass
class Run:
    """Everything a result file holds, as it fills up."""

    settings: Settings
    meter: PeakMeter | None = None
    peaks: Peaks | None = None
    notes: list[str] = field(default_factory=list)
    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine.this_machine().as_dict(),
            "threads": self.settings.threads,
            "peaks": self.peaks.as_dict() if self.peaks else None,
            "versions": machine.versions(),
            "notes": self.notes,
            "subjects": self.subjects,
            "workloads": self.workloads,
        }


def run(specs: list[Spec], workloads: list[Workload], settings: Settings) -> dict[str, Any]:
    """The result file's content. A subject that fails costs its own rows, never the run."""
    state = Run(settings)
    settings.report("measuring the machine's peaks")
    try:
        state.meter = PeakMeter(settings.cache, settings.threads)
        state.peaks = state.meter.measure()
    except (NoCompilerError, OSError) as error:
        state.notes.append(str(error))
    for spec in specs:
        state.subjects[spec.name] = {"dtype": spec.dtype, "setup": spec.setup, "ours": spec.ours, "absent": spec.missing}
    with tempfile.TemporaryDirectory(prefix="bertfast-benchmarks-") as scratch:
        for (model, task, kind), group in groupby(workloads, key=lambda w: (w.model, w.task, w.kind)):
            taking_part = [s for s in _with_reference(specs, task) if task in s.tasks and kind in s.kinds and s.missing is None]
            timer = {"call": _Calls, "cold": _Cold, "memory": _Memory}[kind]
            with timer(state, taking_part, model, task, Path(scratch)) as group_timer:
                for workload in group:
                    try:
                        found = group_timer.measure(workload)
                    except (WorkerError, RuntimeError, OSError) as error:  # its inputs cannot be made, say
                        found = group_timer.unchecked(f"{type(error).__name__}: {error}")
                    state.workloads[workload.name] = {**workload.as_dict(), **found}
                    settings.advance(state.as_dict())
    if state.meter and state.peaks:
        state.peaks = state.peaks.best(state.meter.measure())
        _against_the_peaks(state, specs)
    return state.as_dict()


def _against_the_peaks(state: Run, specs: list[Spec]) -> None:
    """What part of the machine each time was, and who ran while it was slowed down: told at the end, by the best peaks of the run. One
    taken at the start alone, while somebody was busy, would flatter everybody."""
    assert state.peaks is not None
    qualities = [w["quality"] for w in state.workloads.values() if "peak_before" in w.get("quality", {})]
    seen = [quality[when] for quality in qualities for when in ("peak_before", "peak_after")]
    state.peaks = replace(state.peaks, float32=max([state.peaks.float32, *seen]))
    for quality in qualities:
        quality["noisy"] |= min(quality["peak_before"], quality["peak_after"]) < _SLOWED * state.peaks.float32
    dtypes = {spec.name: spec.dtype for spec in (*SUBJECTS.values(), *specs)}
    for workload in state.workloads.values():
        for name, row in workload["rows"].items():
            if "seconds" in row and workload["kind"] == "call":
                row.update(_shares(state.peaks, workload, dtypes[name], row["seconds"]["median"]))


def reference_of(task: str) -> str:
    return EMBED_REFERENCE if task == "embed" else REFERENCE


def _with_reference(specs: list[Spec], task: str) -> list[Spec]:
    """The reference takes part whatever was asked for: there is nothing to check against, and no ratio, without it."""
    reference = SUBJECTS[reference_of(task)]
    return [reference, *(s for s in specs if s.name != reference.name)]


class _Group:
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
        self.folder: Path | None = None

    def __enter__(self) -> "_Group":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.clients.clear()

    def measure(self, workload: Workload) -> dict[str, Any]:
        raise NotImplementedError

    def weights(self) -> Path:
        if self.folder is None:
            self.settings.report(f"weights of {self.model} for {self.task}")
            self.folder = folder(self.model, self.task, self.settings.cache)
        return self.folder

    def start(self, spec: Spec) -> Client:
        client = Client(spec, self.settings.threads, self.scratch / f"{spec.name}.log")
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

    def unchecked(self, reason: str) -> dict[str, Any]:
        rows = {s.name: {"status": "failed", "reason": reason, **self.failed.get(s.name, {})} for s in self.specs}
        return {"reference": reference_of(self.task), "rows": rows}


class _Calls(_Group):
    """All subjects' processes are alive at once, one of them at work at a time; while they are timed the others are stopped."""

    def __enter__(self) -> "_Calls":
        for spec in self.specs:
            self.settings.report(f"{self.model} {self.task}: {spec.name} gets ready")
            try:
                self.clients[spec.name] = self.start(spec)
                self.clients[spec.name].ask("load")
            except (WorkerError, RuntimeError, OSError) as error:
                self.drop(spec, error)
        return self

    def measure(self, workload: Workload) -> dict[str, Any]:
        path, arrays = self.inputs(workload)
        mask = arrays.get("attention_mask")
        reference = reference_of(self.task)
        rows: dict[str, dict[str, Any]] = dict(self.failed)
        try:
            expected, gaps = self._reference(reference, workload, path)
        except (WorkerError, KeyError) as error:
            why = self.failed.get(reference, {}).get("reason", str(error))
            return self.unchecked(f"nothing to check against: {reference} failed ({why})")

        def checked(spec: Spec, again: bool) -> tuple[Check, float]:
            found = self.scratch / f"{spec.name}.npz"
            answer = self.clients[spec.name].ask("outputs", path=str(found), again=again)
            with np.load(found) as outputs:
                got = {name: outputs[name] for name in outputs.files}
            found.unlink()
            if gaps is not None:
                return checks.check_tokens(got["sequences"], expected["sequences"], gaps, spec.dtype), answer["seconds"]
            return checks.check(got, expected, mask, spec.dtype), answer["seconds"]

        timed: dict[str, float] = {}
        for spec in self.specs:
            if spec.name not in self.clients:
                continue
            self.settings.report(f"{workload.name}: checking {spec.name}")
            try:
                self.clients[spec.name].ask("inputs", path=str(path), new_tokens=workload.new_tokens)
                result, _ = checked(spec, again=False)
                rows[spec.name] = {"status": "refused" if result.refused else "timed", "check": result.as_dict()}
                if not result.refused:
                    timed[spec.name] = self.clients[spec.name].ask("time", calls=1, warm=0)["seconds"][0]
                else:
                    rows[spec.name]["reason"] = result.refused
            except (WorkerError, KeyError, OSError) as error:
                self.drop(spec, error)
                rows[spec.name] = self.failed[spec.name]
        turns, quality = self._rounds(workload, timed, rows)
        for spec in self.specs:  # what was timed must still be right: a replayed plan may go wrong on its second use
            if spec.name in turns:
                try:
                    result, _ = checked(spec, again=True)
                except (WorkerError, KeyError) as error:
                    rows[spec.name] = self.fail(spec, error)
                    continue
                rows[spec.name]["check"] = result.as_dict()
                if result.refused:
                    rows[spec.name] = {"status": "refused", "check": result.as_dict(), "reason": f"after it was timed: {result.refused}"}
        self._fill(rows, turns, reference)
        return {"reference": reference, "quality": quality, "rows": _in_order(rows, self.specs)}

    def _reference(self, name: str, workload: Workload, path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        self.settings.report(f"{workload.name}: what {name} says")
        client = self.clients[name]
        client.ask("inputs", path=str(path), new_tokens=workload.new_tokens)
        found = self.scratch / "reference.npz"
        client.ask("outputs", path=str(found), again=False)
        with np.load(found) as arrays:
            expected = {key: arrays[key] for key in arrays.files}
        if not workload.new_tokens:
            return expected, None
        client.ask("reference_gaps", path=str(found), inputs=str(path), new_tokens=workload.new_tokens)
        with np.load(found) as arrays:
            return expected, arrays["gaps"]

    def _rounds(
        self, workload: Workload, timed: dict[str, float], rows: dict[str, dict[str, Any]]
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        """Turn medians in seconds by subject, from the rounds that nobody disturbed; and what is known about the rounds."""
        settings, names = self.settings, [s.name for s in self.specs if s.name in timed]
        good: list[dict[str, float]] = []
        bad: list[dict[str, float]] = []
        disturbances = []
        used = dict.fromkeys(names, 0.0)
        walls = dict.fromkeys(names, 0.0)
        peak_before = self.state.meter.rate() if self.state.meter else 0.0
        for client in self.clients.values():
            client.pause()
        begin = time.monotonic()
        most = workload.most_rounds or settings.most_rounds
        wanted = min(settings.rounds, most)
        while names and len(good) < most:
            spent = time.monotonic() - begin
            if len(good) >= wanted and spent > settings.seconds:
                break
            if len(good) + len(bad) >= 2 * wanted and spent > 2 * settings.seconds:
                break
            settings.report(f"{workload.name}: round {len(good) + len(bad) + 1}")
            ours = [os.getpid(), *(c.process for c in self.clients.values())]
            before, at = machine.usage(ours), time.monotonic()
            turns: dict[str, float] = {}
            for name in list(names):
                calls = max(1, min(200, round(settings.turn / max(timed[name], 1e-6))))
                try:
                    answer = self.clients[name].ask("time", calls=calls, warm=1 if timed[name] < 0.5 else 0)
                except WorkerError as error:
                    names.remove(name)
                    spec = next(s for s in self.specs if s.name == name)
                    self.drop(spec, error)
                    rows[name] = self.failed[name]
                    continue
                turns[name] = float(np.median(answer["seconds"]))
                used[name] += answer["cpu"]
                walls[name] += sum(answer["seconds"])
                self.clients[name].pause()
            seen = machine.disturbance(before, machine.usage(ours), time.monotonic() - at)
            disturbances.append(seen)
            (bad if seen.disturbed else good).append(turns)
        kept = good if len(good) >= wanted else good + bad
        peak_after = self.state.meter.rate() if self.state.meter else 0.0
        for name in names:
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
        return {name: [turns[name] for turns in kept if name in turns] for name in names}, quality

    def _fill(self, rows: dict[str, dict[str, Any]], turns: dict[str, list[float]], reference: str) -> None:
        for name, seconds in turns.items():
            if rows[name]["status"] != "timed":
                continue
            spread = Spread.of(seconds)
            rows[name].update(seconds=_spread(spread), turns=seconds)
            if reference in turns and len(turns[reference]) == len(seconds) and rows[reference]["status"] == "timed":
                ratio = ratio_of(turns[reference], seconds)
                rows[name]["ratio"] = {"to": reference, "value": ratio.value, "band": ratio.band if name != reference else 0.0}
        for spec in self.specs:
            if spec.ours and rows.get(spec.name, {}).get("status") == "timed":
                rows[spec.name]["best_peer"] = self._best_peer(spec, rows, turns)

    def _best_peer(self, spec: Spec, rows: dict[str, dict[str, Any]], turns: dict[str, list[float]]) -> dict[str, Any] | None:
        """The fastest of the others in the same dtype, and how many times as fast as it we are."""
        peers = [s.name for s in self.specs if not s.ours and s.dtype == spec.dtype and rows.get(s.name, {}).get("status") == "timed"]
        peers = [name for name in peers if len(turns[name]) == len(turns[spec.name])]
        if not peers:
            return None
        best = min(peers, key=lambda name: rows[name]["seconds"]["median"])
        ratio = ratio_of(turns[best], turns[spec.name])
        return {"to": best, "value": ratio.value, "band": ratio.band}


class _Cold(_Group):
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
            spread = Spread.of(totals)
            process, load, first = (float(np.median(phase)) for phase in zip(*found, strict=True))
            rows[name] = {
                "status": "timed",
                "seconds": _spread(spread),
                "turns": totals,
                "phases": {"import": process, "load": load, "first": first},
            }
            if reference:
                ratio = ratio_of([sum(phase) for phase in reference], totals)
                rows[name]["ratio"] = {"to": reference_of(self.task), "value": ratio.value, "band": ratio.band}
        disturbed = sum(d.disturbed for d in seen[1:])
        quality = {"rounds": self.settings.starts, "disturbed": disturbed, "noisy": disturbed > 0}
        return {"reference": reference_of(self.task), "quality": quality, "rows": _in_order(rows, self.specs)}

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


class _Memory(_Group):
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
        return {"reference": reference_of(self.task), "rows": _in_order(rows, self.specs)}


def _shares(peaks: Peaks, workload: dict[str, Any], dtype: str, seconds: float) -> dict[str, float]:
    """What part of the machine's arithmetic and of its bandwidth this was. Weights that fit the cache need not come from memory."""
    found = {"of_arithmetic": workload["flops"] / seconds / peaks.rate(dtype)}
    weights = workload["weights_read"] * _BYTES[dtype]
    if weights / max(1, workload["new_tokens"]) > machine.this_machine().cache_mib * 2**20 and workload["task"] != "embed":
        found["of_bandwidth"] = weights / seconds / peaks.bandwidth
    return found


def _spread(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "p20": spread.p20, "p80": spread.p80}


def _in_order(rows: dict[str, dict[str, Any]], specs: list[Spec]) -> dict[str, dict[str, Any]]:
    return {s.name: rows[s.name] for s in specs if s.name in rows}
