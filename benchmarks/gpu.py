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
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert as theirs

import bertfast
from benchmarks.models import MODELS, _fill
from benchmarks.workloads import ragged

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHAPES = {
    "1x16": [16],
    "1x128": [128],
    "8x128": [128] * 8,
    "32x128": [128] * 32,
    "128x128": [128] * 128,
    "32x512": [512] * 32,
    "padded32": list(ragged(32, 45, 128)),
}
Inputs = dict[str, Tensor]


def build(model: str, dtype: torch.dtype, device: str, head: str = "BertModel", **config: Any) -> nn.Module:
    """transformers' class with seeded weights."""
    m = MODELS[model]
    torch.manual_seed(20 + m.L)
    sizes = {"vocab_size": m.V, "hidden_size": m.H, "num_hidden_layers": m.L, "num_attention_heads": m.N, "intermediate_size": m.I}
    module = getattr(theirs, head)(BertConfig(**sizes, max_position_embeddings=m.P, **config)).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _fill(name, parameter)
    return module.to(device, dtype).requires_grad_(False)


def make_inputs(lengths: list[int], vocabulary: int, device: str, seed: int = 0, left: bool = False) -> Inputs:
    """[B, S] ids, types and, where rows differ in length, a mask."""
    rng = torch.Generator().manual_seed(seed)
    B, S = len(lengths), max(lengths)
    ids = torch.randint(1, vocabulary, (B, S), generator=rng)
    column = torch.arange(S)[None]
    n = torch.tensor(lengths)[:, None]
    mask = column >= S - n if left else column < n
    given = {"input_ids": ids * mask, "token_type_ids": torch.randint(2, (B, S), generator=rng) * mask}
    if min(lengths) < S:
        given["attention_mask"] = mask.long()
    return {name: t.to(device) for name, t in given.items()}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


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
        reference = build(options.model, DTYPES[dtype], options.device, head, **config)
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
    return rows


def first(outputs: Any, real: Tensor) -> Tensor:
    """The output that has a row for every token, at real tokens."""
    name = next(iter(outputs))
    return outputs[name][real]


# --- time ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Subject:
    name: str
    call: Callable[[Inputs], Any]
    note: str = ""
    latencies: list[float] = field(default_factory=list)
    stream: list[float] = field(default_factory=list)


def graphed(call: Callable[[Inputs], Any], given: Inputs) -> Callable[[Inputs], Any]:
    """call under a CUDA graph for inputs of this shape: copied in, replayed, copied out."""
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


def subjects(options: argparse.Namespace, dtype: torch.dtype, given: Inputs, lengths: list[int]) -> list[Subject]:
    """The rivals in this shape. One that cannot be built says so and stays out."""
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
    found = []
    for name in options.subject or makers:
        begin = time.monotonic()
        try:
            subject = makers[name]()
            subject.call(given)
            synchronise(device)
        except Exception as error:  # a rival that does not run is reported, and the others are timed
            if name in ("bertfast", "launches"):
                raise
            print(f"  {name}: not timed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}", flush=True)
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
        with torch.no_grad():
            rivals = subjects(options, DTYPES[dtype], sets[0], lengths)
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
                "note": rival.note,
            }
            rows.append(row)
            print(f"  {rival.name:44} {row['ms']:9.3f} ms a call  {row['ms_stream']:9.3f} ms back to back", flush=True)
        del rivals
    return rows


def measure(rival: Subject, sets: list[Inputs], options: argparse.Namespace) -> None:
    """A few calls one by one, then as many back to back; about 30 ms of each."""
    inputs, begin, calls = itertools.cycle(sets), time.perf_counter(), 0
    while calls < 4 or time.perf_counter() - begin < options.turn:
        synchronise(options.device)
        before = time.perf_counter()
        rival.call(next(inputs))
        synchronise(options.device)
        rival.latencies.append((time.perf_counter() - before) * 1e3)
        calls += 1
    before = time.perf_counter()
    for _ in range(calls):
        rival.call(next(inputs))
    synchronise(options.device)
    rival.stream.append((time.perf_counter() - before) * 1e3 / calls)


