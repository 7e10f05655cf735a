"""The only magic numbers of the Triton kernels: which tile for which shape.

A tile changes the speed of a kernel, and in attention and the GEMM also the order of its sums; never its meaning. No GPU has
measured these yet: they are what compiles without register spills for sm_80, sm_89 and sm_90 within 99 KiB of shared memory, the
least that these chips have, and follows the shapes of BERT. `python -m benchmarks aot_table` prints what each takes.
"""

from dataclasses import replace

import torch

from . import attention, decode, fp8, gelu, gemm, pack


def layer_norm_warps(H: int) -> int:
    """Eight elements a thread: one 16-byte load in half precision. Of H alone, so that a row's bits are the same in any batch."""
    return min(max(_power_of_two(H) // 256, 1), 8)


# Attention: (longest key sequence, longest query sequence) up to which an entry holds, in order; the last takes the rest. Up
# to 128 keys the whole sequence lies in one tile of keys. Rows of 64 and more let sm_90 use wgmma.
_ANY = 1 << 31
AttentionEntries = list[tuple[int, int, attention.Tile]]

_ATTENTION_HALF: dict[int, AttentionEntries] = {  # by the widest D that it takes
    64: [
        (16, 16, attention.Tile(16, 16, 1, 1)),
        (32, 32, attention.Tile(32, 32, 2, 1)),
        (64, 16, attention.Tile(16, 64, 4, 1)),  # a few queries against a short cache
        (64, _ANY, attention.Tile(64, 64, 4, 1)),
        (_ANY, 16, attention.Tile(16, 64, 4, 3)),
        (128, _ANY, attention.Tile(64, 128, 4, 1)),
        (_ANY, _ANY, attention.Tile(128, 64, 8, 3)),
    ],
    128: [
        (32, 32, attention.Tile(32, 32, 2, 1)),
        (64, 16, attention.Tile(16, 64, 8, 1)),
        (64, _ANY, attention.Tile(64, 64, 4, 1)),
        (_ANY, 16, attention.Tile(16, 64, 4, 2)),
        (_ANY, _ANY, attention.Tile(128, 64, 8, 2)),
    ],
}
_ATTENTION_FLOAT32: dict[int, AttentionEntries] = {  # IEEE products run on the ordinary units and keep both operands in registers
    32: [
        (16, 16, attention.Tile(16, 16, 1, 1)),
        (_ANY, 16, attention.Tile(16, 32, 4, 1)),
        (_ANY, _ANY, attention.Tile(32, 32, 4, 1)),
    ],
    64: [
        (16, 16, attention.Tile(16, 16, 1, 1)),
        (_ANY, 16, attention.Tile(16, 32, 4, 1)),
        (_ANY, _ANY, attention.Tile(32, 32, 8, 1)),
    ],
    127: [  # no power of two: the masks of the columns past D take registers of their own
        (_ANY, 16, attention.Tile(16, 16, 8, 1)),
        (_ANY, _ANY, attention.Tile(32, 16, 8, 1)),
    ],
    128: [
        (_ANY, 16, attention.Tile(16, 16, 8, 1)),
        (_ANY, _ANY, attention.Tile(32, 32, 8, 1)),
    ],
}


def attention_entries(dtype: torch.dtype, D: int) -> AttentionEntries:
    table = _ATTENTION_FLOAT32 if dtype == torch.float32 else _ATTENTION_HALF
    return next(entries for widest, entries in table.items() if widest >= D)


def attention_tile(dtype: torch.dtype, D: int, max_seqlen_q: int, max_seqlen_k: int) -> attention.Tile:
    for keys, queries, tile in attention_entries(dtype, D):
        if max_seqlen_k <= keys and max_seqlen_q <= queries:
            return tile
    raise ValueError(f"max_seqlen_q={max_seqlen_q}, max_seqlen_k={max_seqlen_k}: expected less than 2 ** 31")


def attention_invariant_tile(dtype: torch.dtype, D: int) -> attention.Tile:
    """One tile for every length, so that a sequence's bits do not depend on the longest in its batch."""
    return attention_tile(dtype, D, _ANY, _ANY)


# Attention on a KV cache: (most heads of queries, fewest cells of the cache, tile), the first that fits. A head of a query is a
# program: with fewer than about two a multiprocessor the chip idles, and a long range is shared out.
DecodeEntries = list[tuple[int, int, decode.Tile]]

_DECODE: dict[int, DecodeEntries] = {  # by the widest D that it takes
    32: [
        (64, 256, decode.Tile(64, 4, 4)),
        (256, 256, decode.Tile(64, 2, 4)),
        (_ANY, 0, decode.Tile(64, 1, 4)),
    ],
    64: [
        (64, 256, decode.Tile(64, 4, 4)),
        (256, 256, decode.Tile(64, 2, 4)),
        (_ANY, 0, decode.Tile(64, 1, 4)),
    ],
    128: [
        (64, 256, decode.Tile(32, 4, 4)),
        (256, 256, decode.Tile(32, 2, 4)),
        (_ANY, 0, decode.Tile(32, 1, 4)),
    ],
}


def decode_entries(dtype: torch.dtype, D: int) -> DecodeEntries:
    entries = next(entries for widest, entries in _DECODE.items() if widest >= D)
    if dtype != torch.float32:
        return entries
    return [(most, fewest, replace(tile, block_c=tile.block_c // 2)) for most, fewest, tile in entries]  # as many bytes a thread


def decode_tile(dtype: torch.dtype, D: int, query_heads: int, cells: int) -> decode.Tile:
    return next(tile for most, fewest, tile in decode_entries(dtype, D) if query_heads <= most and cells >= fewest)


def decode_invariant_tile(dtype: torch.dtype, D: int) -> decode.Tile:
    """One tile for every batch and cache, so that a sequence's bits do not depend on the others."""
    return decode_tile(dtype, D, _ANY, 0)


def write_cache_heads(D: int) -> int:
    """Heads a program: about 1,024 elements, eight a thread of four warps."""
    return max(1024 // _power_of_two(D), 1)


def activation_tile(F: int) -> gelu.Tile:
    """Sixteen elements a thread; 256 columns divide every F that BERT has."""
    return gelu.Tile(rows=8, columns=256, num_warps=4) if F >= 256 else gelu.Tile(rows=32, columns=64, num_warps=4)


def fp8_activation_tile(F: int, by_group: bool) -> fp8.Tile:
    """By groups as activation_tile; with one scale a row, a row, eight elements a thread at most of eight warps."""
    if by_group:
        return fp8.Tile(rows=8, columns=256, num_warps=4)
    columns = _power_of_two(F)
    return fp8.Tile(rows=max(1024 // columns, 1), columns=columns, num_warps=min(max(columns // 256, 4), 8))


# Where quantization="fp8" is measured to lose to the same model in bfloat16, and so is refused: {(device name, hidden size): how}.
# benchmarks/gpu.sh prints what it measured; nothing has been measured yet.
FP8_LOSES: dict[tuple[str, int], str] = {}


def pack_tile(C: int) -> pack.Tile:
    """About 2,048 elements, as wide as the rows allow."""
    columns = min(_power_of_two(C), 1024)
    return pack.Tile(rows=max(2048 // columns, 1) if columns > 8 else 256, columns=columns, num_warps=4)


# The Triton GEMM, by rows: few rows get small tiles, so that there are programs for the whole chip.
_GEMM_HALF = [
    (16, gemm.Tile(16, 64, 128, 4, 4)),
    (64, gemm.Tile(64, 64, 64, 4, 4)),
    (2048, gemm.Tile(64, 128, 64, 4, 3)),
    (_ANY, gemm.Tile(128, 128, 64, 8, 3)),
]
_GEMM_FLOAT32 = [
    (_ANY, gemm.Tile(32, 32, 32, 4, 2)),
]


def gemm_entries(dtype: torch.dtype) -> list[tuple[int, gemm.Tile]]:
    return _GEMM_FLOAT32 if dtype == torch.float32 else _GEMM_HALF


def gemm_tile(dtype: torch.dtype, rows: int) -> gemm.Tile:
    return next(tile for most, tile in gemm_entries(dtype) if rows <= most)


def gemm_invariant_tile(dtype: torch.dtype) -> gemm.Tile:
    """One tile for every batch, so that a row's bits do not depend on the others."""
    return gemm_tile(dtype, 2048)


# Where the Triton GEMM is measured to beat cuBLAS followed by the activation kernel: {(device name, dtype, K, F): the fewest
# rows}. benchmarks/gpu.sh prints the entries it measured; none are in yet, so cuBLAS does every product.
GEMM_WINS: dict[tuple[str, torch.dtype, int, int], int] = {}


def triton_gemm_wins(device_name: str, dtype: torch.dtype, rows: int, K: int, F: int) -> bool:
    least = GEMM_WINS.get((device_name, dtype, K, F))
    return least is not None and rows >= least


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
