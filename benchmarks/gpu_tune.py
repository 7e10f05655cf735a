"""python -m benchmarks.gpu tune: the entries of kernels/fused/tuning.py over the tiles that could take their place."""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_common import DTYPES


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
            default = tuning.decode_tile(dtype, D, B * N, C)
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
