"""cached_attention and write_cache in Triton, against the reference ops in float64."""

import pytest
import torch

from accuracy import assert_as_accurate
from bertfast.kernels import cached_attention, tuning
from bertfast.ops import cuda as backend
from bertfast.ops import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def kv_cache(R: int, N: int, C: int, D: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[R, N, C, D] inside a longer buffer, like a cache with spare capacity: rows and heads are strided."""
    return torch.randn(R, N, C + 3, D).to(device, dtype)[:, :, :C]


def projected_qkv(T: int, N: int, D: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """q, k and v as the fused projection returns them: three slices of one [T, 3, N, D]."""
    return list(torch.randn(T, 3, N, D).to(device, dtype).unbind(1))


def check(q, keys, values, rows, first, last, scale=None, attend=backend.cached_attention) -> torch.Tensor:
    """Positions outside the ranges hold NaN for the kernel and zeros for the reference, which multiplies them by zero."""
    position = torch.arange(keys.shape[2], device=q.device)
    seen = torch.zeros(keys.shape[0], keys.shape[2], dtype=torch.bool, device=q.device)
    for t, row in enumerate(rows.tolist()):
        seen[row] |= (position < last[t]) & (position >= (0 if first is None else first[t]))
    outside = ~seen[:, None, :, None]
    actual = attend(q, *(t.masked_fill(outside, float("nan")) for t in (keys, values)), rows, first, last, scale)
    definition = [
        reference.cached_attention(
            q.to(wide), *(t.to(wide).masked_fill(outside, 0.0) for t in (keys, values)), rows, first, last, scale
        )
        for wide in (torch.float32, torch.float64)
    ]  # fmt: skip
    assert_as_accurate(actual, yardstick=definition[0].to(q.dtype), truth=definition[1])
    assert actual.is_contiguous()
    return actual


def ints(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


@every_dtype
@pytest.mark.parametrize("D", [8, 16, 32, 37, 48, 64, 96, 128])
def test_ragged_ranges(D, dtype, device):
    """Ranges of one position, none, a prime number, all; from position 0 and from later ones; cache rows in any order, one twice."""
    keys, values = (kv_cache(3, 2, 130, D, dtype, device) for _ in range(2))
    q, _, _ = projected_qkv(5, 2, D, dtype, device)
    rows, last = ints([2, 0, 1, 2, 0], device), ints([1, 0, 67, 130, 66], device)
    out = check(q, keys, values, rows, None, last)
    assert (out[1] == 0).all()
    check(q, keys, values, rows, ints([0, 0, 66, 65, 66], device), last)


ENTRIES = [
    pytest.param(D, heads, positions, tile, id=f"D{D}-heads{heads}-positions{positions}")
    for D in (32, 64, 128)
    for heads, positions, tile in tuning.cached_attention_entries(torch.float16, D)
]


@pytest.mark.parametrize(("D", "most_heads", "fewest_positions", "tile"), ENTRIES)
def test_every_tuning_entry_up_to_the_longest_sequence_of_bert(D, most_heads, fewest_positions, tile, device):
    assert tuning.cached_attention_tile(torch.float16, D, most_heads, fewest_positions) == tile
    keys, values = (kv_cache(2, 1, 512, D, torch.float16, device) for _ in range(2))
    q, _, _ = projected_qkv(6, 1, D, torch.float16, device)
    block = tile.block_c
    last = ints([512, 1, block * tile.splits, block * tile.splits + 1, block, 0], device)
    first = ints([0, 0, 1, 3, 2, 0], device)

    def attend(*arguments):
        return cached_attention.cached_attention(*arguments, tile=tile)

    check(q, keys, values, ints([0, 1, 0, 1, 0, 1], device), first, last, attend=attend)


@every_dtype
@pytest.mark.parametrize("splits", [1, 4])
def test_large_scores_do_not_overflow(splits, dtype, device):
    """exp(1000) is inf: the running maximum is subtracted first, in one program and across several."""
    keys, values = (kv_cache(1, 1, 150, 32, dtype, device) for _ in range(2))
    q, _, _ = projected_qkv(2, 1, 32, dtype, device)

    def attend(*arguments):
        return cached_attention.cached_attention(*arguments, tile=cached_attention.Tile(16, splits, 2))

    check(q * 8, keys * 8, values, ints([0, 0], device), None, ints([150, 20], device), scale=1.0, attend=attend)


@every_dtype
def test_the_invariant_tile_gives_a_sequence_the_same_bits_in_any_batch(dtype, device):
    D, last = 32, [300, 7, 64]
    keys, values = (kv_cache(3, 2, 300, D, dtype, device) for _ in range(2))
    q, _, _ = projected_qkv(3, 2, D, dtype, device)
    with backend.batch_invariant():
        together = check(q, keys, values, ints([0, 1, 2], device), None, ints(last, device))
        for t, positions in enumerate(last):  # alone, in a cache that is just long enough
            alone = [part[t : t + 1, :, :positions].contiguous() for part in (keys, values)]
            out = backend.cached_attention(q[t : t + 1], *alone, ints([0], device), None, ints([positions], device))
            assert torch.equal(out[0], together[t])


def test_a_head_wider_than_the_kernel_takes_runs_on_the_reference_op(device):
    keys, values = (kv_cache(1, 1, 9, 136, torch.float32, device) for _ in range(2))
    q, _, _ = projected_qkv(1, 1, 136, torch.float32, device)
    check(q, keys, values, ints([0], device), None, ints([9], device))
    with pytest.raises(ValueError, match=r"head size 136, expected at most 128"):
        cached_attention.cached_attention(
            q, keys, values, ints([0], device), None, ints([9], device), None, tile=tuning.cached_attention_tile(torch.float32, 128, 1, 9)
        )


@every_dtype
@pytest.mark.parametrize(("N", "D"), [(12, 64), (3, 37), (1, 128), (20, 8)])
def test_write_cache_writes_the_given_positions_alone(N, D, dtype, device):
    keys, values = (kv_cache(3, N, 6, D, dtype, device) for _ in range(2))
    _, k, v = projected_qkv(4, N, D, dtype, device)
    rows, positions = ints([2, 0, 2, 1], device), ints([5, 0, 1, 3], device)
    want = [keys.clone(), values.clone()]
    reference.write_cache(k, v, *want, rows, positions)
    backend.write_cache(k, v, keys, values, rows, positions)
    assert torch.equal(keys, want[0])
    assert torch.equal(values, want[1])


def test_no_queries_and_no_rows_to_write(device):
    keys = torch.randn(2, 3, 4, 16, device=device)
    before, none = keys.clone(), ints([], device)
    empty = torch.empty(0, 3, 16, device=device)
    backend.write_cache(empty, empty, keys, keys, none, none)
    assert torch.equal(keys, before)
    assert backend.cached_attention(empty, keys, keys, none, None, none).shape == (0, 3, 16)
