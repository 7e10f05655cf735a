"""The timed rounds of one workload.

Each round gives every subject a turn: a warm-up call where calls are short (the others used the caches), then as many calls as fill
`turn` seconds. A turn counts by its median. A round that other processes or the hypervisor disturb is repeated.
"""

import os
import time
from typing import Any

import numpy as np

from benchmarks.machine.disturbance import Disturbance, disturbance, usage
from benchmarks.measure.client import WorkerError
from benchmarks.measure.group import Group, Row
from benchmarks.measure.rounds import schedule, settled, times
from benchmarks.suite.stats import Round, Turn
from benchmarks.suite.workloads import Workload

SHORT = 0.1  # seconds: a shorter call is slower when another process has used the caches
_MOST_CALLS = 200  # per turn


class TimedRounds:
    """`rows`: the workload's, by subject. `seconds`: of a call, by subject that takes part."""

    def __init__(self, group: Group, workload: Workload, rows: dict[str, Row]) -> None:
        self.rows = rows
        self.seconds: dict[str, float] = {}
        self._group = group
        self._workload = workload
        self._settings = group.settings
        self._most = workload.most_rounds or group.settings.most_rounds
        self._wanted = min(group.settings.rounds, self._most)
        self._good: list[Round] = []
        self._bad: list[Round] = []  # disturbed
        self._disturbances: list[Disturbance] = []
        self._cpu: dict[str, float] = {}
        self._wall: dict[str, float] = {}
        self._peaks = (0.0, 0.0)

    def run(self) -> None:
        before = self._group.peak()
        begin = time.monotonic()
        while self.seconds and not self._enough(time.monotonic() - begin):
            self._round()
        self._peaks = before, self._group.peak()
        for name in self.seconds:
            wall = self._wall.get(name, 0.0)
            self.rows[name]["cores"] = self._cpu[name] / wall if wall else 0.0

    @property
    def kept(self) -> list[Round]:
        """The undisturbed rounds if there are enough, otherwise all."""
        return self._good if len(self._good) >= self._wanted else self._good + self._bad

    def quality(self) -> dict[str, Any]:
        seen = self._disturbances
        before, after = self._peaks
        return {
            "rounds": len(self.kept),
            "disturbed": len(self._bad),
            "disturbed_kept": len(self.kept) - len(self._good),
            "others": float(np.median([d.others for d in seen])) if seen else 0.0,
            "stolen": float(np.median([d.stolen for d in seen])) if seen else 0.0,
            "peak_before": before,
            "peak_after": after,
            "noisy": self.kept is not self._good,
        }

    def _enough(self, spent: float) -> bool:
        good, seconds = len(self._good), self._settings.seconds
        if good >= self._most:
            return True
        if good >= self._wanted and spent > seconds:
            return True
        if good >= self._wanted and spent > seconds / 2 and settled(self._group.specs, self._group.reference, self._good):
            return True
        return good + len(self._bad) >= self._wanted and spent > 2 * seconds

    def _round(self) -> None:
        done = len(self._good) + len(self._bad)
        self._settings.report(f"{self._workload.name}: round {done + 1}")
        group = self._group
        processes = [os.getpid(), *(c.process for c in group.clients.values())]
        before, begin = usage(processes), time.monotonic()
        turns: list[Turn] = []
        for name in schedule(group.specs, group.reference, self.seconds, self._settings.turn, backwards=done % 2 == 1):
            if name in self.seconds:  # otherwise it failed in this round
                turns += self._turn(name)
        seen = disturbance(before, usage(processes), time.monotonic() - begin)
        self._disturbances.append(seen)
        (self._bad if seen.disturbed else self._good).append(turns)
        self.seconds.update({name: times([*self._good, *self._bad], name).median for name in self.seconds})

    def _turn(self, name: str) -> list[Turn]:
        """One turn; none if the subject failed, which then takes no further part."""
        seconds, group = self.seconds[name], self._group
        calls = max(1, min(_MOST_CALLS, round(self._settings.turn / max(seconds, 1e-6))))
        begin = time.monotonic()
        try:
            answer = group.clients[name].ask("time", calls=calls, warm=int(seconds < SHORT))
        except WorkerError as error:
            del self.seconds[name]
            self.rows[name] = group.drop(next(s for s in group.specs if s.name == name), error)
            return []
        turn = Turn(name, float(np.median(answer["seconds"])), begin, time.monotonic(), answer.get("back_to_back"))
        group.clients[name].pause()
        self._cpu[name] = self._cpu.get(name, 0.0) + answer["cpu"]
        self._wall[name] = self._wall.get(name, 0.0) + sum(answer["seconds"])
        return [turn]
