"""The tuning constants of the Triton kernels: a tile for each shape.

A tile changes a kernel's speed, and in attention and linear the order of its sums; nothing else. Not measured on a GPU yet: these
follow BERT's shapes and compile without register spills for sm_80, sm_89 and sm_90 within 99 KiB of shared memory, the least of these
chips. `python -m benchmarks aot_table` prints what each tile takes.
"""

from dataclasses import replace

import torch

from . import activation, cached_attention, fp8_activation, linear, pack, unpack, varlen_attention


def layer_norm_warps(H: int) -> int:
    """Eight elements a thread: one 16-byte load in half precision. Depends on H alone: a row has the same bits in any batch."""
    return min(max(_power_of_two(H) // 256, 1), 8)


# varlen_attention: (most keys, most queries of a sequence, tile), the first that fits. Up to 128 keys, one tile holds the whole sequence.
# 64 rows or more let sm_90 use wgmma.
_ANY = 1 << 31
VarlenAttentionEntries = list[tuple[int, int, varlen_attention.Tile]]

_VARLEN_ATTENTION_HALF: dict[int, VarlenAttentionEntries] = {  # by the largest D that it is for
    64: [
        (16, 16, varlen_attention.Tile(16, 16, 1, 1)),
        (32, 32, varlen_attention.Tile(32, 32, 2, 1)),
        (64, 16, varlen_attention.Tile(16, 64, 4, 1)),  # a few queries against a short cache
        (64, _ANY, varlen_attention.Tile(64, 64, 4, 1)),
        (_ANY, 16, varlen_attention.Tile(16, 64, 4, 3)),
        (128, _ANY, varlen_attention.Tile(64, 128, 4, 1)),
        (_ANY, _ANY, varlen_attention.Tile(128, 64, 8, 3)),
    ],
    128: [
        (32, 32, varlen_attention.Tile(32, 32, 2, 1)),
        (64, 16, varlen_attention.Tile(16, 64, 8, 1)),
        (64, _ANY, varlen_attention.Tile(64, 64, 4, 1)),
        (_ANY, 16, varlen_attention.Tile(16, 64, 4, 2)),
        (_ANY, _ANY, varlen_attention.Tile(128, 64, 8, 2)),
    ],
}
_VARLEN_ATTENTION_FLOAT32: dict[int, VarlenAttentionEntries] = {  # IEEE products run on the ordinary units, both operands in registers
    32: [
        (16, 16, varlen_attention.Tile(16, 16, 1, 1)),
        (_ANY, 16, varlen_attention.Tile(16, 32, 4, 1)),
        (_ANY, _ANY, varlen_attention.Tile(32, 32, 4, 1)),
    ],
    64: [
        (16, 16, varlen_attention.Tile(16, 16, 1, 1)),
        (_ANY, 16, varlen_attention.Tile(16, 32, 4, 1)),
        (_ANY, _ANY, varlen_attention.Tile(32, 32, 8, 1)),
    ],
    127: [  # no power of two: masks of columns past D need registers
        (_ANY, 16, varlen_attention.Tile(16, 16, 8, 1)),
        (_ANY, _ANY, varlen_attention.Tile(32, 16, 8, 1)),
    ],
    128: [
        (_ANY, 16, varlen_attention.Tile(16, 16, 8, 1)),
        (_ANY, _ANY, varlen_attention.Tile(32, 32, 8, 1)),
    ],
}


def varlen_attention_entries(dtype: torch.dtype, D: int) -> VarlenAttentionEntries:
    table = _VARLEN_ATTENTION_FLOAT32 if dtype == torch.float32 else _VARLEN_ATTENTION_HALF
    return next(entries for widest, entries in table.items() if widest >= D)


def varlen_attention_tile(dtype: torch.dtype, D: int, max_seqlen_q: int, max_seqlen_k: int) -> varlen_attention.Tile:
    for keys, queries, tile in varlen_attention_entries(dtype, D):
        if max_seqlen_k <= keys and max_seqlen_q <= queries:
            return tile
    raise ValueError(f"max_seqlen_q={max_seqlen_q}, max_seqlen_k={max_seqlen_k}: expected less than 2 ** 31")


def varlen_attention_invariant_tile(dtype: torch.dtype, D: int) -> varlen_attention.Tile:
    """One tile for every length: a sequence's bits do not depend on the longest of its batch."""
    return varlen_attention_tile(dtype, D, _ANY, _ANY)


# cached_attention: (most heads of queries, fewest cache positions, tile), the first that fits. A head of a query is one program;
# with fewer than about two programs a multiprocessor, a long range is split.
CachedAttentionEntries = list[tuple[int, int, cached_attention.Tile]]

_CACHED_ATTENTION: dict[int, CachedAttentionEntries] = {  # by the largest D that it is for
    32: [
        (64, 256, cached_attention.Tile(64, 4, 4)),
        (256, 256, cached_attention.Tile(64, 2, 4)),
        (_ANY, 0, cached_attention.Tile(64, 1, 4)),
    ],
    64: [
        (64, 256, cached_attention.Tile(64, 4, 4)),
        (256, 256, cached_attention.Tile(64, 2, 4)),
        (_ANY, 0, cached_attention.Tile(64, 1, 4)),
    ],
    128: [
        (64, 256, cached_attention.Tile(32, 4, 4)),
        (256, 256, cached_attention.Tile(32, 2, 4)),
        (_ANY, 0, cached_attention.Tile(32, 1, 4)),
    ],
}


def cached_attention_entries(dtype: torch.dtype, D: int) -> CachedAttentionEntries:
    entries = next(entries for widest, entries in _CACHED_ATTENTION.items() if widest >= D)
    if dtype != torch.float32:
        return entries
    return [(most, fewest, replace(tile, block_c=tile.block_c // 2)) for most, fewest, tile in entries]  # as many bytes a thread


def cached_attention_tile(dtype: torch.dtype, D: int, query_heads: int, positions: int) -> cached_attention.Tile:
    return next(tile for most, fewest, tile in cached_attention_entries(dtype, D) if query_heads <= most and positions >= fewest)


def cached_attention_invariant_tile(dtype: torch.dtype, D: int) -> cached_attention.Tile:
    """One tile for every batch and cache: a sequence's bits do not depend on the others."""
    return cached_attention_tile(dtype, D, _ANY, 0)


def write_cache_heads(D: int) -> int:
    """Heads a program: about 1,024 elements, eight a thread of four warps."""
    return max(1024 // _power_of_two(D), 1)


def activation_tile(F: int) -> activation.Tile:
    """Sixteen elements a thread; 256 columns divide every F that BERT has."""
    return activation.Tile(rows=8, columns=256, num_warps=4) if F >= 256 else activation.Tile(rows=32, columns=64, num_warps=4)


def fp8_activation_tile(F: int, by_group: bool) -> fp8_activation.Tile:
    """With scales of groups as activation_tile; with a scale for each row, whole rows, at most eight warps."""
    if by_group:
        return fp8_activation.Tile(rows=8, columns=256, num_warps=4)
    columns = _power_of_two(F)
    return fp8_activation.Tile(rows=max(1024 // columns, 1), columns=columns, num_warps=min(max(columns // 256, 4), 8))


def pack_tile(C: int) -> pack.Tile:
    """About 2,048 elements, as wide as the rows allow."""
    columns = min(_power_of_two(C), 1024)
    return pack.Tile(rows=max(2048 // columns, 1) if columns > 8 else 256, columns=columns, num_warps=4)


def unpack_tile(C: int) -> unpack.Tile:
    """That of pack: it moves the same rows."""
    tile = pack_tile(C)
    return unpack.Tile(tile.rows, tile.columns, tile.num_warps)


# linear: (most rows, tile). Few rows get small tiles, so that programs fill the chip.
_LINEAR_HALF = [
    (16, linear.Tile(16, 64, 128, 4, 4)),
    (64, linear.Tile(64, 64, 64, 4, 4)),
    (2048, linear.Tile(64, 128, 64, 4, 3)),
    (_ANY, linear.Tile(128, 128, 64, 8, 3)),
]
_LINEAR_FLOAT32 = [
    (_ANY, linear.Tile(32, 32, 32, 4, 2)),
]


def linear_entries(dtype: torch.dtype) -> list[tuple[int, linear.Tile]]:
    return _LINEAR_FLOAT32 if dtype == torch.float32 else _LINEAR_HALF


def linear_tile(dtype: torch.dtype, rows: int) -> linear.Tile:
    return next(tile for most, tile in linear_entries(dtype) if rows <= most)


def linear_invariant_tile(dtype: torch.dtype) -> linear.Tile:
    """One tile for every batch: a row's bits do not depend on the others."""
    return linear_tile(dtype, 2048)


# Where the Triton linear kernel was measured faster than cuBLAS with the activation kernel: {(device name, dtype, K, F): fewest rows}.
# benchmarks/gpu.sh prints entries; there are none yet, so cuBLAS computes every product.
TRITON_LINEAR_WINS: dict[tuple[str, torch.dtype, int, int], int] = {}


def triton_linear_wins(device_name: str, dtype: torch.dtype, rows: int, K: int, F: int) -> bool:
    least = TRITON_LINEAR_WINS.get((device_name, dtype, K, F))
    return least is not None and rows >= least


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
