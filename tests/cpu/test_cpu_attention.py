"""varlen_attention on the CPU: any lengths, any head size up to 256, Q, K and V as slices of packed rows."""

import math

import pytest
import torch
from cpu_checks import boundaries, check
from torch import Tensor

from accuracy import assert_as_accurate
from bertfast import _C
from bertfast.ops import cpu, reference

pytestmark = pytest.mark.usefixtures("isa")

LENGTHS = [
    pytest.param([5, 1, 17, 0, 64, 130], [5, 1, 17, 0, 64, 130], id="unequal"),
    pytest.param([300], [300], id="several-tiles"),
    pytest.param([512, 3], [512, 3], id="longest"),
    pytest.param([1, 1, 3], [9, 200, 0], id="decoding"),
    pytest.param([7, 65], [3, 70], id="cross"),
    pytest.param([16] * 3, [16] * 3, id="equal"),
    pytest.param([], [], id="no-sequences"),
]


def make_inputs(queries: int, keys: int, heads: int, size: int, spread: float = 1.0) -> list[Tensor]:
    """q, k, v as columns of wider rows, as they lie in packed QKV."""
    width = heads * size
    rows_q, rows_k = torch.randn(queries, 3 * width + 5) * spread, torch.randn(keys, 3 * width + 5) * spread
    return [rows[:, at : at + width].unflatten(1, (heads, size)) for rows, at in ((rows_q, 0), (rows_k, width), (rows_k, 2 * width))]


def attend(lengths_q: list[int], lengths_k: list[int], heads: int, size: int, *options: object, spread: float = 1.0) -> Tensor:
    q, k, v = make_inputs(sum(lengths_q), sum(lengths_k), heads, size, spread)
    bounds = boundaries(lengths_q), boundaries(lengths_k)
    return check("varlen_attention", q, k, v, *bounds, max(lengths_q, default=0), max(lengths_k, default=0), *options)


@pytest.mark.parametrize(("lengths_q", "lengths_k"), LENGTHS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_matches_definition(lengths_q, lengths_k, causal):
    attend(lengths_q, lengths_k, 12, 64, causal)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 16, 24, 31, 32, 33, 48, 72, 80, 96, 128, 130, 200, 256])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_any_head_size(size, causal):
    attend([33, 7, 140], [33, 7, 140], 5, size, causal)


def test_scale_is_honoured():
    attend([50], [50], 4, 32, False, 0.37)


@pytest.mark.parametrize("scale", [-0.37, 0.0])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_scale_may_be_negative_or_nothing(scale, causal):
    attend([50, 3], [200, 3], 4, 32, causal, scale)


def test_scores_of_hundreds_neither_overflow_nor_vanish():
    """exp(score) alone would overflow: the running maximum must be carried from one tile of keys to the next."""
    attend([200], [400], 4, 64, False, spread=6.0)


def test_the_maximum_may_rise_and_fall_between_tiles():
    q, k, v = make_inputs(40, 500, 12, 16)
    for first, size in ((0, 1e-3), (130, 20.0), (260, 1e-3), (400, 30.0)):
        k[first : first + 100] *= size
    check("varlen_attention", q, k, v, boundaries([40]), boundaries([500]), 40, 500)


def test_a_query_that_sees_no_key_gets_zeros():
    q, k, v = make_inputs(7, 4, 2, 16)
    out = cpu.varlen_attention(q, k, v, boundaries([5, 2]), boundaries([4, 0]), 5, 4, True)
    assert (out[:1] == 0).all()  # query 0 of five sees key j where j <= 0 + 4 - 5
    assert (out[1:5] != 0).any(dim=(1, 2)).all()
    assert (out[5:] == 0).all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_sequence_has_the_same_bits_alone_and_in_any_batch_on_any_threads(causal):
    lengths = [5, 1, 70, 33, 150, 16]
    q, k, v = make_inputs(sum(lengths), sum(lengths), 3, 32)
    bounds = boundaries(lengths)
    together = cpu.varlen_attention(q, k, v, bounds, bounds, 150, 150, causal)
    for threads in (1, 2, 7):
        _C.set_num_threads(threads)
        alone = []
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            one = boundaries([last - first])
            alone.append(cpu.varlen_attention(q[first:last], k[first:last], v[first:last], one, one, last - first, last - first, causal))
        assert torch.equal(torch.cat(alone), together), f"on {threads} threads"


