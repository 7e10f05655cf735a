"""What the compiler makes of every Triton kernel, for GPUs that are not here: python -m benchmarks aot_table [--help]

Compiles each kernel ahead of time at every entry of its tuning table, and reads the binary: registers, bytes spilled, shared memory,
tensor-core instructions, the width of loads and stores. The kernels' own launchers choose what is compiled: they run on meta tensors
with a log of launches in the kernel's place.

Needs triton and no GPU. TRITON_INTERPRET must not be set: the interpreter replaces the compiler.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bertfast.kernels import activation as activation_op
from bertfast.kernels import (
    add_layer_norm,
    cached_attention,
    embed_layer_norm,
    fp8_activation,
    fp8_add_layer_norm,
    linear,
    pack,
    stage,
    tuning,
    unpack,
    varlen_attention,
    write_cache,
)

ARCHES = (80, 89, 90, 100)
SHARED_LIMIT = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that a block may have
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_POINTEE = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Case:
    """One kernel at one shape: everything the compiler needs but the chip."""

    op: str
    shape: str  # for the reader
    dtype: str
    tile: str
    module: Any
    kernel: str  # its name in the module
    launch: Callable[[], object]  # calls the launcher on meta tensors
    least_arch: int = 80


@dataclass(frozen=True)
class Row:
    """The compiled binary of one case for one chip."""

    op: str
    shape: str
    dtype: str
    tile: str
    arch: int
    registers: int  # a thread
    spilled: int  # bytes of stack and local memory a thread
    shared: int  # bytes a block
    unit: str  # "wgmma", "mma" or "tcgen05" on the tensor cores, "" without them
    loads: dict[str, int]  # from global memory: bytes a thread -> how many
    stores: dict[str, int]


def cases(full: bool = False) -> Iterator[Case]:
    """Every kernel at every tuning entry. full: also the head sizes, hidden sizes and activations that share an entry with another."""
    for name, dtype in DTYPES.items():
        yield from _varlen_attention_cases(name, dtype, full)
        yield from _cached_attention_cases(name, dtype, full)
        yield from _row_cases(name, dtype, full)
        yield from _linear_cases(name, dtype)
        if dtype != torch.float32:
            yield from _fp8_cases(name, dtype, full)
    yield _stage_case()
    yield from _ones_cases()


def _varlen_attention_cases(name: str, dtype: torch.dtype, full: bool) -> Iterator[Case]:
    for D in (16, 32, 48, 64, 96, 128) if full else (32, 64, 96, 128):
        for keys, queries, tile in tuning.varlen_attention_entries(dtype, D):
            longest_k, longest_q = min(keys, 512), min(queries, 512)
            if tuning.varlen_attention_tile(dtype, D, longest_q, longest_k) != tile:
                raise RuntimeError(f"no length reaches the entry {keys}, {queries} of the attention table")
            for causal in (False, True):
                shape = f"D={D} Sq<={longest_q} Sk<={longest_k}{' causal' if causal else ''}"
                yield _varlen_attention_case(shape, name, dtype, D, longest_q, longest_k, causal, tile, tf32=False)
    if dtype == torch.float32:
        tile = tuning.varlen_attention_tile(dtype, 64, 512, 512)
        yield _varlen_attention_case("D=64 Sq<=512 Sk<=512 tf32", name, dtype, 64, 512, 512, False, tile, tf32=True)


def _varlen_attention_case(
    shape: str, name: str, dtype: torch.dtype, D: int, longest_q: int, longest_k: int, causal: bool, tile: varlen_attention.Tile, tf32: bool
) -> Case:
    def launch() -> None:
        qkv = torch.empty(4096, 3, 12, D, dtype=dtype, device="meta")
        cu = torch.empty(33, dtype=torch.int32, device="meta")
        varlen_attention.varlen_attention(*qkv.unbind(1), cu, cu, longest_q, longest_k, causal, None, tile=tile, allow_tf32=tf32)

    return Case("varlen_attention", shape, name, _describe(tile), varlen_attention, "_varlen_attention_kernel", launch)


def _cached_attention_cases(name: str, dtype: torch.dtype, full: bool) -> Iterator[Case]:
    rows = _meta(32, dtype=torch.int64)
    for D in (16, 32, 48, 64, 96, 128) if full else (32, 64, 128):
        q, keys = _meta(32, 3, 12, D, dtype=dtype)[:, 0], _meta(32, 12, 512, D, dtype=dtype)
        for heads, positions, tile in tuning.cached_attention_entries(dtype, D):
            for first in (None, rows) if full or dtype == torch.float16 else (None,):

                def launch(q=q, keys=keys, first=first, tile=tile) -> None:
                    cached_attention.cached_attention(q, keys, keys, rows, first, rows, None, tile=tile)

                shape = f"D={D} heads<={min(heads, 4096)} C>={positions}{'' if first is None else ' first'}"
                yield Case("cached_attention", shape, name, _describe(tile), cached_attention, "_cached_attention_kernel", launch)
            if tile.splits > 1:
                yield Case("join_splits", f"D={D}", name, _describe(tile), cached_attention, "_join_splits_kernel", launch)
        per_program = tuning.write_cache_heads(D)

        def write(q=q, keys=keys, per_program=per_program) -> None:
            write_cache.write_cache(q, q, keys, keys, rows, rows, heads=per_program, num_warps=4)

        yield Case("write_cache", f"D={D}", name, f"heads{per_program} warps4", write_cache, "_write_cache_kernel", write)


def _row_cases(name: str, dtype: torch.dtype, full: bool) -> Iterator[Case]:
    T = 4096
    ids = _meta(T, dtype=torch.int64)
    for H in (384, 768, 1024) if full or dtype == torch.float16 else (768,):
        warps = tuning.layer_norm_warps(H)
        x, table, vector = _meta(T, H, dtype=dtype), _meta(512, H, dtype=dtype), _meta(H, dtype=dtype)
        for residual in (None, x):

            def launch_norm(x=x, residual=residual, vector=vector, warps=warps) -> None:
                add_layer_norm.add_layer_norm(x, residual, vector, vector, 1e-12, num_warps=warps)

            shape = f"H={H}{'' if residual is None else ' residual'}"
            yield Case("add_layer_norm", shape, name, f"warps{warps}", add_layer_norm, "_add_layer_norm_kernel", launch_norm)
        for types in (None, ids):

            def launch_embed(types=types, table=table, vector=vector, warps=warps) -> None:
                report = _meta(3, 3, dtype=torch.int64)
                tables = (ids, table, ids, table, types, table)
                embed_layer_norm.embed_layer_norm(*tables, vector, vector, 1e-12, report=report, num_warps=warps)

            shape = f"H={H}{'' if types is None else ' types'}"
            yield Case("embed_layer_norm", shape, name, f"warps{warps}", embed_layer_norm, "_embed_layer_norm_kernel", launch_embed)

    for activation in sorted(activation_op.ACTIVATIONS) if full or dtype == torch.float16 else ("gelu",):
        tile = tuning.activation_tile(3072)

        def launch_activation(activation=activation, tile=tile) -> None:
            activation_op.bias_activation(_meta(T, 3072, dtype=dtype), _meta(3072, dtype=dtype), activation, tile=tile)

        yield Case("activation", f"F=3072 {activation}", name, _describe(tile), activation_op, "_bias_activation_kernel", launch_activation)

    tile = tuning.pack_tile(768)
    x = _meta(T, 768, dtype=dtype)
    yield Case("pack", "C=768", name, _describe(tile), pack, "_pack_kernel", lambda: pack.pack(x, ids, tile=tile))
    untile = tuning.unpack_tile(768)
    yield Case("unpack", "C=768", name, _describe(untile), unpack, "_unpack_kernel", lambda: unpack.unpack(x, ids, T, tile=untile))


def _linear_cases(name: str, dtype: torch.dtype) -> Iterator[Case]:
    for most, tile in tuning.linear_entries(dtype):
        rows = min(most, 4096)
        for epilogue in ("gelu", "bias"):

            def launch(rows=rows, tile=tile, epilogue=epilogue) -> None:
                x, weight, bias = _meta(rows, 768, dtype=dtype), _meta(768, 768, dtype=dtype), _meta(768, dtype=dtype)
                linear.linear(x, weight, bias, gelu=epilogue == "gelu", tile=tile)

            yield Case("linear", f"T<={rows} {epilogue}", name, _describe(tile), linear, "_linear_kernel", launch)


def _fp8_cases(name: str, dtype: torch.dtype, full: bool) -> Iterator[Case]:
    T = 4096
    for H in (384, 768, 1024) if full else (768,):
        warps = tuning.layer_norm_warps(H)

        def launch_norm(H=H, warps=warps) -> None:
            x, vector, values = _meta(T, H, dtype=dtype), _meta(H, dtype=dtype), _meta(T, H, dtype=torch.float8_e4m3fn)
            fp8_add_layer_norm.fp8_add_layer_norm(x, x, vector, vector, 1e-12, values, _meta(T, dtype=torch.float32), num_warps=warps)

        yield Case("fp8_add_layer_norm", f"H={H}", name, f"warps{warps}", fp8_add_layer_norm, "_fp8_add_layer_norm_kernel", launch_norm, 89)
    shapes = [(768, None), (1536, "gelu"), (3072, "gelu"), (4096, "gelu"), (3072, "gelu_new")] if full else [(768, None), (3072, "gelu")]
    for (F, activation), by_group in itertools.product(shapes, (False, True)):
        tile = tuning.fp8_activation_tile(F, by_group)

        def launch(F=F, activation=activation, by_group=by_group, tile=tile) -> None:
            x, values = _meta(T, F, dtype=dtype), _meta(T, F, dtype=torch.float8_e4m3fn)
            scales, bias = _meta(F // 128 if by_group else 1, T, dtype=torch.float32), None if activation is None else _meta(F, dtype=dtype)
            fp8_activation.fp8_activation(x, bias, activation, values, scales, tile=tile)

        shape = f"F={F} {activation or 'as it is'} by {'groups' if by_group else 'rows'}"
        yield Case("fp8_activation", shape, name, _describe(tile), fp8_activation, "_fp8_activation_kernel", launch, 89)


def _stage_case() -> Case:
    def launch() -> None:
        ids, ids_out = _meta(1000, dtype=torch.int64), _meta(1024, dtype=torch.int64)
        cu, cu_out = _meta(33, dtype=torch.int32), _meta(65, dtype=torch.int32)
        stage.stage(ids, ids, ids, cu, ids[:32], ids_out, ids_out, ids_out, cu_out, ids_out[:64])

    return Case("stage", "Tb=1024 Bb=64", "int64", "", stage, "_stage_kernel", launch)


def _ones_cases() -> Iterator[Case]:
    """Arguments of 1, which Triton turns into constants: another binary."""
    half, ids = torch.float16, _meta(32, dtype=torch.int64)
    cu = _meta(33, dtype=torch.int32)
    table, vector, report = _meta(1, 768, dtype=half), _meta(768, dtype=half), _meta(3, 3, dtype=torch.int64)
    one_head, cache, column = _meta(32, 3, 1, 64, dtype=half), _meta(32, 1, 512, 64, dtype=half), _meta(4096, 1, dtype=half)
    tile, warps = tuning.varlen_attention_tile(half, 64, 1, 128), tuning.layer_norm_warps(768)
    cached_tile, q, heads = tuning.cached_attention_tile(half, 64, 32, 512), one_head[:, 0], tuning.write_cache_heads(64)
    launches: list[tuple[str, Any, str, Any, Callable[[], object]]] = [
        ("one head", varlen_attention, "_varlen_attention_kernel", tile,
         lambda: varlen_attention.varlen_attention(*one_head.unbind(1), cu, cu, 1, 128, False, None, tile=tile)),
        ("one head", cached_attention, "_cached_attention_kernel", cached_tile,
         lambda: cached_attention.cached_attention(q, cache, cache, ids, None, ids, None, tile=cached_tile)),
        ("one head", write_cache, "_write_cache_kernel", None,
         lambda: write_cache.write_cache(q, q, cache, cache, ids, ids, heads=heads, num_warps=4)),
        ("tables of one row", embed_layer_norm, "_embed_layer_norm_kernel", None,
         lambda: embed_layer_norm.embed_layer_norm(
             ids, table, ids, table, ids, table, vector, vector, 1e-12, report=report, num_warps=warps)),
        ("one column", activation_op, "_bias_activation_kernel", tuning.activation_tile(1),
         lambda: activation_op.bias_activation(column, column[0], "gelu", tile=tuning.activation_tile(1))),
        ("one column", pack, "_pack_kernel", tuning.pack_tile(1), lambda: pack.pack(column, ids, tile=tuning.pack_tile(1))),
        ("one column", unpack, "_unpack_kernel", tuning.unpack_tile(1),
         lambda: unpack.unpack(column[:32], ids, 64, tile=tuning.unpack_tile(1))),
        ("one input, one feature", linear, "_linear_kernel", tuning.linear_tile(half, 4096),
         lambda: linear.linear(column, column[:1], column[0], tile=tuning.linear_tile(half, 4096))),
    ]  # fmt: skip
    for shape, module, kernel, used, launch in launches:
        yield Case("ones", f"{kernel.strip('_')}: {shape}", "float16", "" if used is None else _describe(used), module, kernel, launch)


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _describe(tile: Any) -> str:
    return " ".join(f"{key.removeprefix('block_').removeprefix('num_')}{value}" for key, value in asdict(tile).items())


class _LaunchLog:
    """Stands in for a kernel in its module and keeps the arguments of its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **options: self.launches.append((args, options))


