"""Every Triton kernel compiled ahead of time for GPUs that are not here, and what its binary holds: run with -s to see the table.

Head sizes 32, 64, 128 and in varlen_attention 96 stand for those that share their tuning entries; `python -m benchmarks aot_table --full`
compiles the others too (every head size, hidden size and activation in every dtype) and fails on the same faults.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERYWHERE = {
    "activation", "add_layer_norm", "cached_attention", "embed_layer_norm", "join_splits", "linear", "ones", "pack", "unpack",
    "varlen_attention", "write_cache",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Compiled in another process: one that runs the interpreter cannot compile, and this one may run it."""
    pytest.importorskip("triton", reason="triton is published for Linux only")
    folder = tmp_path_factory.mktemp("aot")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = []
    for arches, only in ((["80", "89", "90"], ""), (["100"], "float16")):
        command = [sys.executable, "-m", "benchmarks", "aot_table", "--json", str(folder / "rows.json"), "--only", only, "--arch", *arches]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
        print(run.stdout)
        assert (folder / "rows.json").exists(), run.stdout + run.stderr
        found += json.loads((folder / "rows.json").read_text())
        (folder / "rows.json").unlink()
    return found


def faults(rows: list[dict], fault) -> str:
    return "\n".join(str(row) for row in rows if fault(row))


def test_every_kernel_compiles_for_every_chip(rows):
    for arch in (80, 89, 90, 100):
        ops = {row["op"] for row in rows if row["arch"] == arch}
        fp8 = {"fp8_add_layer_norm", "fp8_activation"} if arch >= 89 else set()
        expected_here = EVERYWHERE | fp8 | ({"stage"} if arch < 100 else set())
        assert ops == expected_here
    assert {row["dtype"] for row in rows if row["arch"] == 90} == {"float16", "bfloat16", "float32", "int64"}


def test_no_register_is_spilled(rows):
    assert not faults(rows, lambda row: row["arch"] < 100 and row["spilled"] > 0)


def test_shared_memory_fits_the_chip(rows):
    limits = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
    assert not faults(rows, lambda row: row["shared"] > limits[row["arch"]])


def test_products_in_half_precision_run_on_the_tensor_cores(rows):
    def wanted(row: dict) -> str:
        tile_rows = int(re.match(r"m(\d+)", row["tile"]).group(1))
        return "wgmma" if row["arch"] == 90 and tile_rows >= 64 else "mma"

    products = [row for row in rows if row["op"] in ("varlen_attention", "linear")]
    half = [row for row in products if row["dtype"] != "float32" and row["arch"] <= 90]
    assert any(wanted(row) == "wgmma" for row in half)
    assert not faults(half, lambda row: row["unit"] != wanted(row))
    # float32 stays float32 unless tf32 was asked for.
    assert not faults(products, lambda row: row["dtype"] == "float32" and (row["unit"] != "") != ("tf32" in row["shape"]))
    assert all(row["unit"] for row in products if row["arch"] == 100 and row["dtype"] != "float32")


def test_rows_move_sixteen_bytes_at_a_time(rows):
    """Narrower loads are only the three ids of an embedding row, the row and position of a cache entry, the indices of two rows that are
    moved at once, and the bias of an activation tile, read once for its rows."""
    narrow_loads = {"embed_layer_norm": 3, "activation": 1, "fp8_activation": 1, "write_cache": 2, "pack": 2, "unpack": 2}
    by_tiles = ("varlen_attention", "linear", "cached_attention", "join_splits")  # they also load single values for a row or a program
    elementwise = [row for row in rows if row["op"] not in (*by_tiles, "stage", "ones")]

    def fault(row: dict) -> bool:
        narrow = sum(count for width, count in row["loads"].items() if int(width) < 16)
        reports = 9 if row["op"] == "embed_layer_norm" else 0  # three integers for each kind of id, written only when one is wrong
        if row["op"].startswith("fp8_"):  # stores a scale, and eight values, loaded as 16 bytes, as 8
            return narrow > narrow_loads.get(row["op"], 0) or set(row["stores"]) - {"16", "8", "4"} or row["stores"].get("4") != 1
        narrow_stores = sum(count for width, count in row["stores"].items() if int(width) < 16)
        return "16" not in row["loads"] or "16" not in row["stores"] or narrow > narrow_loads.get(row["op"], 0) or narrow_stores > reports

    assert not faults(elementwise, fault)
    assert not faults(rows, lambda row: row["op"] in ("varlen_attention", "linear") and "16" not in row["loads"])
