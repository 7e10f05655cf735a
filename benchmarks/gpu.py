"""bertfast on an NVIDIA GPU: checked against transformers, timed against the fastest that PyTorch offers, tuned, traced.

    python -m benchmarks.gpu check | time | decode | fp8 | tune | trace        benchmarks/gpu.sh runs them all

Every time is a median over interleaved rounds, from a call with its inputs on the GPU to the last of its kernels: `ms` a call at a time
(the host's share is in it), `ms_stream` back to back. Nothing is downloaded: weights are seeded, with the scales of trained ones.
"""

import argparse
import copy
import gzip
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bertfast
from benchmarks.gpu_common import DTYPES, SHAPES, Inputs, Subject, build, make_inputs, measure, synchronise
from benchmarks.gpu_decode import decode
from benchmarks.gpu_fp8 import fp8
from benchmarks.gpu_tune import tune
from benchmarks.models import MODELS

# --- check -----------------------------------------------------------------------------------------------------------------------

HEADS = {
    "BertModel": {},
    "BertForPreTraining": {},
    "BertLMHeadModel": {"is_decoder": True, "use_cache": False},
    "BertForTokenClassification": {},
    "BertForQuestionAnswering": {},
}


def check(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Root mean square error against float64 over seeded inputs, ours over transformers'; and the largest difference between the two."""
    rows = []
    batches = {"unpadded": ([64] * 4, False), "right-padded": ([64, 7, 33, 1], False), "left-padded": ([64, 7, 33, 1], True)}
    for (head, config), dtype in itertools.product(HEADS.items(), options.dtype):
        if dtype == options.dtype[0]:
            float32 = build(options.model, torch.float32, "cpu", head, **config)  # seeding it takes seconds
        reference = copy.deepcopy(float32).to(options.device, DTYPES[dtype])
        ours = bertfast.optimize(copy.deepcopy(reference))
        exact = copy.deepcopy(reference).double()
        for name, (lengths, left) in batches.items():
            errors: dict[str, list[float]] = {"bertfast": [], "transformers": []}
            largest = 0.0
            for seed in range(options.inputs):
                given = make_inputs(lengths, MODELS[options.model].V, options.device, seed, left)
                real = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
                with torch.no_grad():
                    truth, theirs_, mine = (first(model(**given), real) for model in (exact, reference, ours))
                errors["bertfast"].append(((mine.double() - truth) ** 2).mean().item())
                errors["transformers"].append(((theirs_.double() - truth) ** 2).mean().item())
                largest = max(largest, (mine.double() - theirs_.double()).abs().max().item() / max(truth.abs().max().item(), 1.0))
            rms = {who: math.sqrt(statistics.fmean(values)) for who, values in errors.items()}
            ratio = rms["bertfast"] / rms["transformers"]
            good = ratio <= 1.1 and (dtype != "float32" or largest <= 2e-5)
            rows.append({"head": head, "dtype": dtype, "batch": name, "ratio": ratio, "largest": largest, "good": good, **rms})
            print(f"{head:28} {dtype:9} {name:13} rms {ratio:5.2f} of transformers', largest difference {largest:.1e}"
                  f"{'' if good else '   WORSE'}", flush=True)  # fmt: skip
        options.keep(rows)
    return rows


def first(outputs: Any, real: Tensor) -> Tensor:
    """The output that has a row for every token, at real tokens."""
    name = next(iter(outputs))
    return outputs[name][real]


# --- time ------------------------------------------------------------------------------------------------------------------------

COSINE = 0.99  # of a token's hidden states with transformers' sdpa in the same dtype: less is another function, not another rounding


def hidden_states(outputs: Any, real: Tensor) -> Tensor:
    """[T, H] of the real tokens in float32, of a model that pads or of one that does not."""
    states: Tensor = outputs["hidden"] if "hidden" in outputs else outputs["last_hidden_state"][real]
    return states.float()


def graphed(call: Callable[[Inputs], Any], given: Inputs) -> Callable[[Inputs], Any]:
    """call under a CUDA graph for inputs of this shape: copied in, replayed, copied out."""
    if not torch.cuda.is_available():
        raise RuntimeError("it runs under a CUDA graph, which needs an NVIDIA GPU")
    static = {name: t.clone() for name, t in given.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(static)

    def replay(new: Inputs) -> Any:
        for name, t in new.items():
            static[name].copy_(t)
        graph.replay()
        return {name: t.clone() for name, t in out.items() if isinstance(t, Tensor)}

    return replay


def packed(given: Inputs, longest: int) -> Inputs:
    ids = given["input_ids"]
    mask = given.get("attention_mask", torch.ones_like(ids)).bool()
    cu = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return {"ids": ids[mask], "positions": positions[mask], "types": given["token_type_ids"][mask], "cu_seqlens": cu}


def subjects(options: argparse.Namespace, dtype: torch.dtype, given: Inputs, lengths: list[int], absent: dict[str, str]) -> list[Subject]:
    """The rivals in this shape. One that cannot be built says so, here and in `absent`, and stays out."""
    device, longest = options.device, max(lengths)
    sdpa = build(options.model, dtype, device, attn_implementation="sdpa")
    ours = bertfast.optimize(copy.deepcopy(sdpa))

    def plain(model: nn.Module) -> Callable[[Inputs], Any]:
        return lambda given: model(**given)

    def eager() -> Subject:
        return Subject("transformers eager", plain(build(options.model, dtype, device, attn_implementation="eager")))

    def sdpa_graph() -> Subject:
        # transformers asks the device whether a mask is all ones, which no graph can hold: the mask goes in as it is used.
        def call(given: Inputs) -> Any:
            mask = given.get("attention_mask")
            more = {} if mask is None else {"attention_mask": mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1)}
            return sdpa(**{**given, **more})

        return Subject("transformers sdpa, CUDA graph", graphed(call, given))

    def sdpa_compiled() -> Subject:
        compiled = torch.compile(sdpa, mode="max-autotune", dynamic=False)
        return Subject("transformers sdpa, max-autotune", lambda given: compiled(**given))

    def varlen(compile_it: bool) -> Subject:
        from benchmarks.varlen_bert import VarlenBert

        model: Any = VarlenBert(copy.deepcopy(sdpa))
        run = torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False) if compile_it else model

        def call(p: Inputs) -> Any:
            hidden, pooled = run(p["ids"], p["positions"], p["types"], p["cu_seqlens"], longest)
            return {"hidden": hidden, "pooled": pooled}

        replay = graphed(call, packed(given, longest))
        return Subject(
            f"unpadded torch{', compiled' if compile_it else ''}, CUDA graph",
            lambda given: replay(packed(given, longest)),
            "packing included; a graph for this batch's number of tokens alone",
        )

    def launched() -> Subject:
        def call(given: Inputs) -> Any:
            os.environ["BERTFAST_CUDA_GRAPHS"] = "0"
            try:
                return ours(**given)
            finally:
                del os.environ["BERTFAST_CUDA_GRAPHS"]

        return Subject("bertfast, plain launches", call)

    def invariant() -> Subject:
        model = bertfast.optimize(copy.deepcopy(sdpa), batch_invariant=True)
        return Subject("bertfast, batch_invariant", plain(model))

    makers = {
        "bertfast": lambda: Subject("bertfast", plain(ours)),
        "launches": launched,
        "invariant": invariant,
        "eager": eager,
        "sdpa": lambda: Subject("transformers sdpa", plain(sdpa)),
        "sdpa-graph": sdpa_graph,
        "sdpa-compiled": sdpa_compiled,
        "varlen": lambda: varlen(False),
        "varlen-compiled": lambda: varlen(True),
    }
    real = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
    want = hidden_states(sdpa(**given), real)
    found = []
    for name in options.subject or makers:
        begin = time.monotonic()
        if options.time_is_up():
            absent[name] = "no time was left"
            print(f"  {name}: not timed: {absent[name]}", flush=True)
            continue
        try:
            subject = makers[name]()
            subject.cosine = F.cosine_similarity(hidden_states(subject.call(given), real), want, dim=-1).min().item()
            if not subject.cosine >= COSINE:
                raise RuntimeError(f"its hidden states are not transformers': worst cosine {subject.cosine:.5f}, expected {COSINE} or more")
        except Exception as error:  # a rival that does not run is reported, and the others are timed
            if name in ("bertfast", "launches"):
                raise
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            print(f"  {name}: not timed: {absent[name]}", flush=True)
            continue
        print(f"  {name}: ready in {time.monotonic() - begin:.1f} s", flush=True)
        found.append(subject)
    return found


