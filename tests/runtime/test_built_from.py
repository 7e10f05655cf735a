"""bertfast.runtime.native refuses a C++ module that was built from other sources than those in the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertfast.runtime.native import _C

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of this source checkout, with its C++ module."""
    (tmp_path / "bertfast" / "runtime").mkdir(parents=True)
    for path in (ROOT / "bertfast" / "__init__.py", Path(_C.__file__)):
        shutil.copy(path, tmp_path / "bertfast")
    for path in (ROOT / "bertfast" / "runtime").glob("*.py"):
        shutil.copy(path, tmp_path / "bertfast" / "runtime")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    return tmp_path


def import_in(folder: Path, module: str = "bertfast.runtime.native") -> subprocess.CompletedProcess[str]:
    code = f"import {module} as imported; print(imported.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment, timeout=60)
    assert result.returncode in (0, 1), result  # no crash
    assert result.returncode == 1 or Path(result.stdout.strip()).is_relative_to(folder)
    return result


def assert_refused(result: subprocess.CompletedProcess[str], folder: Path, found: str) -> None:
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: bertfast's C++ module (")
    assert f"was built from other sources than those in this checkout: {found}. " in last
    assert last.endswith(f"Build it again: pip install -e {folder}")


def test_unchanged_sources_are_accepted(checkout):
    result = import_in(checkout)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["csrc/bindings/bind_ops.cpp", "csrc/plan/plan.h", "csrc/cpu/int8_linear.inl.h"])
def test_a_changed_file_is_named(checkout, name):
    with (checkout / name).open("a") as file:
        file.write("\n")
    assert_refused(import_in(checkout), checkout, f"{name} changed since")


def test_missing_files_count_as_changed(checkout):
    for name in ("csrc/bindings/bind_plan.cpp", "csrc/check.h"):
        (checkout / name).unlink()
    assert_refused(import_in(checkout), checkout, "csrc/bindings/bind_plan.cpp and 1 more changed since")


def test_a_module_without_hashes_is_too_old(checkout):
    (checkout / "bertfast" / Path(_C.__file__).name).unlink()
    (checkout / "bertfast" / "_C.py").touch()
    assert_refused(import_in(checkout), checkout, "it is older than this check")


@pytest.mark.parametrize("gone", ["csrc", "CMakeLists.txt"])
def test_an_installed_package_is_not_compared(checkout, gone):
    """Not with another package's folder csrc in site-packages either."""
    (checkout / "csrc" / "bindings" / "module.cpp").write_text("another package's")
    (checkout / gone).rename(checkout / "elsewhere")
    result = import_in(checkout)
    assert result.returncode == 0, result.stderr


def test_every_source_file_has_a_hash():
    """A change in a file without a hash would go unnoticed."""
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file() and path.name[0] != "."}
    assert set(_C.BUILT_FROM) == sources
