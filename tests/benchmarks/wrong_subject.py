"""A subject that is wrong on purpose: transformers with an offset in one output, or another fault."""

from pathlib import Path
from typing import Any

from benchmarks.subjects.torch_based import Transformers

OFFSET = 1e-2


class Wrong(Transformers):
    def __init__(self, dtype: str, threads: int, fault: str) -> None:
        super().__init__(dtype, threads)
        self.fault = fault
        self.calls = 0

    def load(self, folder: Path, task: str, cache: Path) -> None:
        if self.fault == "dies":
            raise SystemExit(7)  # no Exception: it ends the worker process
        if self.fault == "raises":
            raise RuntimeError("it does not load")
        super().load(folder, task, cache)

    def outputs(self, result: Any) -> dict[str, Any]:
        found = super().outputs(result)
        if self.fault == "token":
            found["sequences"] = found["sequences"].copy()
            found["sequences"][0, -20] += 1
        self.calls += 1
        if self.fault == "offset" or (self.fault == "later" and self.calls > 1):
            found["pooler_output"] = found["pooler_output"].copy()
            found["pooler_output"][-1, 0] += OFFSET
        return found
