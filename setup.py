"""Builds bertfast._C with CMake; everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        _require_compiler()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            _cmake(),
            f"-S{ROOT}",
            f"-B{build}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        ninja = shutil.which("ninja")
        if ninja and not (build / "Makefile").exists():  # the folder of an earlier build names the ninja of that one, which pip has removed
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.run(configure, check=True)
        subprocess.run([_cmake(), "--build", build, "--parallel", str(os.cpu_count() or 1)], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


def _require_compiler() -> None:
    if not any(map(shutil.which, [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"])):
        sys.exit("bertfast needs a C++17 compiler to build its CPU kernels: install g++ or clang++, or set CXX")


def _cmake() -> str:
    found = shutil.which("cmake")
    if found is None:  # the package from PyPI, installed where its script is not on PATH
        try:
            from cmake import CMAKE_BIN_DIR
        except ImportError:
            sys.exit("bertfast needs CMake 3.18 or newer to build its CPU kernels: pip install cmake")
        found = str(Path(CMAKE_BIN_DIR) / "cmake")
    return found


def _packages() -> list[str]:
    inside = [".".join(p.relative_to(ROOT).parts) for p in sorted((ROOT / "bertfast").glob("**/")) if any(p.glob("*.py"))]
    return [*inside, "bertfast.data", *(["bertfast.kernels"] if (ROOT / "kernels" / "fused").is_dir() else [])]


if {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"} & set(sys.argv):
    _require_compiler()  # before setuptools prints what it copies

setup(
    packages=_packages(),
    # kernels/ itself is no package: at the repository root it would shadow the `kernels` that transformers looks for.
    package_dir={"bertfast.kernels": "kernels/fused"},
    package_data={"bertfast": ["py.typed", "*.pyi"], "bertfast.data": ["*"]},
    ext_modules=[Extension("bertfast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
