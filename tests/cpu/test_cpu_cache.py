"""write_cache and cached_attention on the CPU: any ranges, any head size, caches that are slices of larger ones."""

import pytest
import torch
from cpu_checks import check
from torch import Tensor

from bertfast import _C, ops
from bertfast.ops import cpu, reference

pytestmark = pytest.mark.usefixtures("isa")


def make_cache(rows: int, heads: int, cells: int, size: int) -> list[Tensor]:
    """Keys and values in a buffer with spare capacity."""
    return [torch.randn(rows + 1, heads, cells + 3, size)[1:, :, 1 : cells + 1] for _ in range(2)]


def make_queries(count: int, heads: int, size: int) -> Tensor:
    return torch.randn(count, 3 * heads * size)[:, : heads * size].unflatten(1, (heads, size))  # columns of packed QKV


@pytest.mark.parametrize("size", [1, 2, 7, 8, 16, 24, 31, 32, 48, 64, 72, 80, 96, 128, 200, 256, 300])
def test_any_head_size(size):
    keys, values = make_cache(3, 4, 37, size)
    last = torch.tensor([37, 1, 20, 36])
    check("cached_attention", make_queries(4, 4, size), keys, values, torch.tensor([0, 2, 2, 1]), None, last)


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 5, 15, 16, 17, 33, 64, 130, 511, 512, 700])
def test_any_length(longest):
    keys, values = make_cache(2, 3, longest, 64)
    first = torch.tensor([0, longest // 2, longest - 1])
    check("cached_attention", make_queries(3, 3, 64), keys, values, torch.tensor([1, 0, 1]), first, torch.full((3,), longest))


def test_an_empty_range_gives_zeros():
    keys, values = make_cache(1, 2, 8, 16)
    out = cpu.cached_attention(make_queries(2, 2, 16), keys, values, torch.zeros(2, dtype=torch.long), None, torch.tensor([0, 8]))
    assert out[0].eq(0).all()
    assert out[1].ne(0).all()


def test_positions_outside_of_the_range_are_never_read():
    keys, values = make_cache(1, 2, 40, 24)
    arguments = make_queries(1, 2, 24), keys, values, torch.tensor([0]), torch.tensor([5]), torch.tensor([31])
    before = cpu.cached_attention(*arguments)
    for t in (keys, values):
        t[:, :, :5] = t[:, :, 31:] = torch.nan
    assert torch.equal(cpu.cached_attention(*arguments), before)


def test_large_scores_neither_overflow_nor_vanish():
    keys, values = make_cache(1, 2, 200, 64)
    check("cached_attention", make_queries(1, 2, 64) * 6, keys * 6, values, torch.tensor([0]), None, torch.tensor([200]))


def test_scale_is_honoured():
    keys, values = make_cache(1, 2, 20, 32)
    check("cached_attention", make_queries(1, 2, 32), keys, values, torch.tensor([0]), None, torch.tensor([20]), 0.37)


@pytest.mark.usefixtures("threads")
def test_a_query_gives_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads():
    keys, values = make_cache(9, 12, 77, 64)
    q, rows, last = make_queries(9, 12, 64), torch.randperm(9), torch.randint(1, 78, (9,))
    _C.set_num_threads(2)
    together = cpu.cached_attention(q, keys, values, rows, None, last)
    for threads in (1, 2, 5):
        _C.set_num_threads(threads)
        for t in range(9):
            one = slice(t, t + 1)
            assert torch.equal(cpu.cached_attention(q[one], keys, values, rows[one], None, last[one]), together[one])


@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_writing(tokens):
    keys, values = make_cache(6, 12, 20, 64)
    expected = [t.clone() for t in (keys, values)]
    k, v = make_queries(tokens, 12, 64), make_queries(tokens, 12, 64)
    cells = torch.arange(tokens) // 6  # so that no pair comes twice
    rows = torch.arange(tokens) % 6
    ops.write_cache(k, v, keys, values, rows, cells)
    reference.write_cache(k, v, *expected, rows, cells)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


@pytest.mark.parametrize(
    ("rows", "first", "last", "message"),
    [
        ([0, 2], [0, 0], [1, 1], r"rows\[1\] is 2"),
        ([-1, 0], [0, 0], [1, 1], r"rows\[0\] is -1"),
        ([0, 0], [0, -1], [1, 1], "query 1 reads positions -1 to 1"),
        ([0, 0], [0, 3], [1, 2], "query 1 reads positions 3 to 2"),
        ([0, 0], [0, 0], [1, 9], "query 1 reads positions 0 to 9"),
    ],
)
def test_a_range_outside_of_the_cache_is_an_error(rows, first, last, message):
    keys, values = make_cache(2, 2, 8, 16)
    with pytest.raises(ValueError, match=message):
        ops.cached_attention(make_queries(2, 2, 16), keys, values, *map(torch.tensor, (rows, first, last)))


@pytest.mark.parametrize(
    ("row", "position", "message"), [(2, 0, r"rows\[0\] is 2"), (0, 8, r"positions\[0\] is 8"), (0, -1, r"positions\[0\] is -1")]
)
def test_a_position_outside_of_the_cache_is_an_error_and_nothing_is_written(row, position, message):
    keys, values = make_cache(2, 2, 8, 16)
    before = keys.clone()
    with pytest.raises(ValueError, match=message):
        ops.write_cache(make_queries(1, 2, 16), make_queries(1, 2, 16), keys, values, torch.tensor([row]), torch.tensor([position]))
    assert torch.equal(keys, before)


def test_the_contract_checks_shapes_and_types():
    keys, values = make_cache(2, 2, 8, 16)
    q, zero, one = make_queries(1, 2, 16), torch.tensor([0]), torch.tensor([1])
    for call, message in (
        (lambda: ops.cached_attention(q, keys, values, zero.int(), None, one), "rows must be"),
        (lambda: ops.cached_attention(q, keys, values[:1], zero, None, one), "values"),
        (lambda: ops.cached_attention(q, keys[..., :8], values[..., :8], zero, None, one), "do not match N=2 and D=16"),
        (lambda: ops.cached_attention(q.double(), keys, values, zero, None, one), "keys are torch.float32"),
        (lambda: ops.cached_attention(q.transpose(1, 2).contiguous().transpose(1, 2), keys, values, zero, None, one), "rows of q"),
        (lambda: ops.write_cache(q, q[:, :1], keys, values, zero, zero), "v"),
        (lambda: ops.write_cache(q, q, keys, values, zero, torch.tensor([0, 1])), "positions must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 40, 1001])
def test_argmax_is_torchs_ties_and_nan_included(columns):
    scores = torch.randint(0, max(2, columns // 3), (64, columns)).float()  # many ties
    scores[16:32][torch.rand(16, columns) < 0.1] = torch.nan
    scores[32:48][torch.rand(16, columns) < 0.3] = -torch.inf
    scores[48] = -torch.inf
    out = torch.empty(64, dtype=torch.int64)
    _C.argmax(scores.data_ptr(), 64, columns, out.data_ptr())
    assert torch.equal(out, scores.argmax(dim=-1))


def test_integers_are_not_unpacked():
    with pytest.raises(ValueError, match=r"unpack: x is torch\.int8, expected floating point numbers"):
        ops.unpack(torch.ones(2, 3, dtype=torch.int8), torch.tensor([0, 1]), 3, fill=-1e4)


def test_heads_of_size_0_are_refused():
    keys, values = make_cache(2, 2, 8, 1)
    q, cu = torch.empty(3, 2, 0), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"cached_attention: q \(3, 2, 0\) has heads of size 0"):
        ops.cached_attention(q, keys[..., :0], values[..., :0], torch.zeros(3, dtype=torch.long), None, torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"varlen_attention: q \(3, 2, 0\) has heads of size 0"):
        ops.varlen_attention(q, q, q, cu, cu, 3, 3)