def what_to_compile(case: Case) -> tuple[ASTSource, dict[str, Any]]:
    """The compiler's input for a launch of this case, and its options: cases with equal ones share a binary."""
    kernels = {name: value for name, value in vars(case.module).items() if isinstance(value, triton.JITFunction)}
    kernel, logs = kernels[case.kernel], {name: _LaunchLog() for name in kernels}
    try:
        for name, log in logs.items():
            setattr(case.module, name, log)
        case.launch()
    finally:
        for name, value in kernels.items():
            setattr(case.module, name, value)
    [(args, keywords)] = logs[case.kernel].launches
    given = dict(zip(kernel.arg_names, args, strict=False)) | keywords
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        signature[name], divisible = _specialise(given[name], kernel.params[i])
        if signature[name] == "constexpr":
            constants[name] = given[name]
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return source, {key: value for key, value in keywords.items() if key not in kernel.arg_names}


def compile_case(case: Case, arch: int) -> Row:
    source, options = what_to_compile(case)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

    ptx = compiled.asm["ptx"]
    registers, spilled = _resources(compiled.asm["cubin"])
    loads = Counter(str(_width(line)) for line in ptx.splitlines() if re.search(r"\bld\.global|\bcp\.async\.c[ag]", line))
    stores = Counter(str(_width(line)) for line in ptx.splitlines() if re.search(r"\bst\.global", line))
    unit = next((unit for unit in ("tcgen05.mma", "wgmma.mma", "mma.sync") if unit in ptx), "").split(".")[0]
    shared = compiled.metadata.shared
    return Row(case.op, case.shape, case.dtype, case.tile, arch, registers, spilled, shared, unit, dict(loads), dict(stores))


