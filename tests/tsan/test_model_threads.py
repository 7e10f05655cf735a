"""The program that ThreadSanitizer watches, without it: its results are compared all the same."""

import subprocess
import sys


def test_threads_on_models() -> None:
    command = [sys.executable, "-m", "tests.tsan.model_threads", "--seconds", "4"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "results compared, seed 0: 0 differ" in ended.stdout
