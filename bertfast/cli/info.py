"""bertfast info: versions, CPU and GPU, and which kernels run here."""

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bertfast import ops
from bertfast.cli.info_model import Row, model_rows
from bertfast.quantization import fp8_support
from bertfast.runtime.devices import DTYPES
from bertfast.runtime.native import _C
from bertfast.runtime.threads import get_num_threads

LIBRARIES = ("bertfast", "torch", "transformers", "triton")


def run(model: str | None) -> None:
    """Print the tables; with a model folder, also how that model runs. Raises ValueError where the folder cannot be read."""
    console = Console()
    console.print(_table("versions", versions()), _table("CPU", cpu()), _table("GPU", gpu()), _table("kernels", kernels()))
    if model is not None:
        with console.status(f"loading {model}"):
            rows = list(model_rows(model))
        console.print(_table("model", rows))


def _table(title: str, rows: Iterable[Row]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, min_width=60)
    for row in rows:
        table.add_row(*row)
    return table


def versions() -> Iterator[Row]:
    yield "Python", platform.python_version(), f"{platform.system()} {platform.machine()}"
    for name in LIBRARIES:
        yield name, _installed_version(name) or "not installed", "needed on NVIDIA GPUs only" if name == "triton" else ""


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> Iterator[Row]:
    requested = os.environ.get("BERTFAST_ISA")
    chosen = _C.isa()
    yield "processor", cpu_name(), f"{os.cpu_count()} logical cores"
    yield "instruction set", chosen, "set by BERTFAST_ISA" if requested else "the widest that this CPU and this build support"
    for name, in_build, on_cpu in _C.isas():
        missing = [reason for reason, has in (("not in this build", in_build), ("not supported by this CPU", on_cpu)) if not has]
        yield "", name, "in use" if name == chosen else ", ".join(missing) or f"available: BERTFAST_ISA={name}"
    yield "threads", str(get_num_threads()), f"bertfast.set_num_threads changes it; torch uses {torch.get_num_threads()}"


def gpu() -> Iterator[Row]:
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield "none", "", f"torch.cuda.is_available() is False; this torch is {build}"
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}", properties.name, f"sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        reason = fp8_support.why_device_unsupported(torch.device("cuda", i))
        yield "", "fp8", reason or "supported; not measured yet against bfloat16"


def kernels() -> Iterator[Row]:
    for device, description in (("cpu", f"C++, {_C.isa()}"), ("cuda", "Triton; matrix products by cuBLAS")):
        for name, dtype in DTYPES.items():
            if not ops.has_kernels(torch.device(device), dtype):
                yield f"{device} {name}", "reference ops (torch)", "this build has no kernels for this dtype"
            elif device == "cuda" and not torch.cuda.is_available():
                yield f"{device} {name}", "not in use", "no GPU"
            else:
                yield f"{device} {name}", description, ""


def cpu_name() -> str:
    """The processor's model name where the system tells it, else the machine type."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
