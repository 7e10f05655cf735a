"""What a long run may not pile up: memory, threads, open files, models, tensors; and the rule that tells growth from noise.

The rule: the first WARM_UP of the time is left out. Over the rest, the trend is the median slope between all pairs of samples (Theil and
Sen), so a few odd samples do not count. Growth is that slope times the length of the rest; for each quantity it must stay within BOUNDS:
so much, or so large a part of the median, whichever is more. Before a sample garbage is collected and free memory returned to the system.
"""

import ctypes
import gc
import itertools
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from transformers import PreTrainedModel

WARM_UP = 0.4  # of the time
FEWEST = 8  # samples after the warm-up
BOUNDS = {"memory": (16.0, 0.05), "threads": (4.0, 0.0), "files": (2.0, 0.0), "models": (2.0, 0.0), "tensors": (60.0, 0.1)}


@dataclass(frozen=True)
class Sample:
    """seconds since the start; memory: anonymous resident memory in MB; files: open descriptors; models, tensors: living Python objects."""

    seconds: float
    memory: float
    threads: int
    files: int
    models: int
    tensors: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:8.0f} s  {self.memory:8.1f} MB  {self.threads:3d} threads  {self.files:3d} files  "
            f"{self.models:3d} models  {self.tensors:5d} tensors"
        )


def sample(begin: float) -> Sample:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # noqa: SIM115 (a dict over its lines, closed when freed)
    kinds = [type(each) for each in gc.get_objects()]
    return Sample(
        seconds=time.monotonic() - begin,
        memory=int(status["RssAnon"].split()[0]) / 1024,
        threads=len(os.listdir("/proc/self/task")),
        files=len(os.listdir("/proc/self/fd")),
        models=sum(issubclass(kind, PreTrainedModel) for kind in kinds),
        tensors=sum(issubclass(kind, torch.Tensor) for kind in kinds),
    )


def growing(samples: Sequence[Sample]) -> list[str]:
    """What grows beyond its bound, in words. ValueError where there are too few samples to tell."""
    first = samples[0].seconds + WARM_UP * (samples[-1].seconds - samples[0].seconds)
    rest = [each for each in samples if each.seconds >= first]
    if len(rest) < FEWEST:
        raise ValueError(f"{len(rest)} samples after the warm-up, expected at least {FEWEST}: sample more often, or run longer")
    length, found = rest[-1].seconds - rest[0].seconds, []
    for field in fields(Sample)[1:]:
        values = [float(getattr(each, field.name)) for each in rest]
        pairs = itertools.combinations(zip([each.seconds for each in rest], values, strict=True), 2)
        growth = statistics.median((b - a) / (t - s) for (s, a), (t, b) in pairs if t > s) * length
        least, part = BOUNDS[field.name]
        bound = max(least, part * statistics.median(values))
        if growth > bound:
            found.append(
                f"{field.name} grow by {growth:.1f} in {length:.0f} s, from {values[0]:.1f} to {values[-1]:.1f}; at most {bound:.1f}"
            )
    return found


def thread_names() -> str:
    """Python's threads, for a report."""
    return ", ".join(sorted(thread.name for thread in threading.enumerate()))
