"""A whole run: the peaks, every group of workloads in its turn, and what its file says in the end. Whatever fails costs its own rows, and
whoever stops it keeps what is done."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.fresh import Cold, Memory
from benchmarks.group import Calls, Group, reference_of
from benchmarks.peaks import NoCompilerError, PeakMeter, Peaks
from benchmarks.settings import FORMAT, Run, Settings
from benchmarks.steps import StepTimes
from benchmarks.subjects import SUBJECTS, Spec
from benchmarks.workloads import Workload

__all__ = ["FORMAT", "Run", "Settings", "run"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_SLOWED = 0.9  # a peak below this share of the run's best: the machine was busy or throttled
_KINDS: dict[str, Callable[..., Group]] = {"call": Calls, "cold": Cold, "memory": Memory, "steps": StepTimes}


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
    for spec in () if settings.named else SUBJECTS.values():
        if spec.name not in state.subjects:
            why = spec.missing or spec.left_out
            state.subjects[spec.name] = {"dtype": spec.dtype, "setup": spec.setup, "ours": spec.ours, "absent": None, "left_out": why}
    try:
        with tempfile.TemporaryDirectory(prefix="bertfast-benchmarks-") as scratch:
            for (model, task, kind, only), group in _groups(workloads).items():
                invited = [s for s in specs if settings.named or not only or s.name in only]
                taking_part = [s for s in _with_reference(invited, task) if task in s.tasks and kind in s.kinds and s.missing is None]
                with _KINDS[kind](state, taking_part, model, task, Path(scratch)) as timer:
                    for workload in group:
                        try:
                            found = timer.measure(workload)
                        except Exception as error:  # its inputs cannot be made, say: the hours before it must not be lost
                            found = timer.unchecked(f"{type(error).__name__}: {error}")
                        for spec in invited if settings.named else ():  # who was asked for by name is not passed over in silence
                            if spec not in taking_part and spec.missing is None:
                                reason = f"it takes no part in {task if task not in spec.tasks else kind!r}"
                                found["rows"].setdefault(spec.name, {"status": "absent", "reason": reason})
                        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                        state.workloads[workload.name] = {**workload.as_dict(), "measured": now, "build": machine.build(), **found}
                        _against_the_peaks(state, specs)
                        settings.advance(state.as_dict())
    except KeyboardInterrupt:
        state.interrupted = True
        state.notes.append(f"interrupted: {len(state.workloads)} of {len(workloads)} workloads were measured")
    if state.meter and state.peaks:
        state.peaks = state.peaks.best(state.meter.measure())
        _against_the_peaks(state, specs)
    return state.as_dict()


def _groups(workloads: list[Workload]) -> dict[tuple[str, str, str, tuple[str, ...]], list[Workload]]:
    """Those that share their subjects' processes, whatever stands between them: starting twenty subjects takes half a minute."""
    groups: dict[tuple[str, str, str, tuple[str, ...]], list[Workload]] = {}
    for w in workloads:
        groups.setdefault((w.model, w.task, w.kind, w.only), []).append(w)
    return groups


def _against_the_peaks(state: Run, specs: list[Spec]) -> None:
    """What part of the machine each time was, and who ran while it was slowed down: told after every workload anew, by the best peaks of
    the run so far. One taken at the start alone, while somebody was busy, would flatter everybody."""
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
    """The reference takes part whatever was asked for: there is nothing to check against, and no ratio, without it."""
    reference = SUBJECTS[reference_of(task)]
    return [reference, *(s for s in specs if s.name != reference.name)]


def _shares(peaks: Peaks, workload: dict[str, Any], dtype: str, seconds: float) -> dict[str, float]:
    """What part of the machine's arithmetic and of its bandwidth this was. Weights that fit the cache need not come from memory."""
    found = {"of_arithmetic": workload["flops"] / seconds / peaks.rate(dtype)}
    weights = workload["weights_read"] * _BYTES[dtype]
    if weights / max(1, workload["new_tokens"]) > machine.this_machine().cache_mib * 2**20 and workload["task"] != "embed":
        found["of_bandwidth"] = weights / seconds / peaks.bandwidth
    return found
