"""What setup.py says where the build cannot start, and what it packs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sources(tmp_path) -> Path:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("bertfast", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def setup(sources: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=sources, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["build", "build_ext", "bdist_wheel"])
def test_a_missing_compiler_is_the_only_line(sources, command):
    done = setup(sources, command, PATH=str(sources), CXX="")
    assert done.returncode == 1
    message = "bertfast needs a C++17 compiler to build its CPU kernels: install g++ or clang++, or set CXX"
    assert (done.stdout + done.stderr).strip().splitlines() == [message]


def test_the_packages_are_complete_and_no_warning_says_otherwise(sources):
    done = setup(sources, "-q", "build_py", "--build-lib", "out")
    assert done.returncode == 0, done.stderr
    assert "absent from the" not in done.stdout + done.stderr
    packed = {str(path.relative_to(sources / "out")) for path in (sources / "out").rglob("*") if path.is_file()}
    for name in ("bertfast/data/sentences.txt", "bertfast/py.typed", "bertfast/_C.pyi", "bertfast/checkpoints/pickles.py"):
        assert name in packed
