"""bertfast's calls under torch's profiler."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import torch

import bertfast
from benchmarks.gpu.adapters import DTYPES, Bertfast
from benchmarks.gpu.options import Options
from benchmarks.suite.models import MODELS, build
from benchmarks.suite.workloads import gpu_workload

_CALLS = 3


def trace(options: Options) -> list[dict[str, Any]]:
    """Writes a Chrome trace per shape; a row per kernel with its time and launches per call."""
    dtype = options.dtypes[0]
    adapter = Bertfast(dtype, torch.get_num_threads(), options.device)
    adapter.model = bertfast.optimize(build(MODELS[options.model], "encoder").to(options.device, DTYPES[dtype]))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if options.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    rows = []
    for shape in options.shapes:
        workload = gpu_workload(options.model, shape, dtype, options.device)
        if not options.reach(workload.name):
            continue
        call = adapter.prepare(workload.inputs(), 0)
        for _ in range(_CALLS):
            call()
        adapter.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(_CALLS):
                call()
            adapter.synchronize()
        _write(profile, options.out / f"trace-{shape}.json")
        kernels = [e for e in profile.key_averages() if getattr(e, "self_device_time_total", 0) > 0]
        for event in sorted(kernels, key=lambda e: -e.self_device_time_total):
            row = {"batch": shape, "kernel": event.key[:100], "us_a_call": event.self_device_time_total / _CALLS}
            row["launches"] = event.count / _CALLS
            rows.append(row)
            print(f"  {shape:9} {row['us_a_call']:9.1f} us  {row['launches']:6.1f} x  {row['kernel']}", flush=True)
    return rows


def _write(profile: Any, path: Path) -> None:
    profile.export_chrome_trace(str(path))
    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb") as zipped:
        shutil.copyfileobj(plain, zipped)
    path.unlink()
