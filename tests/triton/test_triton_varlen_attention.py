"""varlen_attention in Triton, against the reference op in float64."""

from itertools import accumulate

import pytest
import torch

from accuracy import assert_as_accurate
from bertfast.kernels import tuning, varlen_attention
from bertfast.ops import cuda as backend
from bertfast.ops import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
both_ways = pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])


def cu_seqlens(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def packed_qkv(tokens: int, heads: int, D: int, dtype: torch.dtype, device: torch.device, magnitude: float = 1.0) -> list[torch.Tensor]:
    """q, k and v as the fused projection returns them: three slices of one [T, 3, N, D], followed by rows of NaN."""
    buffer = torch.full((tokens + 40, 3, heads, D), float("nan"))
    buffer[:tokens] = torch.randn(tokens, 3, heads, D) * magnitude
    return [part[:tokens] for part in buffer.to(device, dtype).unbind(1)]


def check(q, k, v, lengths_q, lengths_k, causal, scale=None, attend=backend.varlen_attention) -> torch.Tensor:
    cu_q, cu_k = cu_seqlens(lengths_q, q.device), cu_seqlens(lengths_k, q.device)
    longest = (max(lengths_q), max(lengths_k))
    actual = attend(q, k, v, cu_q, cu_k, *longest, causal, scale)
    definition = [
        reference.varlen_attention(*(t.to(wide) for t in (q, k, v)), cu_q, cu_k, *longest, causal, scale)
        for wide in (torch.float32, torch.float64)
    ]
    assert_as_accurate(actual, yardstick=definition[0].to(q.dtype), truth=definition[1])
    assert actual.is_contiguous()
    return actual


@every_dtype
@both_ways
@pytest.mark.parametrize("D", [8, 16, 32, 37, 48, 64, 96, 128])
def test_head_sizes(D, causal, dtype, device):
    lengths = [1, 0, 7, 31, 2]
    check(*packed_qkv(sum(lengths), 2, D, dtype, device), lengths, lengths, causal)


@every_dtype
@both_ways
@pytest.mark.parametrize("D", [16, 32, 48, 64, 96, 128])
def test_the_longest_sequence_of_bert(D, causal, dtype, device):
    lengths = [3, 512, 1, 127]
    check(*packed_qkv(sum(lengths), 1, D, dtype, device), lengths, lengths, causal)


def entries() -> list:
    found = []
    for dtype in DTYPES:
        for width in (32, 64, 96, 128):
            for keys, queries, tile in tuning.varlen_attention_entries(dtype, width):
                at = pytest.param(dtype, width, min(queries, 199), min(keys, 199), tile, id=f"{str(dtype)[6:]}-D{width}-q{queries}-k{keys}")
                found.append(at)
    return found


@both_ways
@pytest.mark.parametrize(("dtype", "D", "most_q", "most_k", "tile"), entries())
def test_every_tuning_entry_at_its_edges(dtype, D, most_q, most_k, tile, causal, device):
    """A sequence as long as the entry allows, one as long as a block, one of a single token."""
    assert tuning.varlen_attention_tile(dtype, D, most_q, most_k) == tile
    lengths_q = [most_q, min(tile.block_m, most_q), 1]
    lengths_k = [most_k, min(tile.block_n, most_k), max(most_k - 1, 1)]
    q = packed_qkv(sum(lengths_q), 1, D, dtype, device)[0]
    _, k, v = packed_qkv(sum(lengths_k), 1, D, dtype, device)
    check(q, k, v, lengths_q, lengths_k, causal)


@every_dtype
@both_ways
@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [
        pytest.param([1, 1, 1], [17, 1, 140], id="one-query"),
        pytest.param([5, 0, 3], [2, 4, 67], id="cross"),
        pytest.param([9, 70], [4, 3], id="more-queries-than-keys"),  # causal: the first ones see nothing
        pytest.param([3, 2], [0, 5], id="no-keys"),
        pytest.param([0, 0], [0, 0], id="nothing"),
    ],
)
def test_queries_and_keys_of_different_lengths(lengths_q, lengths_k, causal, dtype, device):
    q = packed_qkv(sum(lengths_q), 2, 32, dtype, device)[0]
    _, k, v = packed_qkv(sum(lengths_k), 2, 32, dtype, device)
    out = check(q, k, v, lengths_q, lengths_k, causal)
    row = 0
    for queries, keys in zip(lengths_q, lengths_k, strict=True):
        blind = queries if keys == 0 else max(queries - keys, 0) if causal else 0
        assert (out[row : row + blind] == 0).all()
        row += queries


@every_dtype
@pytest.mark.parametrize("length", [40, 150])
def test_large_scores_do_not_overflow(length, dtype, device):
    """exp(1000) is inf: the running maximum is subtracted first, in one tile and across several."""
    q, k, v = packed_qkv(length, 1, 32, dtype, device)
    check(q * 8, k * 8, v, [length], [length], False, scale=1.0)


def test_no_row_outside_the_sequences_is_read_or_written(device):
    """As in a batch padded to a fixed size: rows of NaN before and after the sequences change nothing and stay NaN."""
    lengths = [5, 66]
    q, k, v = packed_qkv(sum(lengths), 2, 32, torch.float16, device)
    want = backend.varlen_attention(q, k, v, cu_seqlens(lengths, device), cu_seqlens(lengths, device), 66, 66)

    def with_gaps(t):
        padded = t.new_full((100, *t.shape[1:]), float("nan"))
        padded[4:9], padded[9:75] = t[:5], t[5:]
        return padded

    # An empty sequence at each end; the longest length rounded up, as in a CUDA graph.
    cu = torch.tensor([4, 4, 9, 75, 75], dtype=torch.int32, device=device)
    got = backend.varlen_attention(with_gaps(q), with_gaps(k), with_gaps(v), cu, cu, 128, 128)
    assert torch.equal(got[4:75].isnan(), torch.zeros_like(got[4:75], dtype=torch.bool))
    assert got[:4].isnan().all()
    assert got[75:].isnan().all()
    torch.testing.assert_close(got[4:75], want)  # another tile: within torch's own tolerance for the dtype


@every_dtype
@both_ways
def test_the_invariant_tile_gives_a_sequence_the_same_bits_in_any_batch(causal, dtype, device):
    D, lengths = 32, [3, 150, 40]
    tile = tuning.varlen_attention_invariant_tile(dtype, D)

    def attend(*arguments):
        return varlen_attention.varlen_attention(*arguments, tile=tile, whole_in_one=False)

    q, k, v = packed_qkv(sum(lengths), 2, D, dtype, device)
    together = check(q, k, v, lengths, lengths, causal, attend=attend)
    begin = 0
    for length in lengths:
        end = begin + length
        cu = cu_seqlens([length], device)
        alone = attend(q[begin:end], k[begin:end], v[begin:end], cu, cu, length, length, causal, None)
        assert torch.equal(alone, together[begin:end])
        begin = end


def test_a_head_wider_than_the_kernel_takes_runs_on_the_reference_op(device):
    q, k, v = packed_qkv(4, 1, 136, torch.float16, device)
    cu = cu_seqlens([4], device)
    assert torch.equal(backend.varlen_attention(q, k, v, cu, cu, 4, 4), reference.varlen_attention(q, k, v, cu, cu, 4, 4))
    with pytest.raises(ValueError, match=r"head size 136, expected at most 128"):
        varlen_attention.varlen_attention(q, k, v, cu, cu, 4, 4, False, None, tile=tuning.varlen_attention_tile(q.dtype, 128, 4, 4))
