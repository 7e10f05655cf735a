"""The packer: masks and lengths to boundaries, indices and positions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertfast import _C

KINDS = {
    torch.bool: _C.MASK_BOOL,
    torch.uint8: _C.MASK_UINT8,
    torch.int8: _C.MASK_INT8,
    torch.int16: _C.MASK_INT16,
    torch.int32: _C.MASK_INT32,
    torch.int64: _C.MASK_INT64,
    torch.float16: _C.MASK_FLOAT16,
    torch.bfloat16: _C.MASK_BFLOAT16,
    torch.float32: _C.MASK_FLOAT32,
    torch.float64: _C.MASK_FLOAT64,
}
GUARD = -7  # written behind every output, and must still be there afterwards


def pack_mask(mask: torch.Tensor | None, rows: int, columns: int):
    cu_seqlens = torch.full((rows + 2,), GUARD, dtype=torch.int32)
    indices, positions = (torch.full((rows * columns + 1,), GUARD, dtype=torch.int64) for _ in range(2))
    address, kind, stride = (0, 0, 0) if mask is None else (mask.data_ptr(), KINDS[mask.dtype], mask.stride(0))
    total, longest, shortest, first = _C.pack_mask(
        address, kind, rows, columns, stride, cu_seqlens.data_ptr(), indices.data_ptr(), positions.data_ptr()
    )
    assert cu_seqlens[-1] == indices[-1] == positions[-1] == GUARD
    if mask is not None:
        assert _C.mask_is_full(address, kind, rows, columns, stride) is (total == rows * columns)
    return cu_seqlens[:-1], indices[:total], positions[:total], longest, shortest, first


def assert_packs(attended: torch.Tensor, packed) -> None:
    cu_seqlens, indices, positions, longest, shortest, first = packed
    lengths = attended.sum(1)
    assert torch.equal(indices, attended.flatten().nonzero()[:, 0])
    assert torch.equal(positions, attended.nonzero()[:, 1])
    assert torch.equal(cu_seqlens, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int())
    assert longest == (int(lengths.max()) if len(lengths) else 0)
    assert shortest == (int(lengths.min()) if len(lengths) else 0)
    assert first is bool(attended[:, 0].all() if attended.shape[1] else len(attended) == 0)


@st.composite
def masks(draw):
    rows, columns = draw(st.integers(0, 6)), draw(st.integers(0, 40))
    attended = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)), dtype=torch.bool)
    return attended.view(rows, columns), draw(st.sampled_from(sorted(KINDS, key=str))), draw(st.integers(0, 3))


@given(masks())
def test_packs_what_is_not_zero(case):
    attended, dtype, gap = case
    rows, columns = attended.shape
    wide = torch.ones(rows, columns + gap, dtype=dtype)  # row stride above the row length
    mask = wide[:, :columns]
    mask.copy_(attended)
    assert_packs(attended, pack_mask(mask, rows, columns))


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_every_value_but_zero_is_real(dtype):
    """The smallest and largest values, negative ones and NaN; -0.0 is zero."""
    info = torch.finfo(dtype) if dtype.is_floating_point else None if dtype == torch.bool else torch.iinfo(dtype)
    values = [1.0, 0.0] if info is None else [info.max, info.min, 1, 0]
    if dtype.is_floating_point:
        values += [-0.0, float("nan"), float("-inf"), info.smallest_normal, info.eps * info.smallest_normal]
    mask = torch.tensor([values], dtype=dtype)
    assert_packs(mask != 0, pack_mask(mask, 1, len(values)))


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_a_full_mask_is_recognised(dtype):
    pack_mask(torch.ones(3, 7, dtype=dtype), 3, 7)
    pack_mask(torch.ones(3, 9, dtype=dtype)[:, :7], 3, 7)


@given(st.integers(0, 5), st.integers(0, 9))
def test_no_mask_keeps_everything(rows, columns):
    assert_packs(torch.ones(rows, columns, dtype=torch.bool), pack_mask(None, rows, columns))


def test_unknown_kind_and_too_many_tokens_are_refused():
    room = torch.zeros(4, dtype=torch.int64).data_ptr()
    with pytest.raises(ValueError, match="attention_mask: kind: got 99, expected 0 to 9"):
        _C.pack_mask(room, 99, 1, 1, 1, room, room, room)
    with pytest.raises(ValueError, match="attention_mask: kind: got 99, expected 0 to 9"):
        _C.mask_is_full(room, 99, 1, 1, 1)
    with pytest.raises(ValueError, match="65536 x 65536 tokens; expected at most 2147483647"):
        _C.pack_mask(0, 0, 65536, 65536, 0, room, room, room)


INTEGERS = [dtype for dtype in KINDS if not dtype.is_floating_point]


@given(st.data(), st.sampled_from(sorted(INTEGERS, key=str)))
def test_range_of_integers(data, dtype):
    ends = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    values = data.draw(st.lists(st.integers(*ends) | st.sampled_from(ends), min_size=1, max_size=70))
    tensor = torch.tensor(values, dtype=dtype)
    assert _C.integer_range(tensor.data_ptr(), KINDS[dtype], len(values)) == (min(values), max(values))


def test_range_of_nothing_and_of_floats_is_refused():
    room = torch.zeros(4)
    with pytest.raises(ValueError, match="of 0 values"):
        _C.integer_range(room.data_ptr(), _C.MASK_INT64, 0)
    for kind in (_C.MASK_FLOAT32, 99, -1):
        with pytest.raises(ValueError, match=f"integer_range: kind: got {kind}, expected"):
            _C.integer_range(room.data_ptr(), kind, 4)


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_lengths_become_boundaries(lengths):
    given_lengths = torch.tensor(lengths, dtype=torch.int64)
    cu_seqlens = torch.full((len(lengths) + 2,), GUARD, dtype=torch.int32)
    packed = _C.pack_lengths(given_lengths.data_ptr(), len(lengths), cu_seqlens.data_ptr())
    assert packed == (sum(lengths), max(lengths, default=0), min(lengths, default=0), all(lengths))
    assert cu_seqlens[-1] == GUARD
    assert cu_seqlens[:-1].tolist() == [0, *given_lengths.cumsum(0).tolist()]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([3, -1], r"lengths\[1\] is -1, expected 0 or more"), ([2**31 - 1, 1], "the first 2 lengths add up to more than 2147483647 tokens")],
)
def test_impossible_lengths_are_refused(lengths, message):
    given_lengths, cu_seqlens = torch.tensor(lengths), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        _C.pack_lengths(given_lengths.data_ptr(), 2, cu_seqlens.data_ptr())
