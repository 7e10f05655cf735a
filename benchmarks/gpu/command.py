"""bertfast on an NVIDIA GPU: checked against transformers, timed beside the fastest that PyTorch offers, tuned, traced.

    python -m benchmarks gpu check | time | decode | fp8 | tune | trace        benchmarks/gpu.sh runs them all

A time is a median over interleaved rounds, from a call with its inputs on the GPU to the end of its last kernel, one call at a time;
back to back beside it. Nothing is downloaded: weights are seeded.
"""

import argparse
import json
import math
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import registry, timing
from benchmarks.gpu.accuracy import check
from benchmarks.gpu.adapters import DTYPES
from benchmarks.gpu.environment import machine, versions
from benchmarks.gpu.options import Options
from benchmarks.gpu.trace import trace
from benchmarks.gpu.tune import tune
from benchmarks.measure.settings import default_cache
from benchmarks.suite.models import MODELS
from benchmarks.suite.workloads import SHAPES
from bertfast.engine.cuda_graph_eligibility import eager_reasons

Rows = list[dict[str, Any]]
TIMED: dict[str, Callable[[Options], dict[str, Any]]] = {"time": timing.time_calls, "decode": timing.decode, "fp8": timing.fp8}
OTHERS: dict[str, Callable[[Options], Rows]] = {"check": check, "tune": tune, "trace": trace}


def main(arguments: list[str]) -> int:
    """0; 1 if bertfast failed or was refused; 2 for wrong arguments; 3 if the time limit left something out."""
    part, options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if part in TIMED:
        result = TIMED[part](options)
        rows = [(result["subjects"][name]["ours"], row) for w in result["workloads"].values() for name, row in w["rows"].items()]
        good = not any(ours and row["status"] in ("failed", "refused") for ours, row in rows)
    else:
        options.keep = lambda rows: _save(part, rows, options)
        found = OTHERS[part](options)
        options.keep(found)
        good = all(row.get("good", True) for row in found)
    for reason, count in eager_reasons().items():
        print(f"run without a CUDA graph, {count} calls: {reason}")
    if not good:
        return 1
    return 3 if options.not_reached else 0


def _save(part: str, rows: Rows, options: Options) -> None:
    environment = {**machine(options.device), **versions(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    result = {"environment": environment, "part": part, "not_reached": options.not_reached, "rows": rows}
    (options.out / f"{part}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def _parse(arguments: list[str]) -> tuple[str, Options]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=(*OTHERS, *TIMED), help="What to do.")
    parser.add_argument("--model", choices=MODELS, default="bert-base", help="With seeded weights, but for minilm.")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, metavar="DTYPE", default=["float16"], help="float16, bfloat16, float32.")
    parser.add_argument(
        "--shape",
        nargs="+",
        choices=SHAPES,
        metavar="SHAPE",
        default=["1x16", "1x128", "8x128", "32x128", "128x128", "padded32"],
        help=f"{', '.join(SHAPES)}.",
    )
    parser.add_argument(
        "--subject", nargs="+", choices=registry.NAMES, metavar="NAME", help=f"For time and decode: {', '.join(registry.NAMES)}."
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="Batch sizes of decode.")
    parser.add_argument("--rounds", type=int, default=7, help="Rounds of turns per workload.")
    parser.add_argument("--turn", type=float, default=0.03, help="Seconds of one subject's turn in a round.")
    parser.add_argument("--inputs", type=int, default=20, help="Seeded inputs per row of check.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run, whose times mean nothing.")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="Begin nothing new after so long; exit with 3 if something was left out."
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="Folder for the results.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="Folder for weights.")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs an NVIDIA GPU and a CUDA build of torch: torch.cuda.is_available() is False")
    named = {"dtypes": given.dtype, "shapes": given.shape, "subjects": given.subject, "batches": given.batch}
    same = {name: getattr(given, name) for name in ("model", "rounds", "turn", "inputs", "device", "seconds", "out", "cache")}
    return given.part, Options(**named, **same)
