"""What Linux says about itself; other systems answer with nothing, or with all cores."""

import os
from pathlib import Path


def read(path: str) -> str:
    """The text of a file under /proc or /sys; empty where it cannot be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def cores() -> set[int]:
    """The cores that this process may use; all of them where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