def _specialise(value: Any, parameter: Any) -> tuple[str, bool]:
    """The type, and whether 16 divides the value: how Triton's launch specialises an argument."""
    if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
        return "constexpr", False
    if isinstance(value, torch.Tensor):  # torch's allocator aligns to 512 bytes
        return "*" + _POINTEE[value.dtype], not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
    if isinstance(value, float):
        return "fp32", False
    return "i32", value % 16 == 0 and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, which hold spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _width(line: str) -> int:
    """Bytes per thread of this PTX instruction."""
    copy = re.search(r"cp\.async.*\],\s*(0x[0-9a-f]+|\d+)", line)
    if copy:
        return int(copy.group(1), 0)
    vector, element = re.search(r"\.v(\d)\.", line), re.search(r"\.[bfus](\d+)\s", line)
    if element is None:
        raise RuntimeError(f"cannot read the width of {line.strip()!r}")
    return int(element.group(1)) // 8 * (int(vector.group(1)) if vector else 1)


def _compile_numbered(job: tuple[int, bool, int]) -> Row:
    number, full, arch = job
    return compile_case(_all_cases(full)[number], arch)


_CASES: dict[bool, list[Case]] = {}


def _all_cases(full: bool) -> list[Case]:
    return _CASES.setdefault(full, list(cases(full)))