# --- decode ----------------------------------------------------------------------------------------------------------------------

PROMPT, FEW, MANY = 32, 16, 80  # tokens of a prompt; new tokens of a short and of a long generation


def decode(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a step: what the 64 more steps of a long generation take, over 64. Checked first: the same tokens as transformers'."""
    rows: list[dict[str, Any]] = []
    few, many = (min(n, MODELS[options.model].P - PROMPT) for n in (FEW, MANY))
    for dtype, B in itertools.product(options.dtype, options.batch):
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
                print(f"  {name}: not timed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}", flush=True)
                continue
            print(f"  {name}: {same:.1%} of the tokens are transformers'", flush=True)
            found[key] = {few: [], many: []}
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
            }
            rows.append(row)
            print(f"  {row['subject']:44} {ms:9.3f} ms a step, {B / ms * 1e3:9.0f} tokens a second", flush=True)
    return rows


# --- fp8 -------------------------------------------------------------------------------------------------------------------------


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
        print(f"  fp8: not timed: {error}", flush=True)
    rows: list[dict[str, Any]] = []
    for shape in options.shape:
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
    slower = [row for row in rows if row["dtype"] == "fp8" and row["ms_stream"] > next(
        other["ms_stream"] for other in rows if other["dtype"] != "fp8" and other["batch"] == row["batch"])]  # fmt: skip
    if rows and slower and len(slower) == sum(row["dtype"] == "fp8" for row in rows):
        H, device = MODELS[options.model].H, torch.cuda.get_device_name()
        print(f"fp8 loses everywhere. For FP8_LOSES in kernels/fused/tuning.py: {(device, H)!r}: '...'", flush=True)
    return rows


# --- tune ------------------------------------------------------------------------------------------------------------------------


