"""The GPU and the software of a run, as its result file holds them."""

import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.machine.identity import this_machine


def machine(device: str) -> dict[str, Any]:
    """The GPU as a machine class; the CPU's for a dry run."""
    if device != "cuda":
        return this_machine().as_dict()
    p = torch.cuda.get_device_properties(0)
    capability, software = f"{p.major}.{p.minor}", f"driver {driver()}, CUDA {torch.version.cuda}"
    return {
        "key": p.name.lower().replace(" ", "-"),
        "title": f"{p.name}, capability {capability}, {p.multi_processor_count} multiprocessors, {software}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "isa": [],
        "device": p.name,
        "capability": capability,
        "multiprocessors": p.multi_processor_count,
        "memory": p.total_memory,
        "driver": driver(),
        "cuda": torch.version.cuda,
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("bertfast", "torch", "triton", "transformers") if find_spec(name)}


def driver() -> str | None:
    """The version of the GPU's driver; None where nvidia-smi does not say."""
    try:
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
    except OSError:
        return None
    return asked.stdout.split("\n")[0].strip() or None