def table(arches: Iterable[int] = ARCHES, full: bool = False, only: str = "") -> list[Row]:
    """A row for every case and chip; compiles on all cores."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET is 1, expected unset: the interpreter replaces the compiler")
    chosen = [number for number, case in enumerate(_all_cases(full)) if only in f"{case.op} {case.shape} {case.dtype}"]
    jobs = [(number, full, arch) for arch in arches for number in chosen if arch >= _all_cases(full)[number].least_arch]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(_compile_numbered, jobs))


def show(rows: list[Row]) -> str:
    def columns(row: Row) -> list[str]:
        widths = [
            " ".join(f"{count}x{width}" for width, count in sorted(d.items(), key=lambda kv: -int(kv[0]))) for d in (row.loads, row.stores)
        ]
        return [str(value) for value in astuple(row)[:9]] + widths

    lines = [[field.name for field in fields(Row)], *map(columns, rows)]
    wide = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks aot_table", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHES), help="Compute capabilities, 90 for sm_90. Default: all.")
    parser.add_argument(
        "--full", action="store_true", help="Every head size, hidden size and activation, also those that share a tuning entry."
    )
    parser.add_argument("--only", default="", help="Only cases whose op, shape or dtype contains this: linear, D=64, float16.")
    parser.add_argument("--json", type=Path, help="Write the rows to this file as well.")
    options = parser.parse_args(arguments)
    rows = table(options.arch, options.full, options.only)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(show(rows))
    bad = [row for row in rows if row.arch < 100 and (row.spilled or row.shared > SHARED_LIMIT[row.arch])]
    if bad:
        print("\nspilled, or more shared memory than the chip has:\n" + show(bad), file=sys.stderr)
    return 1 if bad else 0
