"""Measures the machine's peak arithmetic and memory bandwidth with the assembly loops of peaks.c, compiled at run time."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("peaks.c")
_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}
_BYTES = 128 << 20  # read per thread; larger than any cache


@dataclass(frozen=True)
class Peaks:
    """Operations per second by dtype (a multiply-add counts 2; 0 where the CPU lacks the instruction), and bytes read per second."""

    float32: float
    bfloat16: float
    int8: float
    bandwidth: float

    def rate(self, dtype: str) -> float:
        """Peak operations per second in this dtype; the float32 peak where the CPU has no instructions for it."""
        return max(getattr(self, dtype, 0.0), self.float32)

    def best(self, other: "Peaks") -> "Peaks":
        """The maximum of each: a disturbed measurement only lowers a peak."""
        return Peaks(*(max(a, b) for a, b in zip(astuple(self), astuple(other), strict=True)))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class NoCompilerError(RuntimeError):
    """No working C compiler: the peaks cannot be measured; the rest of the suite can run."""


class PeakMeter:
    """Measures with a fixed number of threads. Compiles peaks.c once per cache folder, in about a second."""

    def __init__(self, cache: Path, threads: int) -> None:
        self._library = ctypes.CDLL(str(_build(cache)))
        self._library.peak_rate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
        self._library.peak_rate.restype = ctypes.c_double
        self._library.read_rate.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_double]
        self._library.read_rate.restype = ctypes.c_double
        self._threads = threads

    def rate(self, dtype: str = "float32", seconds: float = 0.05) -> float:
        return float(self._library.peak_rate(_KINDS[dtype], self._threads, seconds))

    def bandwidth(self, seconds: float = 0.1) -> float:
        return float(self._library.read_rate(self._threads, _BYTES, seconds))

    def measure(self, tries: int = 3) -> Peaks:
        """The best of `tries` measurements of each peak."""
        best = {dtype: max(self.rate(dtype) for _ in range(tries)) for dtype in _KINDS}
        return Peaks(**best, bandwidth=max(self.bandwidth() for _ in range(tries)))


def _build(cache: Path) -> Path:
    source = _SOURCE.read_bytes()
    library = cache / f"peaks-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise NoCompilerError("no C compiler (cc, gcc or clang; CC names another): the machine's peaks are left out")
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [*compiler.split(), "-O2", "-shared", "-fPIC", "-pthread", str(_SOURCE), "-o", str(unfinished)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoCompilerError(f"the C compiler {compiler!r} does not start ({error}): the machine's peaks are left out") from None
    if done.returncode:
        raise NoCompilerError(f"{' '.join(command)} failed: the machine's peaks are left out\n{done.stderr.strip()}")
    unfinished.replace(library)  # another run may be building the same file
    return library
