"""A whole run: the peaks, every group of workloads, and the shares of the peaks. A subject that fails costs its own rows only, and
an interrupted run keeps what is done."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.machine import identity
from benchmarks.machine.peaks import NoCompilerError, PeakMeter, Peaks
from benchmarks.measure.calls import Calls
from benchmarks.measure.fresh import Cold, Memory
from benchmarks.measure.group import Group
from benchmarks.measure.settings import FORMAT, Run, Settings
from benchmarks.measure.steps import StepTimes
from benchmarks.subjects import SUBJECTS, Spec
from benchmarks.suite.workloads import Workload, reference_of

__all__ = ["FORMAT", "Run", "Settings", "run"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_SLOWED = 0.9  # a peak below this share of the run's best: the machine was busy or throttled
_KINDS: dict[str, Callable[..., Group]] = {"call": Calls, "cold": Cold, "memory": Memory, "steps": StepTimes}


def run(specs: list[Spec], workloads: list[Workload], settings: Settings) -> dict[str, Any]:
    """The result file's content."""
    state = Run(settings)
    _measure_peaks(state)
    _list_subjects(state, specs)
    try:
        with tempfile.TemporaryDirectory(prefix="bertfast-benchmarks-") as scratch:
            for group in _groups(workloads).values():
                _run_group(state, specs, group, Path(scratch))
    except KeyboardInterrupt:
        state.interrupted = True
        state.notes.append(f"interrupted: {len(state.workloads)} of {len(workloads)} workloads were measured")
    if state.meter and state.peaks:
        state.peaks = state.peaks.best(state.meter.measure())
        _add_shares(state, specs)
    return state.as_dict()


def _measure_peaks(state: Run) -> None:
    state.settings.report("measuring the machine's peaks")
    try:
        state.meter = PeakMeter(state.settings.cache, state.settings.threads)
        state.peaks = state.meter.measure()
    except (NoCompilerError, OSError) as error:
        state.notes.append(str(error))


def _list_subjects(state: Run, specs: list[Spec]) -> None:
    for spec in specs:
        state.subjects[spec.name] = {"dtype": spec.dtype, "setup": spec.setup, "ours": spec.ours, "absent": spec.missing}
    for spec in () if state.settings.named else SUBJECTS.values():
        if spec.name not in state.subjects:
            why = spec.missing or spec.left_out
            state.subjects[spec.name] = {"dtype": spec.dtype, "setup": spec.setup, "ours": spec.ours, "absent": None, "left_out": why}


def _run_group(state: Run, specs: list[Spec], group: list[Workload], scratch: Path) -> None:
    settings, first = state.settings, group[0]
    invited = [s for s in specs if settings.named or not first.only or s.name in first.only]
    specs_here = [s for s in _with_reference(invited, first.task) if _takes_part(s, first)]
    with _KINDS[first.kind](state, specs_here, first.model, first.task, scratch) as timer:
        for workload in group:
            found = measured(timer, workload)
            for spec in invited if settings.named else ():
                if spec not in specs_here and spec.missing is None:
                    reason = f"it takes no part in {(first.task if first.task not in spec.tasks else first.kind)!r}"
                    found["rows"].setdefault(spec.name, {"status": "absent", "reason": reason})
            record(state, workload, found)
            _add_shares(state, specs)
            settings.advance(state.as_dict())


def _takes_part(spec: Spec, workload: Workload) -> bool:
    return workload.task in spec.tasks and workload.kind in spec.kinds and spec.missing is None


def measured(timer: Group, workload: Workload) -> dict[str, Any]:
    """What the group finds; failed rows if it raises, since earlier workloads' results must be kept."""
    try:
        return timer.measure(workload)
    except Exception as error:
        return timer.unchecked(f"{type(error).__name__}: {error}")


def record(state: Run, workload: Workload, found: dict[str, Any]) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    state.workloads[workload.name] = {**workload.as_dict(), "measured": now, "build": identity.build(), **found}


def _groups(workloads: list[Workload]) -> dict[tuple[str, str, str, tuple[str, ...]], list[Workload]]:
    """Workloads that share their subjects' processes: starting twenty subjects takes half a minute."""
    groups: dict[tuple[str, str, str, tuple[str, ...]], list[Workload]] = {}
    for w in workloads:
        groups.setdefault((w.model, w.task, w.kind, w.only), []).append(w)
    return groups


def _add_shares(state: Run, specs: list[Spec]) -> None:
    """Computes each time's share of the peaks, and marks workloads as noisy that ran while the machine was slow. Done after every workload
    with the best peaks so far: shares of a peak that was disturbed would be too high."""
    if state.peaks is None:
        return
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


def _with_reference(specs: list[Spec], task: str) -> list[Spec]:
    """The reference always takes part: checks and ratios need it."""
    reference = SUBJECTS[reference_of(task)]
    return [reference, *(s for s in specs if s.name != reference.name)]


def _shares(peaks: Peaks, workload: dict[str, Any], dtype: str, seconds: float) -> dict[str, float]:
    """Shares of the peak arithmetic and of the bandwidth. The latter only where the weights do not fit the cache."""
    found = {"of_arithmetic": workload["flops"] / seconds / peaks.rate(dtype)}
    weights = workload["weights_read"] * _BYTES[dtype]
    if weights / max(1, workload["new_tokens"]) > identity.this_machine().cache_mib * 2**20 and workload["task"] != "embed":
        found["of_bandwidth"] = weights / seconds / peaks.bandwidth
    return found
