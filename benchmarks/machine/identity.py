"""What the suite runs on: the machine's class, the versions of the libraries, the build of bertfast."""

import hashlib
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine.proc import cores, read

# (name, flag in /proc/cpuinfo), strongest first: libraries choose their kernels by these.
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
    """A class of machines. Results are comparable only where `key` is equal."""

    vendor: str
    family: str
    model_name: str
    isa: tuple[str, ...]
    cores: int
    memory_gib: int
    cache_mib: float  # last-level cache that one core sees; 0 if unknown
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
    for line in read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    vendor = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(fields.get("vendor_id", ""), fields.get("vendor_id", platform.machine()))
    return Machine(
        vendor=vendor,
        family=fields.get("cpu family", fields.get("CPU part", "0")),
        model_name=fields.get("model name", platform.processor() or platform.machine()),
        isa=tuple(name for name, flag in _ISA if flag in flags),
        cores=len(cores()),
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


def _last_level_cache() -> float:
    sizes = [read(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").strip() for level in range(8)]
    units = {"K": 1 / 1024, "M": 1.0}
    return max((float(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0.0)


def versions() -> dict[str, str]:
    """The versions of the installed libraries that take part."""
    installed = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    return {package: installed[package] for package in PACKAGES if package in installed}


@cache
def build() -> str:
    """Eight hex digits of a hash of bertfast's sources and compiled libraries; empty where it is not installed. The version alone does not
    change during development."""
    spec = find_spec("bertfast")
    if spec is None or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent
    files = sorted(file for pattern in ("*.py", "*.so", "*.pyd") for file in folder.rglob(pattern))
    return hashlib.sha256(b"".join(str(file.relative_to(folder)).encode() + file.read_bytes() for file in files)).hexdigest()[:8]
