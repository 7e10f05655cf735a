"""The search for the entries of kernels/fused/tuning.py: times the tiles in use beside the other candidates.

It compiles hundreds of kernels, a second or two each: first on all cores into triton's cache on disk. Only then one process measures.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.gpu.adapters import DTYPES
from benchmarks.gpu.options import Options


@dataclass(frozen=True)
class Candidate:
    tile: str
    default: bool  # in use
    run: Callable[[], object]
    binary: Hashable | None  # of the compiled kernel, which candidates may share; None: nothing to compile


@dataclass(frozen=True)
class Problem:
    """One kernel at one shape."""

    where: dict[str, Any]
    candidates: Callable[[], list[Candidate]]  # makes the operands


def problems(dtype: torch.dtype, device: str = "cuda") -> Iterator[Problem]:
    """Forwards first, by their share of the time, then generation."""
    yield from _varlen_attention_problems(dtype, device)
    yield from _linear_problems(dtype, device)
    yield from _cached_attention_problems(dtype, device)


def _varlen_attention_problems(dtype: torch.dtype, device: str) -> Iterator[Problem]:
    from bertfast.kernels import tuning, varlen_attention

    def candidates(D: int, S: int) -> list[Candidate]:
        B, N = max(8192 // S, 1), 768 // D
        q, k, v = torch.randn(B * S, 3, N, D, dtype=dtype, device=device).unbind(1)
        cu = torch.arange(B + 1, dtype=torch.int32, device=device) * S
        default = tuning.varlen_attention_tile(dtype, D, S, S)
        found = []
        for m, n, warps, stages in itertools.product((16, 32, 64, 128), (16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 3)):
            tile = varlen_attention.Tile(m, n, warps, stages)
            sensible = m <= max(S, 16) and n <= max(S, 16) and m * n >= warps * 256 and m * n <= warps * 4096
            if tile == default or (sensible and (stages == 1) == (n >= S)):

                def run(tile: Any = tile) -> object:
                    return varlen_attention.varlen_attention(q, k, v, cu, cu, S, S, False, None, tile=tile)

                found.append(Candidate(str(tile), tile == default, run, ("varlen_attention", D, tile, n >= S)))
        return found

    for D, S in itertools.product((64, 32), (16, 32, 64, 128, 256, 512)):
        yield Problem({"kernel": "varlen_attention", "dtype": str(dtype)[6:], "D": D, "S": S}, lambda D=D, S=S: candidates(D, S))


def _linear_problems(dtype: torch.dtype, device: str) -> Iterator[Problem]:
    from bertfast.kernels import linear
    from bertfast.ops import cuda

    def candidates(K: int, F: int, activation: str | None, T: int) -> list[Candidate]:
        x, w = (torch.randn(rows, K, dtype=dtype, device=device) for rows in (T, F))
        bias = torch.randn(F, dtype=dtype, device=device)
        found = [Candidate("cuBLAS", True, lambda: cuda.linear(x, w, bias, activation), None)]
        for m, f, k, warps, stages in itertools.product((16, 64, 128), (64, 128, 256), (64, 128), (4, 8), (3, 4)):
            if m <= max(T, 16) and m * f <= warps * 4096 and m * f >= warps * 256 and (m + f) * k * 2 * stages <= 220 << 10:
                tile = linear.Tile(m, f, k, warps, stages)

                def run(tile: Any = tile) -> object:
                    return linear.linear(x, w, bias, gelu=activation == "gelu", tile=tile)

                found.append(Candidate(str(tile), False, run, ("linear", tile, activation)))
        return found

    products = ((768, 3072, "gelu"), (3072, 768, None), (768, 2304, None), (768, 768, None))
    for (K, F, activation), T in itertools.product(products, (16, 128, 512, 1024, 4096, 16384)):
        where = {"kernel": "linear", "dtype": str(dtype)[6:], "K": K, "F": F, "T": T}
        yield Problem(where, lambda K=K, F=F, activation=activation, T=T: candidates(K, F, activation, T))


def _cached_attention_problems(dtype: torch.dtype, device: str) -> Iterator[Problem]:
    from bertfast.kernels import cached_attention, tuning

    def candidates(D: int, B: int, C: int) -> list[Candidate]:
        N = 768 // D
        q = torch.randn(B, N, D, dtype=dtype, device=device)
        keys = torch.randn(B, N, C, D, dtype=dtype, device=device)
        rows, last = torch.arange(B, device=device), torch.full((B,), C, device=device)
        default = tuning.cached_attention_tile(dtype, D, B * N, C)
        found = []
        for block, splits, warps in itertools.product((16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 4, 8)):
            tile = cached_attention.Tile(block, splits, warps)
            if tile == default or (block * splits <= C and 256 <= block * D // warps <= 4096):

                def run(tile: Any = tile) -> object:
                    return cached_attention.cached_attention(q, keys, keys, rows, None, last, None, tile=tile)

                found.append(Candidate(str(tile), tile == default, run, ("cached_attention", D, tile)))
        return found

    for (D, B), C in itertools.product(((64, 1), (64, 4), (64, 16), (64, 32), (32, 1), (32, 32)), (64, 128, 256, 512)):
        where = {"kernel": "cached_attention", "dtype": str(dtype)[6:], "D": D, "B": B, "C": C}
        yield Problem(where, lambda D=D, B=B, C=C: candidates(D, B, C))


def to_compile(dtype: torch.dtype) -> list[tuple[int, int]]:
    """(problem, candidate) numbers, one pair per compiled kernel."""
    found: dict[Hashable, tuple[int, int]] = {}
    for i, problem in enumerate(problems(dtype, "meta")):
        for j, candidate in enumerate(problem.candidates()):
            if candidate.binary is not None:
                found.setdefault(candidate.binary, (i, j))
    return list(found.values())


def _compile_share(job: tuple[torch.dtype, int, int, float]) -> None:
    dtype, share, shares, seconds = job
    begin = time.monotonic()
    known = list(problems(dtype))
    for i, mine in itertools.groupby(to_compile(dtype)[share::shares], key=lambda numbers: numbers[0]):
        candidates = known[i].candidates()
        for _, j in mine:
            if time.monotonic() - begin > seconds:
                return
            try:
                candidates[j].run()
            except Exception:  # such as too little shared memory; reported when it is measured
                continue
    torch.cuda.synchronize()


def compile_all(dtypes: list[torch.dtype], seconds: float) -> None:
    workers = max(min((os.cpu_count() or 1) - 1, 14), 1)
    jobs = [(dtype, share, workers, seconds / len(dtypes)) for dtype in dtypes for share in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile_share, jobs))


def tune(options: Options) -> list[dict[str, Any]]:
    """varlen_attention, linear and cached_attention over candidate tiles; linear beside cuBLAS with the activation kernel."""
    from triton.testing import do_bench

    rows: list[dict[str, Any]] = []
    dtypes = [DTYPES[name] for name in options.dtypes if name != "float32"]
    begin = time.monotonic()
    compile_all(dtypes, options.seconds / 2 if math.isfinite(options.seconds) else 600.0)
    print(f"  compiled in {time.monotonic() - begin:.0f} s", flush=True)
    for dtype in dtypes:
        for problem in problems(dtype):
            shape = " ".join(f"{key}={value}" for key, value in problem.where.items())
            if not options.reach(shape):
                continue
            for candidate in problem.candidates():
                row = {**problem.where, "tile": candidate.tile, "default": candidate.default}
                try:
                    rows.append({**row, "ms": float(do_bench(candidate.run, warmup=5, rep=20, return_mode="median"))})
                except Exception as error:
                    print(f"  {shape} {candidate.tile}: {type(error).__name__}", flush=True)
            report_best([row for row in rows if all(row.get(key) == value for key, value in problem.where.items())], shape)
            options.keep(rows)
    print("\nTRITON_LINEAR_WINS for kernels/fused/tuning.py, by the tiles in use:")
    for line in triton_linear_wins(rows, torch.cuda.get_device_name()) or ["    nothing: cuBLAS is as fast or faster at every shape"]:
        print(line, flush=True)
    return rows


def triton_linear_wins(rows: list[dict[str, Any]], device_name: str) -> list[str]:
    """The lines for kernels/fused/tuning.py: the products for which the tile in use beats cuBLAS from some number of rows on."""
    from bertfast.kernels import tuning

    found = []
    products = dict.fromkeys((row["dtype"], row["K"], row["F"]) for row in rows if row["kernel"] == "linear")
    for dtype, K, F in products:
        here = [row for row in rows if row["kernel"] == "linear" and (row["dtype"], row["K"], row["F"]) == (dtype, K, F)]
        least = None
        for T in sorted({row["T"] for row in here}, reverse=True):
            ms = {row["tile"]: row["ms"] for row in here if row["T"] == T}
            used = str(tuning.linear_tile(DTYPES[dtype], T))
            if used not in ms or "cuBLAS" not in ms or ms[used] >= ms["cuBLAS"]:
                break
            least = T
        if least is not None:
            found.append(f"    ({device_name!r}, torch.{dtype}, {K}, {F}): {least},")
    return found


def report_best(here: list[dict[str, Any]], shape: str) -> None:
    """`here`: the rows of one problem's candidates that ran; the tile in use may not have."""
    default = next((f"{row['ms']:.4f} ms ({row['tile']})" for row in here if row["default"]), "did not run")
    best = min(here, key=lambda row: row["ms"], default=None)
    said = f"{best['ms']:.4f} ms ({best['tile']})" if best else "nothing ran"
    print(f"  {shape}: in use {default}; best {said}", flush=True)
