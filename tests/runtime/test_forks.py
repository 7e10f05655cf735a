"""Public calls in a forked child of a process in which torch and bertfast have used their threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_module(*arguments: str) -> str:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_six_forks_deep_while_other_threads_call_and_replace_weights() -> None:
    assert run_module("tests.runtime.nested_forks", "6", "2") == ""


@pytest.mark.parametrize("which", ["heads", "others"])
def test_public_calls_after_a_fork(which: str, small_dir: Path) -> None:
    count, *wrong = run_module("tests.runtime.fork_calls", which, str(small_dir)).splitlines()
    assert int(count.split()[0]) > 30
    assert not wrong
