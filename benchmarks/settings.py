"""How a run is made, and everything that its result file will hold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.peaks import PeakMeter, Peaks

FORMAT = 1


@dataclass
class Settings:
    """`rounds` that nothing disturbed are wanted of every workload, and more until half of `seconds` are used up, or all of them while a
    ratio's band is wider than a quiet machine's. Disturbed rounds are repeated until twice `seconds` are used up."""

    threads: int
    cache: Path
    rounds: int = 5
    seconds: float = 6.0
    turn: float = 0.1
    most_rounds: int = 41
    named: bool = False  # the subjects were asked for by name: a workload's own selection does not count
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
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine.this_machine().as_dict(),
            "threads": self.settings.threads,
            "peaks": self.peaks.as_dict() if self.peaks else None,
            "versions": machine.versions(),
            "build": machine.build(),
            "notes": self.notes,
            "interrupted": self.interrupted,
            "subjects": self.subjects,
            "workloads": self.workloads,
        }