def tune(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Attention and decoding over candidate tiles, and the Triton GEMM over candidate tiles against cuBLAS with its activation kernel."""
    from triton.testing import do_bench

    from bertfast.kernels import attention, decode, gemm, tuning
    from bertfast.ops import cuda

    rows: list[dict[str, Any]] = []

    def milliseconds(run: Callable[[], object]) -> float:
        return float(do_bench(run, warmup=5, rep=20, return_mode="median"))

    for dtype in (DTYPES[name] for name in options.dtype if name != "float32"):
        for D, S in itertools.product((64, 32), (16, 32, 64, 128, 256, 512)):
            B, N = max(8192 // S, 1), 768 // D
            q, k, v = torch.randn(B * S, 3, N, D, dtype=dtype, device="cuda").unbind(1)
            cu = torch.arange(B + 1, dtype=torch.int32, device="cuda") * S
            default = tuning.attention_tile(dtype, D, S, S)
            for m, n, warps, stages in itertools.product((16, 32, 64, 128), (16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 3)):
                tile = attention.Tile(m, n, warps, stages)
                sensible = m <= max(S, 16) and n <= max(S, 16) and m * n >= warps * 256 and m * n <= warps * 4096
                if tile != default and not (sensible and (stages == 1) == (n >= S)):
                    continue

                def run(tile=tile, q=q, k=k, v=v, cu=cu, S=S) -> object:
                    return attention.varlen_attention(q, k, v, cu, cu, S, S, False, None, tile=tile)

                note = {"kernel": "attention", "dtype": str(dtype)[6:], "D": D, "S": S, "tile": str(tile), "default": tile == default}
                try:
                    rows.append({**note, "ms": milliseconds(run)})
                except Exception as error:  # more shared memory than this chip has, say
                    print(f"  attention D={D} S={S} {tile}: {type(error).__name__}", flush=True)
            report_best(rows, "attention", {"D": D, "S": S, "dtype": str(dtype)[6:]})

        for (D, B), C in itertools.product(((64, 1), (64, 4), (64, 16), (64, 32), (32, 1), (32, 32)), (64, 128, 256, 512)):
            N = 768 // D
            q = torch.randn(B, N, D, dtype=dtype, device="cuda")
            keys = torch.randn(B, N, C, D, dtype=dtype, device="cuda")
            slots, last = torch.arange(B, device="cuda"), torch.full((B,), C, device="cuda")
            default = tuning.decode_tile(D, B * N, C)
            where = {"kernel": "decode", "dtype": str(dtype)[6:], "D": D, "B": B, "C": C}
            for block, splits, warps in itertools.product((16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 4, 8)):
                tile = decode.Tile(block, splits, warps)
                if tile != default and not (block * splits <= C and 256 <= block * D // warps <= 4096):
                    continue

                def step(tile=tile, q=q, keys=keys, slots=slots, last=last) -> object:
                    return decode.cached_attention(q, keys, keys, slots, None, last, None, tile=tile)

                rows.append({**where, "tile": str(tile), "default": tile == default, "ms": milliseconds(step)})
            report_best(rows, "decode", where)

        for (K, features, activation), T in itertools.product(
            ((768, 3072, "gelu"), (3072, 768, None), (768, 2304, None), (768, 768, None)), (16, 128, 512, 1024, 4096, 16384)
        ):
            x, w = (torch.randn(rows_, K, dtype=dtype, device="cuda") for rows_ in (T, features))
            bias = torch.randn(features, dtype=dtype, device="cuda")
            where = {"kernel": "gemm", "dtype": str(dtype)[6:], "K": K, "F": features, "T": T}
            ms = milliseconds(lambda x=x, w=w, bias=bias, activation=activation: cuda.linear(x, w, bias, activation))
            rows.append({**where, "tile": "cuBLAS", "default": True, "ms": ms})
            candidates = [
                gemm.Tile(m, f, k, warps, stages)
                for m, f, k, warps, stages in itertools.product((16, 64, 128), (64, 128, 256), (64, 128), (4, 8), (3, 4))
                if m <= max(T, 16) and m * f <= warps * 4096 and m * f >= warps * 256 and (m + f) * k * 2 * stages <= 220 << 10
            ]
            for tile in candidates:

                def product(tile=tile, x=x, w=w, bias=bias, activation=activation) -> object:
                    return gemm.linear(x, w, bias, gelu=activation == "gelu", tile=tile)

                try:
                    rows.append({**where, "tile": str(tile), "default": False, "ms": milliseconds(product)})
                except Exception as error:
                    print(f"  gemm {tile}: {type(error).__name__}", flush=True)
            report_best(rows, "gemm", where)
    return rows


def report_best(rows: list[dict[str, Any]], kernel: str, where: dict[str, Any]) -> None:
    here = [row for row in rows if row["kernel"] == kernel and all(row[key] == value for key, value in where.items())]
    default, best = next(row for row in here if row["default"]), min(here, key=lambda row: row["ms"])
    shape = " ".join(f"{key}={value}" for key, value in where.items() if key != "kernel")
    print(f"  {kernel} {shape}: in use {default['ms']:.4f} ms ({default['tile']}); best {best['ms']:.4f} ms ({best['tile']})", flush=True)


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
    import transformers
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__, "transformers": transformers.__version__}
    if device != "cuda":
        return {"device": "cpu", **versions}
    p = torch.cuda.get_device_properties(0)
    return {"device": p.name, "multiprocessors": p.multi_processor_count, "memory": p.total_memory, "cuda": torch.version.cuda, **versions}


def markdown(result: dict[str, Any]) -> str:
    """The timed part as one table a dtype: rows are subjects, columns are batches."""
    lines = [f"{result['environment']['device']}, torch {result['environment']['torch']}, triton {result['environment']['triton']}", ""]
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
    return "\n".join(lines)


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
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch.cuda.is_available() is False: this needs an NVIDIA GPU and a CUDA build of torch")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = PARTS[options.part](options)
    result = {"environment": environment(options.device), "part": options.part, "rows": rows}
    (options.out / f"{options.part}.json").write_text(json.dumps(result, indent=1))
    if options.part in ("time", "decode", "fp8"):
        (options.out / f"{options.part}.md").write_text(markdown(result))
        print("\n" + markdown(result))
    if options.device == "cuda":
        from bertfast import graphs_cuda

        for reason, count in graphs_cuda.reasons().items():
            print(f"launched kernel by kernel, {count} calls: {reason}")
    return 0 if all(row.get("good", True) for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