def time_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for dtype, shape in itertools.product(options.dtype, options.shape):
        lengths = SHAPES[shape]
        print(f"{options.model} {shape} {dtype}", flush=True)
        sets = [make_inputs(lengths, MODELS[options.model].V, options.device, seed) for seed in range(4)]
        for given in sets[1:]:  # the unpadded peer's graph is recorded for one set of lengths; all sets share them
            assert {n: t.shape for n, t in given.items()} == {n: t.shape for n, t in sets[0].items()}
        if options.time_is_up():
            options.not_reached.append(f"{shape} {dtype}")
            print("  not reached: no time was left", flush=True)
            continue
        absent = options.absent.setdefault(f"{shape} {dtype}", {})
        with torch.no_grad():
            rivals = subjects(options, DTYPES[dtype], sets[0], lengths, absent)
            for rival in rivals:
                for given in sets:
                    rival.call(given)
            for _ in range(options.rounds):
                for rival in rivals:
                    measure(rival, sets, options)
        for rival in rivals:
            row = {
                "model": options.model,
                "batch": shape,
                "lengths": lengths,
                "dtype": dtype,
                "subject": rival.name,
                "ms": statistics.median(rival.latencies),
                "ms_stream": statistics.median(rival.stream),
                "calls": len(rival.latencies),
                "worst_cosine": rival.cosine,
                "note": rival.note,
            }
            rows.append(row)
            print(f"  {rival.name:44} {row['ms']:9.3f} ms a call  {row['ms_stream']:9.3f} ms back to back", flush=True)
        del rivals
        options.keep(rows)
    return rows


