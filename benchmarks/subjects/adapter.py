"""The interface of an adapter, and the cache of converted models.

A worker calls convert, load and settle once, then prepare and outputs for each workload."""

import fcntl
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects import export
from benchmarks.suite import models

Arrays = dict[str, np.ndarray]


class AbsentError(Exception):
    """The subject cannot take part: the CPU or the installed version lacks something. Listed as absent, not as failed."""


class Adapter(ABC):
    """One way to compute a BERT, on `threads` threads. The worker has set OMP_NUM_THREADS as well."""

    def __init__(self, dtype: str, threads: int) -> None:
        self.dtype = dtype
        self.threads = threads

    def convert(self, folder: Path, task: str, cache: Path) -> None:  # noqa: B027  (most have nothing to convert)
        """Converts transformers' checkpoint for the library, once; keeps the result in `cache`. Not timed."""

    @abstractmethod
    def load(self, folder: Path, task: str, cache: Path) -> None:
        """Loads the model from disk."""

    def settle(self) -> None:  # noqa: B027  (most have nothing to do)
        """One-time preparation of a long-running process. Not timed; left out for cold starts and peak memory."""

    @abstractmethod
    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[..., Any]:
        """The call that is timed, with inputs in the library's own types. A generation takes a `streamer` as generate() does."""

    @abstractmethod
    def outputs(self, result: Any) -> Arrays:
        """The call's result as float32 or int64 arrays under transformers' names. Not timed."""

    def gaps(self, inputs: Arrays, new_tokens: int) -> np.ndarray:
        """Of the reference, for generation: best minus second-best score at every step, [B, new_tokens]."""
        raise NotImplementedError(f"{type(self).__name__} cannot be the reference of a generation")

    def synchronize(self) -> None:  # noqa: B027  (most return when they are done)
        """Waits until the device has finished. `asynchronous` says whether calls return earlier."""

    asynchronous = False


def once(target: Path, write: Callable[[Path], None]) -> Path:
    """`target`, made by `write` if it does not exist. `write` fills a temporary path, so that an interrupted run leaves no partial file;
    a lock lets other subjects and runs wait for it."""
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
    """The cache folder of what these packages' versions and the code in `source` (a module's __file__), export.py and models.py made. A
    change to any of them is another folder, so nothing outdated is timed."""
    made_by = "-".join(f"{package}-{version(package)}" for package in packages)
    return cache / f"{made_by}-{models.recipe(source, export.__file__, models.__file__)}"


def name_of(folder: Path) -> str:
    """The model's name, for the files converted from its folder."""
    return folder.name if folder.parent.name == "models" else "minilm"


def attended(inputs: Arrays) -> list[list[int]]:
    """The real tokens of each row as lists."""
    return [row[m.astype(bool)].tolist() for row, m in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
