"""What the suite runs on, and who else is running on it."""

import hashlib
import os
import platform
import resource
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

# In /proc/cpuinfo's words, strongest first; what decides which kernels a library picks.
_ISA = (
    ("AMX", "amx_tile"),
    ("AVX-512 BF16", "avx512_bf16"),
    ("AVX-512 VNNI", "avx512_vnni"),
    ("AVX-512", "avx512f"),
    ("AVX-VNNI", "avx_vnni"),
    ("AVX2", "avx2"),
    ("NEON", "asimd"),
)
PACKAGES = (
    "bertfast",
    "torch",
    "transformers",
    "sentence-transformers",
    "onnxruntime",
    "onnx",
    "openvino",
    "nncf",
    "ctranslate2",
    "fasttextembed",
    "tokenizers",
    "numpy",
)


@dataclass(frozen=True)
class Machine:
    """A class of machines: two with equal `key` may be compared in one column, others only side by side."""

    vendor: str
    family: str
    model_name: str
    isa: tuple[str, ...]
    cores: int
    memory_gib: int
    cache_mib: float  # the last level, as one core sees it; 0 if unknown
    system: str

    @property
    def key(self) -> str:
        isa = self.isa[0].lower().replace(" ", "-") if self.isa else "generic"
        return f"{self.vendor.lower()}-{self.family}-{isa}-{self.cores}c"

    @property
    def title(self) -> str:
        return (
            f"{self.model_name} ({self.vendor} family {self.family}), {self.cores} cores, {', '.join(self.isa) or 'no vector extensions'}"
        )

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "isa": list(self.isa), "key": self.key, "title": self.title}


def this_machine() -> Machine:
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    vendor = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(fields.get("vendor_id", ""), fields.get("vendor_id", platform.machine()))
    return Machine(
        vendor=vendor,
        family=fields.get("cpu family", fields.get("CPU part", "0")),
        model_name=fields.get("model name", platform.processor() or platform.machine()),
        isa=tuple(name for name, flag in _ISA if flag in flags),
        cores=len(_cores()),
        memory_gib=_memory_gib(),
        cache_mib=_last_level_cache(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    )


def _memory_gib() -> int:
    """0 where the system does not say."""
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not all(name in os.sysconf_names for name in names):
        return 0
    pages, size = (os.sysconf(name) for name in names)
    return round(pages * size / 2**30)


def _cores() -> set[int]:
    """Those that this process may use; all of them where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _last_level_cache() -> float:
    sizes = [_read(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").strip() for level in range(8)]
    units = {"K": 1 / 1024, "M": 1.0}
    return max((float(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0.0)


def versions() -> dict[str, str]:
    """Of every library that takes part and is installed."""
    installed = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    return {package: installed[package] for package in PACKAGES if package in installed}


@cache
def build() -> str:
    """Of bertfast itself, whose version stands still while it is being worked on: eight digits that a change to its sources, or another
    build of its C++, changes. Empty where it is not installed."""
    spec = find_spec("bertfast")
    if spec is None or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent
    files = sorted(file for pattern in ("*.py", "*.so", "*.pyd") for file in folder.rglob(pattern))
    return hashlib.sha256(b"".join(str(file.relative_to(folder)).encode() + file.read_bytes() for file in files)).hexdigest()[:8]


@dataclass(frozen=True)
class Usage:
    """CPU seconds since the machine started, on the cores that we may use: ours, everybody's, and what the hypervisor kept."""

    ours: float
    busy: float
    stolen: float


@dataclass(frozen=True)
class Disturbance:
    """Shares of the machine's time, between two looks, that others used or the hypervisor took away."""

    others: float
    stolen: float

    # The kernel counts in ticks of 10 ms, so a share below a few hundredths of a second-long round is not there to be seen.
    LIMIT = 0.05

    @property
    def disturbed(self) -> bool:
        return self.others + self.stolen > self.LIMIT


def usage(processes: Iterable[int], children: bool = False) -> Usage:
    """`processes`: the ids of all that are ours and still running; `children`: count those of this process that have ended as well. Without
    /proc everything is 0: nothing is seen, nothing claimed."""
    tick = os.sysconf("SC_CLK_TCK")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = ended.ru_utime + ended.ru_stime if children else 0.0
    for process in processes:
        stat = _read(f"/proc/{process}/stat")
        if stat:
            user, system = stat.rpartition(")")[2].split()[11:13]  # the name before it may hold anything
            ours += (int(user) + int(system)) / tick
    cores = {f"cpu{core}" for core in _cores()}
    busy = stolen = 0.0
    for line in _read("/proc/stat").splitlines():
        name, *counts = line.split()
        if name in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(count) / tick for count in counts[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return Usage(ours, busy, stolen)


def disturbance(before: Usage, after: Usage, seconds: float) -> Disturbance:
    """What happened in `seconds` of wall time between two looks at the same processes."""
    capacity = seconds * len(_cores())
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return Disturbance(max(0.0, others / capacity), max(0.0, (after.stolen - before.stolen) / capacity))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
