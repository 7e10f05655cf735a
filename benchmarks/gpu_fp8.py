"""python -m benchmarks.gpu fp8: quantization="fp8" beside bfloat16, time and error."""

import argparse
import copy
import statistics
from typing import Any

import torch
import torch.nn.functional as F

import bertfast
from benchmarks.gpu_common import SHAPES, Subject, build, make_inputs, measure
from benchmarks.models import MODELS


def fp8(options: argparse.Namespace) -> list[dict[str, Any]]:
    """quantization="fp8" beside bfloat16 in one run: milliseconds, and how far the hidden states are from float64, for each real token the
    cosine and over all of them the root mean square."""
    exact = build(options.model, torch.float32, options.device)
    half = bertfast.optimize(build(options.model, torch.bfloat16, options.device))
    rivals = [Subject("bfloat16", lambda given: half(**given))]
    try:
        quantized = bertfast.optimize(build(options.model, torch.bfloat16, options.device), quantization="fp8")
        rivals.append(Subject("fp8", lambda given: quantized(**given)))
    except ValueError as error:  # no such GPU: what it says is the result
        options.absent["every batch"] = {"fp8": str(error)}
        print(f"  fp8: not timed: {error}", flush=True)
    rows: list[dict[str, Any]] = []
    for shape in options.shape:
        if options.time_is_up():
            options.not_reached.append(shape)
            continue
        lengths = SHAPES[shape]
        sets = [make_inputs(lengths, MODELS[options.model].V, options.device, seed) for seed in range(4)]
        few = make_inputs(lengths[:4], MODELS[options.model].V, options.device)  # float64 is slow
        real = few.get("attention_mask", torch.ones_like(few["input_ids"])).bool()
        with torch.no_grad():
            truth = copy.deepcopy(exact).double()(**few).last_hidden_state[real]
            for rival in rivals:
                rival.latencies, rival.stream = [], []
                for given in sets:
                    rival.call(given)
            for _ in range(options.rounds):
                for rival in rivals:
                    measure(rival, sets, options)
            for rival in rivals:
                states = rival.call(few).last_hidden_state[real].double()
                row = {
                    "model": options.model,
                    "batch": shape,
                    "lengths": lengths,
                    "dtype": "fp8" if rival.name == "fp8" else "bfloat16",
                    "subject": f"bertfast, {rival.name}",
                    "ms": statistics.median(rival.latencies),
                    "ms_stream": statistics.median(rival.stream),
                    "worst_cosine": F.cosine_similarity(states, truth, dim=-1).min().item(),
                    "rms": ((states - truth) ** 2).mean().sqrt().item() / (truth**2).mean().sqrt().item(),
                }
                rows.append(row)
                print(f"  {shape:9} {rival.name:9} {row['ms']:9.3f} ms a call  {row['ms_stream']:9.3f} ms back to back  worst cosine "
                      f"{row['worst_cosine']:.5f}  relative rms {row['rms']:.1e}", flush=True)  # fmt: skip
        options.keep(rows)
    slower = [row for row in rows if row["dtype"] == "fp8" and row["ms_stream"] > next(
        other["ms_stream"] for other in rows if other["dtype"] != "fp8" and other["batch"] == row["batch"])]  # fmt: skip
    if rows and slower and len(slower) == sum(row["dtype"] == "fp8" for row in rows):
        H, device = MODELS[options.model].H, torch.cuda.get_device_name()
        print(f"fp8 loses everywhere. For FP8_LOSES in bertfast/quantization/fp8.py: {(device, H)!r}: '...'", flush=True)
    return rows
