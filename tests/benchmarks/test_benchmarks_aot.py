"""One Triton binary serves all sizes that differ from call to call.

Compiling a binary takes a second or so, in the middle of a request. Nothing is compiled here: the tests compare what launches pass to
the compiler.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

aot = pytest.importorskip("benchmarks.tools.aot_table", reason="triton is published for Linux only")

HALF, INT = torch.float16, torch.int64


def compiler_input(module: object, kernel: str, launch: Callable[[], object]) -> str:
    source, options = aot.what_to_compile(aot.Case("", "", "", "", module, kernel, launch))
    return repr((source.hash(), sorted(options.items())))


def meta(*shape: int, dtype: torch.dtype = HALF) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def stage(T: int, B: int) -> str:
    ids, cu, rows, more = meta(T, dtype=INT), meta(B + 1, dtype=torch.int32), meta(1024, dtype=INT), meta(65, dtype=torch.int32)
    return compiler_input(aot.stage, "_stage_kernel", lambda: aot.stage.stage(ids, ids, ids, cu, ids, rows, rows, rows, more, rows))


def pack(T: int, B: int) -> str:
    tile = aot.tuning.pack_tile(768)
    return compiler_input(aot.pack, "_pack_kernel", lambda: aot.pack.pack(meta(4096, 768), meta(T, dtype=INT), tile=tile))


def unpack(T: int, B: int) -> str:
    tile = aot.tuning.unpack_tile(768)
    return compiler_input(aot.unpack, "_unpack_kernel", lambda: aot.unpack.unpack(meta(T, 768), meta(T, dtype=INT), 4096, tile=tile))


def activation(T: int, B: int) -> str:
    tile = aot.tuning.activation_tile(3072)
    return compiler_input(
        aot.activation_op,
        "_bias_activation_kernel",
        lambda: aot.activation_op.bias_activation(meta(T, 3072), meta(3072), "gelu", tile=tile),
    )


def fp8_activation(T: int, B: int) -> str:
    tile = aot.tuning.fp8_activation_tile(3072, True)
    values, scales = meta(T, 3072, dtype=torch.float8_e4m3fn), meta(24, -(-T // 16) * 16, dtype=torch.float32)

    def launch() -> None:
        aot.fp8_activation.fp8_activation(meta(T, 3072), meta(3072), "gelu", values, scales, tile=tile)

    return compiler_input(aot.fp8_activation, "_fp8_activation_kernel", launch)


def linear(T: int, B: int) -> str:
    tile = aot.tuning.linear_invariant_tile(HALF)
    return compiler_input(aot.linear, "_linear_kernel", lambda: aot.linear.linear(meta(T, 768), meta(768, 768), meta(768), tile=tile))


def varlen_attention(T: int, B: int) -> str:
    tile, cu = aot.tuning.varlen_attention_invariant_tile(HALF, 64), meta(B + 1, dtype=torch.int32)
    q, k, v = meta(T, 3, 12, 64).unbind(1)
    longest = -(-T // B)

    def launch() -> None:
        aot.varlen_attention.varlen_attention(q, k, v, cu, cu, longest, longest, False, None, tile=tile, whole_in_one=False)

    return compiler_input(aot.varlen_attention, "_varlen_attention_kernel", launch)


def add_layer_norm(T: int, B: int) -> str:
    x, vector = meta(T, 768), meta(768)
    return compiler_input(
        aot.add_layer_norm, "_add_layer_norm_kernel", lambda: aot.add_layer_norm.add_layer_norm(x, x, vector, vector, 1e-12, num_warps=4)
    )


def embed_layer_norm(T: int, B: int) -> str:
    ids, table, vector, report = meta(T, dtype=INT), meta(512, 768), meta(768), meta(3, 3, dtype=INT)

    def launch() -> None:
        aot.embed_layer_norm.embed_layer_norm(ids, table, ids, table, ids, table, vector, vector, 1e-12, report=report, num_warps=4)

    return compiler_input(aot.embed_layer_norm, "_embed_layer_norm_kernel", launch)


def cached_attention(T: int, B: int) -> str:
    q, cache, at = meta(B, 12, 64), meta(64, 12, 512, 64), meta(B, dtype=INT)
    tile = aot.tuning.cached_attention_invariant_tile(HALF, 64)
    launch = lambda: aot.cached_attention.cached_attention(q, cache, cache, at, None, at, None, tile=tile)  # noqa: E731
    return compiler_input(aot.cached_attention, "_cached_attention_kernel", launch)


@pytest.mark.parametrize(
    "kernel",
    [stage, pack, unpack, activation, fp8_activation, linear, varlen_attention, add_layer_norm, embed_layer_norm, cached_attention],
    ids=lambda f: f.__name__,
)
def test_one_binary_serves_every_number_of_tokens_and_sequences(kernel):
    sizes = [(1, 1), (16, 1), (17, 3), (256, 16), (4096, 32), (4097, 33), (512, 1)]
    assert len({kernel(T, B) for T, B in sizes}) == 1


def test_every_kernel_file_has_cases():
    """What has none is never compiled ahead of time."""
    files = {path.stem for path in Path(aot.tuning.__file__).parent.glob("*.py")} - {"__init__", "math", "tuning"}
    assert sorted(files - {case.op for case in aot.cases()}) == [], "files without cases in benchmarks/tools/aot_table.py"


def test_other_kernels_are_told_apart():
    """The test above can fail."""
    assert activation(16, 1) != linear(16, 1)
    columns = {
        compiler_input(aot.pack, "_pack_kernel", lambda C=C: aot.pack.pack(meta(64, C), meta(8, dtype=INT), tile=aot.tuning.pack_tile(768)))
        for C in (768, 769, 1)
    }
    assert len(columns) == 3
