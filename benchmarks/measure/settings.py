"""The settings of a run, and the content of its result file."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.machine import identity
from benchmarks.machine.peaks import PeakMeter, Peaks

FORMAT = 1


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertfast-benchmarks"


@dataclass
class Settings:
    """A workload gets at least `rounds` undisturbed rounds. More follow until half of `seconds` have passed, or all of them while a ratio
    is noisy. Disturbed rounds are repeated until twice `seconds` have passed."""

    threads: int
    cache: Path
    rounds: int = 5
    seconds: float = 6.0
    turn: float = 0.1
    most_rounds: int = 41
    named: bool = False  # subjects were named: ignore Workload.only
    starts: int = 3  # process starts per subject, for kind "cold"
    report: Callable[[str], None] = lambda _: None  # is told what is being done
    advance: Callable[[dict[str, Any]], None] = lambda _: None  # gets the result so far after each workload


@dataclass
class Run:
    """The content of a result file while the run fills it."""

    settings: Settings
    meter: PeakMeter | None = None
    peaks: Peaks | None = None
    notes: list[str] = field(default_factory=list)
    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    interrupted: bool = False
    not_reached: list[str] = field(default_factory=list)  # workloads that a time limit left out
    machine: dict[str, Any] = field(default_factory=lambda: identity.this_machine().as_dict())
    versions: dict[str, str] = field(default_factory=identity.versions)

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": self.machine,
            "threads": self.settings.threads,
            "peaks": self.peaks.as_dict() if self.peaks else None,
            "versions": self.versions,
            "build": identity.build(),
            "notes": self.notes,
            "interrupted": self.interrupted,
            "not_reached": self.not_reached,
            "subjects": self.subjects,
            "workloads": self.workloads,
        }
