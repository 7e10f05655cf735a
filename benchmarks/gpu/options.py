"""What a part of a GPU run was asked to do, and how much time it has."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Options:
    """`device` "cpu" is a dry run. `seconds`: no new workload begins after so long; `not_reached` lists what that left out."""

    model: str
    dtypes: list[str]
    shapes: list[str]
    subjects: list[str] | None
    batches: list[int]
    rounds: int
    turn: float
    inputs: int
    device: str
    seconds: float
    out: Path
    cache: Path
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None  # writes the rows so far
    not_reached: list[str] = field(default_factory=list)
    begin: float = field(default_factory=time.monotonic)

    def time_is_up(self) -> bool:
        return time.monotonic() - self.begin > self.seconds

    def reach(self, what: str) -> bool:
        """Whether there is time left for `what`; says and notes it if not."""
        if self.time_is_up():
            self.not_reached.append(what)
            print(f"{what}: not reached within {self.seconds:.0f} s", flush=True)
            return False
        return True