# --- trace -----------------------------------------------------------------------------------------------------------------------


def trace(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Three calls of bertfast under torch's profiler: a Chrome trace, and the time of each kernel."""
    dtype = DTYPES[options.dtype[0]]
    model = bertfast.optimize(build(options.model, dtype, options.device))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if options.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    rows = []
    for shape in options.shape:
        given = make_inputs(SHAPES[shape], MODELS[options.model].V, options.device)
        with torch.no_grad():
            for _ in range(3):
                model(**given)
            synchronise(options.device)
            with torch.profiler.profile(activities=activities) as profile:
                for _ in range(3):
                    model(**given)
                synchronise(options.device)
        path = options.out / f"trace-{shape}.json"
        profile.export_chrome_trace(str(path))
        with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb") as zipped:
            shutil.copyfileobj(plain, zipped)
        path.unlink()
        kernels = [e for e in profile.key_averages() if getattr(e, "self_device_time_total", 0) > 0]
        for event in sorted(kernels, key=lambda e: -e.self_device_time_total):
            row = {"batch": shape, "kernel": event.key[:100], "us_a_call": event.self_device_time_total / 3, "launches": event.count / 3}
            rows.append(row)
            print(f"  {shape:9} {row['us_a_call']:9.1f} us  {row['launches']:6.1f} x  {row['kernel']}", flush=True)
    return rows


# --- results ---------------------------------------------------------------------------------------------------------------------


def environment(device: str) -> dict[str, Any]:
    """When and where, and by which versions."""
    when = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "python": platform.python_version()}
    versions = {name: version(name) for name in ("bertfast", "torch", "triton", "transformers") if find_spec(name)}
    if device != "cuda":
        return {"device": "cpu", **when, **versions}
    p = torch.cuda.get_device_properties(0)
    chip = {"device": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count, "memory": p.total_memory}
    return {**chip, "driver": driver(), "cuda": torch.version.cuda, **when, **versions}


