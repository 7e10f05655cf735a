"""What an adapter does. It lives in a worker process and is used in this order: convert, load, settle, then prepare and outputs for each
workload."""

import fcntl
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.subjects import export

Arrays = dict[str, np.ndarray]


class AbsentError(Exception):
    """This subject cannot take part here, and that is no failure: the CPU, or this version of the library, lacks what it takes."""


class Adapter(ABC):
    """One way to compute a BERT. `threads` is how many it may use; the worker has set OMP_NUM_THREADS as well."""

    def __init__(self, dtype: str, threads: int) -> None:
        self.dtype = dtype
        self.threads = threads

    def convert(self, folder: Path, task: str, cache: Path) -> None:  # noqa: B027  (most have nothing to convert)
        """Turns transformers' checkpoint into what the library loads, once; kept in `cache`, and not timed."""

    @abstractmethod
    def load(self, folder: Path, task: str, cache: Path) -> None:
        """From the disk to ready for a first call."""

    def settle(self) -> None:  # noqa: B027  (most have nothing to do)
        """What one does once in a process that is to serve for long. Not timed, and not done for cold starts and peaks of memory."""

    @abstractmethod
    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[..., Any]:
        """The call that is timed, its inputs already in the library's own types. Who generates takes a `streamer`, as generate() does."""

    @abstractmethod
    def outputs(self, result: Any) -> Arrays:
        """What that call returned, as float32 (or int64) arrays by transformers' names. Not timed."""


def once(target: Path, write: Callable[[Path], None]) -> Path:
    """`target`, written by `write` to a path beside it first, so that a run that is cut off leaves nothing half done. Two subjects that
    want the same file at once, or two runs, wait for each other."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                unfinished = target.with_name(f"unfinished-{target.name}")
                write(unfinished)
                unfinished.rename(target)
    return target


def converted(cache: Path, source: str, *packages: str) -> Path:
    """Where files lie that these packages made by the lines of `source` (a module's __file__), of weights by those of models.py: other
    versions, or a line changed, are another folder, so that nothing is timed that today's set-up would not have made."""
    made_by = "-".join(f"{package}-{version(package)}" for package in packages)
    return cache / f"{made_by}-{models.recipe(source, export.__file__, models.__file__)}"


def name_of(folder: Path) -> str:
    """Of a model's folder, for what is converted of it."""
    return folder.name if folder.parent.name == "models" else "minilm"


def attended(inputs: Arrays) -> list[list[int]]:
    """The real tokens of each row, for libraries that take lists."""
    return [row[m.astype(bool)].tolist() for row, m in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
