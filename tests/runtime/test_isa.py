"""Instruction sets: how the kernel table is chosen, errors for a wrong choice, and that no inline function leaks between tables."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertfast import _C

ROOT = Path(__file__).parents[2]


def isa_with(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "BERTFAST_ISA"}
    if value is not None:
        environment["BERTFAST_ISA"] = value
    return subprocess.run(
        [sys.executable, "-c", "from bertfast import _C; print(_C.isa())"], capture_output=True, text=True, env=environment
    )


def test_the_widest_runnable_table_is_the_default():
    widest = next(name for name, built, here in _C.isas() if built and here)
    assert isa_with(None).stdout.split() == [widest]


@pytest.mark.parametrize("name", [name for name, built, here in _C.isas() if built and here])
def test_the_environment_overrides(name):
    assert isa_with(name).stdout.split() == [name]


def test_an_unknown_name_is_refused():
    done = isa_with("sse9")
    assert done.returncode != 0
    assert "ValueError: BERTFAST_ISA='sse9': no such instruction set; expected one of: " in done.stderr
    with pytest.raises(ValueError, match=r"use_isa='sse9': no such instruction set; expected one of: .*generic"):
        _C.use_isa("sse9")


def test_an_unavailable_instruction_set_raises():
    for name, built, here in _C.isas():
        if not built:
            with pytest.raises(ValueError, match=f"'{name}': this build lacks it"):
                _C.use_isa(name)
        elif not here:
            with pytest.raises(ValueError, match=f"'{name}': this CPU lacks it"):
                _C.use_isa(name)
        else:
            before = _C.isa()
            _C.use_isa(name)
            assert _C.isa() == name
            _C.use_isa(before)


def tables() -> list[tuple[str, str]]:
    """(name, compiler flags) of every table that CMake builds for this machine."""
    found = re.findall(r"^ *add_isa\((\w+) ?([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    built = {name for name, in_build, _ in _C.isas() if in_build}
    assert built <= {name for name, _ in found}
    return [(name, flags) for name, flags in found if name in built]


@pytest.mark.parametrize(("name", "flags"), tables())
def test_each_table_exports_one_symbol(name, flags, tmp_path):
    """The linker could choose an inline function compiled for AVX-512 for all callers."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    nm = shutil.which("nm")
    assert compiler, "tests need the C++ compiler that built bertfast"
    assert nm, "tests need nm, which comes with the compiler's binutils"
    target = tmp_path / "table.o"
    source = ROOT / "csrc" / "cpu" / "kernels_isa.cpp"
    command = [compiler, "-std=c++17", "-O0", "-fPIC", "-w", f"-DBERTFAST_ISA_NAME={name}", *flags.split(), "-c", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    lines = subprocess.run([nm, "--extern-only", "--defined-only", str(target)], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in lines.splitlines()]
    assert symbols == [f"_ZN8bertfast3cpu{len(name)}{name}5tableE"]