def driver() -> str | None:
    """The version of the GPU's driver; None where nvidia-smi does not say."""
    try:
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
    except OSError:
        return None
    return asked.stdout.split("\n")[0].strip() or None


def markdown(result: dict[str, Any]) -> str:
    """The timed part as one table a dtype: rows are subjects, columns are batches."""
    place = result["environment"]
    lines = [f"{place['device']}, torch {place['torch']}, triton {place.get('triton', 'none')}, {place['date']}", ""]
    for dtype in sorted({row["dtype"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["dtype"] == dtype]
        batches = list(dict.fromkeys(row["batch"] for row in rows))
        times = {(row["subject"], row["batch"]): row["ms"] for row in rows}
        lines += [
            f"{rows[0]['model']}, {dtype}, milliseconds a {'step' if 'cached' in rows[0] else 'call'}",
            "",
            "| | " + " | ".join(batches) + " |",
            "|---" * (len(batches) + 1) + "|",
        ]
        for subject in dict.fromkeys(row["subject"] for row in rows):
            cells = [f"{times[subject, batch]:.3f}" if (subject, batch) in times else "-" for batch in batches]
            lines.append(f"| {subject} | " + " | ".join(cells) + " |")
        lines.append("")
    for where, reasons in result["absent"].items():
        lines += [f"{where}, not timed: {name}: {reason}" for name, reason in reasons.items()]
    if result["not_reached"]:
        lines.append(f"Not reached in the time that was given: {', '.join(result['not_reached'])}")
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "check": check,
    "time": time_all,
    "decode": decode,
    "fp8": fp8,
    "tune": tune,
    "trace": trace,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", choices=MODELS, default="bert-base")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float16"])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["1x16", "1x128", "8x128", "32x128", "128x128", "padded32"])
    parser.add_argument(
        "--subject",
        nargs="+",
        help="time: bertfast launches invariant eager sdpa sdpa-graph sdpa-compiled varlen varlen-compiled; "
        "decode: bertfast launches dynamic static",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="decode: sequences")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.03, help="seconds of one subject's turn in a round")
    parser.add_argument("--inputs", type=int, default=20, help="check: seeded inputs a row")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run of this script; its times mean nothing")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing new after so long; exit 3 if something was left out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch.cuda.is_available() is False: this needs an NVIDIA GPU and a CUDA build of torch")
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    options.time_is_up = lambda: time.monotonic() - begin > options.seconds
    options.not_reached, options.absent = [], {}  # what of it; by batch and dtype, which rivals and why
    result: dict[str, Any] = {"environment": environment(options.device), "part": options.part}

    def keep(rows: list[dict[str, Any]]) -> None:
        """Written after every shape: a run that is stopped leaves what it has."""
        result.update(absent={k: v for k, v in options.absent.items() if v}, not_reached=options.not_reached, rows=rows)
        path = options.out / f"{options.part}.json"
        path.with_suffix(".part").write_text(json.dumps(result, indent=1))
        path.with_suffix(".part").replace(path)

    options.keep = keep
    rows = PARTS[options.part](options)
    keep(rows)
    if options.part in ("time", "decode", "fp8"):
        (options.out / f"{options.part}.md").write_text(markdown(result))
        print("\n" + markdown(result))
    if options.device == "cuda":
        from bertfast.engine.cuda_graph_eligibility import eager_reasons

        for reason, count in eager_reasons().items():
            print(f"launched kernel by kernel, {count} calls: {reason}")
    if not all(row.get("good", True) for row in rows):
        return 1
    return 3 if options.not_reached or any("no time" in reason for them in options.absent.values() for reason in them.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
