"""CPU time that other processes or the hypervisor take from a measurement."""

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.machine.proc import cores, read


@dataclass(frozen=True)
class Usage:
    """CPU seconds since boot on the cores that this process may use: of our processes, of all processes, and stolen by the hypervisor."""

    ours: float
    busy: float
    stolen: float


@dataclass(frozen=True)
class Disturbance:
    """Shares of the cores' time between two readings: used by other processes, and stolen by the hypervisor."""

    others: float
    stolen: float

    # The kernel counts in ticks of 10 ms, so a few hundredths of a round of one second cannot be seen.
    LIMIT = 0.05

    @property
    def disturbed(self) -> bool:
        return self.others + self.stolen > self.LIMIT


def usage(processes: Iterable[int], children: bool = False) -> Usage:
    """`processes`: the ids of our running processes. `children`: add the CPU time of this process's ended children. All zeros without
    /proc."""
    tick = os.sysconf("SC_CLK_TCK")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = ended.ru_utime + ended.ru_stime if children else 0.0
    for process in processes:
        stat = read(f"/proc/{process}/stat")
        if stat:
            user, system = stat.rpartition(")")[2].split()[11:13]  # the name before it may hold anything
            ours += (int(user) + int(system)) / tick
    counted = {f"cpu{core}" for core in cores()}
    busy = stolen = 0.0
    for line in read("/proc/stat").splitlines():
        name, *counts = line.split()
        if name in counted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(count) / tick for count in counts[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return Usage(ours, busy, stolen)


def disturbance(before: Usage, after: Usage, seconds: float) -> Disturbance:
    """The disturbance in `seconds` of wall time between two readings of the same processes."""
    capacity = seconds * len(cores())
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return Disturbance(max(0.0, others / capacity), max(0.0, (after.stolen - before.stolen) / capacity))
