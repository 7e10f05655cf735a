"""What the suite knows of a subject without importing its library."""

import os
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec

HEAD_TASKS = ("encoder", "pretraining", "lm", "tokens", "qa")


@dataclass(frozen=True)
class Spec:
    """`factory` is module:Class of the adapter, `options` its arguments. `modules` must be importable, or the subject is listed as
    absent. `left_out`: why the subject is not in the quick selection. `environment`: the variable that names another environment's Python,
    for libraries that cannot be installed beside the others."""

    name: str
    factory: str
    dtype: str
    modules: tuple[str, ...]
    setup: str
    tasks: tuple[str, ...] = HEAD_TASKS
    kinds: tuple[str, ...] = ("call", "cold", "memory", "steps")
    options: tuple[tuple[str, str], ...] = ()
    left_out: str = ""
    ours: bool = False
    environment: str = ""
    twin: str = ""  # the subject that this one repeats in a second process
    arithmetic: str = ""  # the dtype it computes in, where that is not `dtype`, which decides the check

    @property
    def rank(self) -> str:
        """Subjects of one rank compete."""
        return self.arithmetic or self.dtype

    @property
    def python(self) -> str:
        """The interpreter that its worker runs in."""
        return os.environ.get(self.environment) or sys.executable

    @property
    def missing(self) -> str | None:
        """What is not installed, or None."""
        if self.environment:
            named = os.environ.get(self.environment)
            if not named:
                return f"{self.environment} is not set; benchmarks/README.md says how to make that environment"
            return None if os.access(named, os.X_OK) else f"{self.environment}={named}: not an executable"
        absent = [module for module in self.modules if find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def matches(self, pattern: str) -> bool:
        """onnxruntime matches onnxruntime and onnxruntime-int8; transformers matches all that begin with transformers-."""
        return fnmatchcase(self.name, pattern) or self.name.startswith(f"{pattern}-")


def options(**named: str) -> tuple[tuple[str, str], ...]:
    """Spec.options, which must be hashable."""
    return tuple(named.items())
