"""The kills can fail: a command that leaves its user in the lurch is reported. Each runs in a process without threads, as it forks."""

import signal
import subprocess
import sys

import pytest

from tests.kills.commands import Ended
from tests.kills.faults import Fault

RUN = """
import sys
from tests.kills.__main__ import run
import torch
torch.set_num_threads(1)
{change}
sys.exit(run(range({times}), {seed}, "{command}", fresh=0))
"""
KILLED_IN_THE_MIDDLE = """
import signal
from tests.kills import trial
from tests.kills.faults import Fault
trial.draw = lambda rng, command, run, disks: Fault(signal.SIGKILL, operation=2 * run.operations // 3)
"""
CLAIMS_ARE_KEPT = """
from bertfast.convert import convert
sys.modules[convert.__module__]._locked = lambda stream, claim, may_be_left: not may_be_left
"""
ROWS_ARE_LOST = """
from bertfast.cli import run_file
run_file.read = lambda output: None
"""


def run(change: str, times: int, seed: int, command: str) -> tuple[int, str]:
    code = RUN.format(change=change, times=times, seed=seed, command=command)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_trials_of_every_command() -> None:
    code, out = run("", 6, 3, "")
    assert code == 0, out
    assert "6 trials in" in out


@pytest.mark.parametrize(
    ("change", "command", "said"),
    [(CLAIMS_ARE_KEPT, "convert", "not an empty folder"), (ROWS_ARE_LOST, "embed to .npy", "says what they were computed from")],
)
def test_what_blocks_the_next_run_is_reported(change: str, command: str, said: str) -> None:
    code, out = run(KILLED_IN_THE_MIDDLE + change, 3, 3, command)
    assert code == 1, out
    assert said in out


@pytest.mark.parametrize(
    ("fault", "ended", "expected"),
    [
        (Fault(signal.SIGKILL, seconds=1.0), Ended(-9, ""), None),
        (Fault(signal.SIGKILL, seconds=1.0), Ended(0, ""), None),
        (Fault(signal.SIGKILL, seconds=1.0), Ended(1, ""), "exit code 1, expected 0 or -9"),
        (Fault(signal.SIGINT, operation=3), Ended(130, "bertfast: error: interrupted"), None),
        (Fault(signal.SIGINT, operation=3), Ended(130, "Traceback (most recent call last):"), "a traceback"),
        (Fault(file_size=10), Ended(1, "bertfast: error: [Errno 27] File too large"), None),
        (Fault(dev_full=True), Ended(-6, ""), "exit code -6, expected 0 or 1"),
    ],
)
def test_how_a_command_may_end(fault: Fault, ended: Ended, expected: str | None) -> None:
    assert fault.why_unexpected(ended) == expected
