"""Limits of processor time and of memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def bounded(seconds: float, megabytes: float) -> Iterator[None]:
    """Within: AssertionError at the end where more was used. Counts child processes that have ended."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    memory, used = _resident("VmRSS"), _seconds()
    try:
        yield
    finally:
        used, grown = _seconds() - used, _resident("VmHWM") - memory
        assert used <= seconds, f"took {used:.1f} s of processor time, at most {seconds:.1f}"
        assert grown <= megabytes, f"took {grown:.0f} MB, at most {megabytes:.0f}"


def _seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _resident(what: str) -> float:
    """Megabytes: VmRSS now, VmHWM at the peak."""
    status = Path("/proc/self/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith(what)), "0 0")
    return int(line.split()[1]) / 1024
