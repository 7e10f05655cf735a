"""Runs each test_triton_*.py file under Triton's interpreter, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_triton_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_under_the_interpreter(name: str) -> None:
    pytest.importorskip("triton", reason="triton is published for Linux only")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = run.stdout.strip().splitlines()[-1]
    assert re.search(r"[1-9]\d* passed", summary), run.stdout
    assert "skipped" not in summary, run.stdout
    print(f"{name}: {summary.strip('= ')}")
