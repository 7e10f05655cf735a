"""The Triton kernels are tested compiled where there is a GPU, and under Triton's interpreter everywhere.

TRITON_INTERPRET is read when triton is imported and disables the compiler, so test_interpreter.py runs each test_triton_*.py file in a
process of its own. Where there is a GPU, pytest also collects these files itself.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# For the fixture below, which asks for deterministic cuBLAS; read when a GPU is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

HERE = Path(__file__).parent
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETING:
    from interpreting import repair  # beside this file

    repair()
    collect_ignore = ["test_interpreter.py", "test_aot.py"]
elif not torch.cuda.is_available():
    collect_ignore = [path.name for path in HERE.glob("test_triton_*.py")]  # test_interpreter.py runs them

    def pytest_configure(config: pytest.Config) -> None:
        for named in config.args:  # collect_ignore does not hold for a file that the command line names
            if Path(named.partition("::")[0]).name in collect_ignore:
                raise pytest.UsageError(f"{named} needs an NVIDIA GPU; set TRITON_INTERPRET=1 where there is none")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETING else "cuda")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that torch leaves uninitialised holds NaN, so that an element that no kernel writes fails the test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cuda_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """bertfast.ops dispatches tensors of this device to the CUDA backend, and no CPU plan is used."""
    from bertfast import ops
    from bertfast.engine import cpu_plans

    monkeypatch.setattr(cpu_plans, "PLAN_DTYPES", ())  # plans run CPU kernels
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        monkeypatch.setitem(ops.dispatch.KERNELS, ("cpu", dtype), "bertfast.ops.cuda")
    ops.dispatch.backend_of.cache_clear()
    yield
    ops.dispatch.backend_of.cache_clear()
