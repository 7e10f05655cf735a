"""The error of every head against float64, bertfast's beside transformers'."""

import copy
import math
import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bertfast
from benchmarks.gpu.adapters import DTYPES
from benchmarks.gpu.options import Options
from benchmarks.suite.models import HEADS, MODELS, build
from benchmarks.suite.workloads import Workload

TASKS = ("encoder", "pretraining", "lm", "tokens", "qa")
_BATCHES = {"unpadded": ((64,) * 4, False), "right-padded": ((64, 7, 33, 1), False), "left-padded": ((64, 7, 33, 1), True)}


def check(options: Options) -> list[dict[str, Any]]:
    """A row per head, dtype and batch: root mean square errors over seeded inputs, their ratio, the largest difference of the two."""
    rows = []
    for task in TASKS:
        config = {"use_cache": False} if task == "lm" else {}
        module = build(MODELS[options.model], task, **config).requires_grad_(False)
        for dtype in options.dtypes:
            if options.reach(f"{HEADS[task][0]} {dtype}"):
                rows += _check_head(options, task, module, dtype)
                options.keep(rows)
    return rows


def _check_head(options: Options, task: str, module: Any, dtype: str) -> list[dict[str, Any]]:
    rows = []
    reference = copy.deepcopy(module).to(options.device, DTYPES[dtype])
    models = (copy.deepcopy(reference).double(), reference, bertfast.optimize(copy.deepcopy(reference)))
    for batch, (lengths, left) in _BATCHES.items():
        workload = Workload(options.model, batch, lengths, max(lengths), task, left_padded=left)
        errors: dict[str, list[float]] = {"bertfast": [], "transformers": []}
        largest = 0.0
        for seed in range(options.inputs):
            given = _inputs(workload, seed, options.device)
            real = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
            with torch.no_grad():
                exact, theirs, ours = (_per_token(model(**given), real) for model in models)
            errors["bertfast"].append(((ours.double() - exact) ** 2).mean().item())
            errors["transformers"].append(((theirs.double() - exact) ** 2).mean().item())
            largest = max(largest, (ours.double() - theirs.double()).abs().max().item() / max(exact.abs().max().item(), 1.0))
        rms = {who: math.sqrt(statistics.fmean(values)) for who, values in errors.items()}
        ratio = rms["bertfast"] / rms["transformers"]
        good = ratio <= 1.1 and (dtype != "float32" or largest <= 2e-5)
        head = HEADS[task][0]
        rows.append({"head": head, "dtype": dtype, "batch": batch, "ratio": ratio, "largest": largest, "good": good, **rms})
        verdict = "" if good else "   WORSE"
        print(f"{head:28} {dtype:9} {batch:13} rms {ratio:5.2f} of transformers', largest difference {largest:.1e}{verdict}", flush=True)
    return rows


def _inputs(workload: Workload, seed: int, device: str) -> dict[str, Tensor]:
    """With random token types; without a mask where nothing is padded."""
    arrays = workload.inputs(seed)
    arrays["token_type_ids"] = np.random.default_rng(seed).integers(0, 2, arrays["input_ids"].shape) * arrays["attention_mask"]
    if not workload.padding:
        del arrays["attention_mask"]
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _per_token(outputs: Any, real: Tensor) -> Tensor:
    """The first output, which has a row per token, at real tokens."""
    return outputs[next(iter(outputs))][real]
