"""A C++ module built from other sources than the Python beside it does not get as far as a call."""

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
    """A source checkout with the module of this one in it."""
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
    assert f"was built from other sources than those beside this Python: {found}. " in last
    assert last.endswith(f"Build it again: pip install -e {folder}")


def test_the_sources_it_was_built_from_are_accepted(checkout):
    result = import_in(checkout)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["csrc/bindings/bind_ops.cpp", "csrc/plan/plan.h", "csrc/cpu/int8_linear.inl.h"])
def test_a_changed_file_is_named(checkout, name):
    with (checkout / name).open("a") as file:
        file.write("\n")
    assert_refused(import_in(checkout), checkout, f"{name} changed since")


def test_files_that_are_gone_have_changed(checkout):
    for name in ("csrc/bindings/bind_plan.cpp", "csrc/check.h"):
        (checkout / name).unlink()
    assert_refused(import_in(checkout), checkout, "csrc/bindings/bind_plan.cpp and 1 more changed since")


def test_a_module_that_does_not_say_is_too_old(checkout):
    (checkout / "bertfast" / Path(_C.__file__).name).unlink()
    (checkout / "bertfast" / "_C.py").touch()
    assert_refused(import_in(checkout), checkout, "it is older than this check")


@pytest.mark.parametrize("gone", ["csrc", "CMakeLists.txt"])
def test_an_installed_package_has_nothing_to_be_compared_with(checkout, gone):
    """Nor with what another package put beside it: some install a folder csrc."""
    (checkout / "csrc" / "bindings" / "module.cpp").write_text("another package's")
    (checkout / gone).rename(checkout / "elsewhere")
    result = import_in(checkout)
    assert result.returncode == 0, result.stderr


def test_every_source_is_among_those_compared():
    """Were one left out, a change in it would go unseen."""
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file() and path.name[0] != "."}
    assert set(_C.BUILT_FROM) == sources
