"""Where the Triton kernels are tested: on a GPU with what the compiler made of them, elsewhere under Triton's interpreter.

TRITON_INTERPRET must be set before triton is imported and shuts the compiler out, so the interpreter gets processes of its own:
test_interpreter.py starts them on the test_triton_*.py files beside it. Where there is a GPU these files also run as they are.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Deterministic cuBLAS, which the fixture below asks for: read when a GPU is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

HERE = Path(__file__).parent
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETING:
    from interpreting import repair  # beside this file

    repair()
    collect_ignore = ["test_interpreter.py", "test_aot.py"]
elif not torch.cuda.is_available():
    collect_ignore = [path.name for path in HERE.glob("test_triton_*.py")]  # test_interpreter.py runs them


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETING else "cuda")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Every tensor that torch leaves uninitialised holds NaN: an element that a kernel forgets cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cuda_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """bertfast.ops dispatches this device's tensors to the CUDA backend, and no CPU plan is used."""
    from bertfast import ops
    from bertfast.engine import cpu_plans

    monkeypatch.setattr(cpu_plans, "PLAN_DTYPES", ())  # plans run CPU kernels
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        monkeypatch.setitem(ops.dispatch.KERNELS, ("cpu", dtype), "bertfast.ops.cuda")
    ops.dispatch.backend_of.cache_clear()
    yield
    ops.dispatch.backend_of.cache_clear()
