"""The soak can fail: on growth of each kind, on a wrong result, and on a job that hangs."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.soak.__main__ import run
from tests.soak.growth import Sample, growing

FLAT = [Sample(seconds, 300.0 + seconds % 3, 3, 6, 40, 1500 + seconds % 7) for seconds in range(40)]


def test_noise_is_no_growth() -> None:
    assert growing(FLAT) == []
    odd = [replace(each, memory=900.0, tensors=9000) if i % 9 == 0 else each for i, each in enumerate(FLAT)]
    assert growing(odd) == []


def test_a_warm_up_is_no_growth() -> None:
    assert growing([replace(each, memory=100.0 + 20 * min(each.seconds, 15)) for each in FLAT]) == []


@pytest.mark.parametrize(("name", "slope"), [("memory", 1.0), ("threads", 2), ("files", 1), ("models", 1), ("tensors", 20)])
def test_growth_is_reported(name: str, slope: float) -> None:
    samples = [replace(each, **{name: getattr(each, name) + slope * i}) for i, each in enumerate(FLAT)]
    (found,) = growing(samples)
    assert found.startswith(f"{name} grow by")


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="samples after the warm-up, expected at least"):
        growing(FLAT[:9])


def test_leaks_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[Any] = []
    done = threading.Event()

    def leak(models: object, rng: object) -> None:
        kept.extend(torch.zeros(2) for _ in range(50))
        kept.append(bytearray(b"x" * (8 << 20)))
        kept.append(open(os.devnull))  # noqa: SIM115 (a leak)
        threading.Thread(target=done.wait).start()

    try:
        assert run(0.0, 0, 0.0, {leak: 1}) == 1
    finally:
        done.set()
    out = capsys.readouterr().out
    assert all(f"{what} grow by" in out for what in ("tensors", "memory", "files", "threads"))


def wrong(models: object, rng: object) -> None:
    raise AssertionError("2 is not 3")


def test_a_wrong_result_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(0.0, 5, 0.0, {wrong: 1}) == 1
    assert "job 0 of seed 5, wrong:" in (out := capsys.readouterr().out)
    assert "2 is not 3" in out


HANG = """
import threading
from tests.soak.__main__ import run
def hang(models, rng):
    threading.Event().wait()
run(60.0, 0, 1.0, {hang: 1}, patience=1.0)
"""


def test_a_job_that_hangs_ends_the_run_and_says_where() -> None:
    ended = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "in hang" in ended.stderr
