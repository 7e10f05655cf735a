"""Runs each test_triton_*.py file under Triton's interpreter, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_triton_*.py"))


def test_without_a_gpu_a_named_file_says_what_to_set() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_triton_rows.py")]
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=300)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout
    assert "test_triton_rows.py needs an NVIDIA GPU; set TRITON_INTERPRET=1 where there is none" in run.stderr


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
