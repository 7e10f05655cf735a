"""What a call does when the C++ host gets no memory. tests/native/check_allocations.cpp has the same without Python, for leaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library, which needs Linux")
def test_public_calls_while_allocations_fail(tmp_path: Path) -> None:
    library = tmp_path / "failing_allocations.so"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", HERE / "failing_allocations.cpp", "-o", library], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.allocation_calls"],
        capture_output=True, text=True, timeout=900, cwd=HERE.parents[1], env={**os.environ, "LD_PRELOAD": str(library)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAULT")] == []
    counts = [int(line.split()[-2]) for line in lines]
    assert len(counts) > 20
    assert min(counts) > 0, lines
