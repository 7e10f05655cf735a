"""The timed parts of a GPU run: calls, fp8 beside bfloat16, and the steps of generations. They write result files like the CPU's."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import registry
from benchmarks.gpu.environment import machine, versions
from benchmarks.gpu.measurer import MANY, PROMPT, Decode, GpuCalls
from benchmarks.gpu.options import Options
from benchmarks.measure.runner import measured, record
from benchmarks.measure.settings import Run, Settings
from benchmarks.report import results, tables
from benchmarks.suite.models import MODELS
from benchmarks.suite.workloads import REFERENCE, Workload, gpu_workload


def time_calls(options: Options) -> dict[str, Any]:
    workloads = [gpu_workload(options.model, shape, dtype, options.device) for dtype in options.dtypes for shape in options.shapes]
    return _run("time", workloads, options.subjects or list(registry.TIMED), options)


def fp8(options: Options) -> dict[str, Any]:
    """quantization="fp8" beside bfloat16."""
    workloads = [gpu_workload(options.model, shape, "bfloat16", options.device) for shape in options.shapes]
    result = _run("fp8", workloads, ["bertfast", "bertfast-fp8"], options)
    if options.device == "cuda" and _fp8_loses(result):
        H, name = MODELS[options.model].H, torch.cuda.get_device_name()
        print(f"fp8 is slower at every shape. For FP8_LOSES in bertfast/quantization/fp8.py: {(name, H)!r}: '...'", flush=True)
    return result


def _fp8_loses(result: dict[str, Any]) -> bool:
    pairs = [(w["rows"]["bertfast"], w["rows"]["bertfast-fp8"]) for w in result["workloads"].values()]
    timed = [(half, quantized) for half, quantized in pairs if "back_to_back" in half and "back_to_back" in quantized]
    return bool(timed) and all(quantized["back_to_back"]["median"] > half["back_to_back"]["median"] for half, quantized in timed)


def decode(options: Options) -> dict[str, Any]:
    new = min(MANY, MODELS[options.model].P - PROMPT)
    workloads = [
        Workload(options.model, f"decode-{B}", (PROMPT,) * B, PROMPT, "generate", "decode", new, device=options.device, dtype=dtype)
        for dtype in options.dtypes
        for B in options.batches
    ]
    return _run("decode", workloads, options.subjects or list(registry.DECODED), options)


def _run(part: str, workloads: list[Workload], names: list[str], options: Options) -> dict[str, Any]:
    """The result file's content, which is written to OUT after every workload."""
    settings = Settings(torch.get_num_threads(), options.cache, options.rounds, seconds=0.0, turn=options.turn, named=True)
    state = Run(settings, machine=machine(options.device), versions=versions(), not_reached=options.not_reached)
    with tempfile.TemporaryDirectory(prefix="bertfast-benchmarks-") as scratch:
        for dtype in dict.fromkeys(w.dtype for w in workloads):
            group = [w for w in workloads if w.dtype == dtype]
            if options.time_is_up():  # before its subjects are loaded
                group = [w for w in group if options.reach(w.name)]
            if group:
                _run_group(part, state, group, names, options, Path(scratch))
    result = _keep(part, state, options)
    print(f"\n{tables.markdown(result)}", flush=True)
    return result


def _run_group(part: str, state: Run, group: list[Workload], names: list[str], options: Options, scratch: Path) -> None:
    first = group[0]
    specs = [registry.spec(name, first.dtype, options.device) for name in dict.fromkeys([REFERENCE, *names])]
    exact = None if first.dtype == "float32" else registry.exact(options.device)
    for spec in specs:
        state.subjects[spec.name] = {"dtype": spec.dtype, "setup": spec.setup, "ours": spec.ours, "absent": None}
    kind = Decode if first.kind == "decode" else GpuCalls
    with kind(state, specs, first.model, first.task, scratch, exact, options.time_is_up) as timer:
        for workload in group:
            if not options.reach(workload.name):
                continue
            print(workload.name, flush=True)
            record(state, workload, measured(timer, workload))
            for line in tables.lines(state.workloads[workload.name]):
                print("  " + "  ".join(cell for cell in line.cells if cell), flush=True)
            _keep(part, state, options)


def _keep(part: str, state: Run, options: Options) -> dict[str, Any]:
    result = state.as_dict()
    results.save(result, options.out / f"{part}.json")
    (options.out / f"{part}.md").write_text(tables.markdown(result), encoding="utf-8")
    return result