@pytest.mark.parametrize("products", [False, True], ids=["float", "bfloat16-products"])
@pytest.mark.parametrize("size", [32, 72])
def test_a_query_has_the_same_bits_whichever_queries_are_computed_beside_it(size, products):
    """Of 19 queries over more than two tiles of keys: alone, and with some before and after it."""
    q, k, v = make_inputs(19, 300, 2, size)
    keys = boundaries([300])
    together = cpu.varlen_attention(q, k, v, boundaries([19]), keys, 19, 300, bfloat16_products=products)
    for first, last in ((0, 1), (7, 8), (18, 19), (3, 17), (5, 10)):
        some = cpu.varlen_attention(q[first:last], k, v, boundaries([last - first]), keys, last - first, 300, bfloat16_products=products)
        assert torch.equal(some, together[first:last]), f"queries {first} to {last}"


@pytest.mark.parametrize("products", [False, True], ids=["float", "bfloat16-products"])
def test_what_is_not_a_number_stays_in_its_own_rows(products):
    """A query with NaN, a key with NaN in another sequence, and an infinite score: all other queries are as without them."""
    lengths = [140, 40, 150]
    q, k, v = make_inputs(330, 330, 2, 32)
    rest = (*[boundaries(lengths)] * 2, 150, 150, False, None, products)
    whole = cpu.varlen_attention(q, k, v, *rest)
    q[7, 0, 3] = math.nan
    k[150, 1, 5] = math.nan
    q[200, 0, 0] = math.inf
    broken = cpu.varlen_attention(q, k, v, *rest)
    hit = torch.zeros(330, 2, dtype=torch.bool)
    hit[7, 0] = hit[140:180, 1] = hit[200, 0] = True
    assert broken[hit].isnan().all()
    assert torch.equal(broken[~hit], whole[~hit])


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 3, 2], r"cu_seqlens_q falls from 3 to 2 at 2"),
        ([0, 3, 7], r"cu_seqlens_q ends at 7, expected at most 5 rows"),
        ([1, 2, 5], r"cu_seqlens_q\[0\] is 1, expected 0"),
    ],
)
def test_boundaries_outside_of_the_rows_are_refused(bounds, message):
    q, k, v = make_inputs(5, 5, 1, 8)
    with pytest.raises(ValueError, match=message):
        cpu.varlen_attention(q, k, v, torch.tensor(bounds).int(), boundaries([2, 3]), 5, 5)


@pytest.mark.parametrize("size", [1, 7, 32, 64, 80, 256])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_products_of_bfloat16_where_they_are_allowed(size, causal):
    """As accurate as the reference on operands rounded to bfloat16; on a CPU without bfloat16 products the same bits as without."""
    lengths = [33, 1, 0, 7, 140]
    q, k, v = make_inputs(sum(lengths), sum(lengths), 5, size)
    rest = (*[boundaries(lengths)] * 2, 140, 140, causal, None)
    actual = cpu.varlen_attention(q, k, v, *rest, bfloat16_products=True)
    if _C.multiplies_bfloat16():
        yardstick = reference.varlen_attention(*(t.bfloat16().float() for t in (q, k, v)), *rest).bfloat16().float()
        assert_as_accurate(actual, yardstick=yardstick, truth=reference.varlen_attention(*(t.double() for t in (q, k, v)), *rest))
        assert not torch.equal(actual, cpu.varlen_attention(q, k, v, *rest))
    else:
        assert torch.equal(actual, cpu.varlen_attention(q, k, v, *rest))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_products_of_bfloat16_give_a_sequence_the_same_bits_in_any_batch(causal):
    q, k, v = make_inputs(150 + 40, 150 + 40, 3, 24)
    together = cpu.varlen_attention(q, k, v, *[boundaries([150, 40])] * 2, 150, 150, causal, None, True)
    alone = [
        cpu.varlen_attention(*(t[first:last] for t in (q, k, v)), *[boundaries([last - first])] * 2, 150, 150, causal, None, True)
        for first, last in ((0, 150), (150, 190))
    ]
    assert torch.equal(together, torch.cat(alone))
