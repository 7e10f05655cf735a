"""python -m benchmarks.gpu decode: a step of a generation, ours beside transformers'."""

import argparse
import copy
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import bertfast
from benchmarks.gpu_common import DTYPES, Inputs, build, make_inputs, synchronise
from benchmarks.models import MODELS

PROMPT, FEW, MANY = 32, 16, 80  # tokens of a prompt; new tokens of a short and of a long generation


def decode(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a step: what the 64 more steps of a long generation take, over 64; and the share of tokens that are transformers'."""
    rows: list[dict[str, Any]] = []
    few, many = (min(n, MODELS[options.model].P - PROMPT) for n in (FEW, MANY))
    for dtype, B in itertools.product(options.dtype, options.batch):
        if options.time_is_up():
            options.not_reached.append(f"decode {B} {dtype}")
            continue
        print(f"{options.model} generation, batch {B}, {dtype}", flush=True)
        theirs_ = build(options.model, DTYPES[dtype], options.device, "BertLMHeadModel", is_decoder=True)
        ours, static = bertfast.optimize(copy.deepcopy(theirs_)), copy.deepcopy(theirs_)
        given = make_inputs([PROMPT] * B, MODELS[options.model].V, options.device)
        given = {"input_ids": given["input_ids"], "attention_mask": torch.ones_like(given["input_ids"])}

        def generate(model: Any, tokens: int, given: Inputs = given, **how: Any) -> Tensor:
            out: Tensor = model.generate(**given, do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, **how)
            return out

        def launched(model: Any, tokens: int, generate: Callable[..., Tensor] = generate) -> Tensor:
            os.environ["BERTFAST_CUDA_GRAPHS"] = "0"
            try:
                return generate(model, tokens)
            finally:
                del os.environ["BERTFAST_CUDA_GRAPHS"]

        makers: dict[str, tuple[str, Callable[[int], Tensor]]] = {
            "bertfast": ("bertfast", lambda n, m=ours: generate(m, n)),
            "launches": ("bertfast, plain launches", lambda n, m=ours: launched(m, n)),
            "dynamic": ("transformers, dynamic cache", lambda n, m=theirs_: generate(m, n)),
            # On a GPU generate() compiles the step for this cache, in mode reduce-overhead: under CUDA graphs.
            "static": (
                "transformers, static cache, compiled",
                lambda n, m=static: generate(m, n, cache_implementation="static"),
            ),
        }
        found: dict[str, dict[int, list[float]]] = {}
        equal: dict[str, float] = {}
        want = generate(theirs_, few)
        for key in options.subject or makers:
            name, call = makers[key]
            try:
                same = (call(few) == want).float().mean().item()
                call(many)
                synchronise(options.device)
            except Exception as error:  # a rival that does not run is reported, and the others are timed
                if key in ("bertfast", "launches"):
                    raise
                reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
                options.absent.setdefault(f"decode {B} {dtype}", {})[name] = reason
                print(f"  {name}: not timed: {reason}", flush=True)
                continue
            print(f"  {name}: {same:.1%} of the tokens are transformers'", flush=True)
            found[key], equal[key] = {few: [], many: []}, same
        for _ in range(options.rounds):
            for key, times in found.items():
                for tokens, measured in times.items():
                    synchronise(options.device)
                    begin = time.perf_counter()
                    makers[key][1](tokens)
                    synchronise(options.device)
                    measured.append((time.perf_counter() - begin) * 1e3)
        for key, times in found.items():
            ms = (statistics.median(times[many]) - statistics.median(times[few])) / (many - few)
            row = {
                "model": options.model,
                "batch": f"decode {B}",
                "lengths": [PROMPT] * B,
                "cached": PROMPT + (few + many) // 2,
                "dtype": dtype,
                "subject": makers[key][0],
                "ms": ms,
                "ms_generation": statistics.median(times[many]),
                "equal_tokens": equal[key],  # share that is transformers', of the short generation
            }
            rows.append(row)
            print(f"  {row['subject']:44} {ms:9.3f} ms a step, {B / ms * 1e3:9.0f} tokens a second", flush=True)
        options.keep(rows)
    return rows
