"""pack and unpack on the CPU: rows move whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertfast.ops import cpu, reference


@st.composite
def selections(draw):
    rows = draw(st.integers(0, 60))
    kept = draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=rows)) if rows else []
    if draw(st.booleans()):
        kept.sort()
    return rows, torch.tensor(kept, dtype=torch.int64), draw(st.sampled_from([1, 3, 64, 1000]))


@given(selections())
def test_pack_and_unpack_match_their_definitions(selection):
    rows, indices, columns = selection
    x = torch.randn(rows, columns)
    packed = cpu.pack(x, indices)
    assert torch.equal(packed, reference.pack(x, indices))
    for fill in (0.0, -1e4):
        assert torch.equal(cpu.unpack(packed, indices, rows, fill), reference.unpack(packed, indices, rows, fill))


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_an_index_out_of_range_is_refused(bad):
    x = torch.randn(4, 3)
    indices = torch.tensor([0, bad])
    with pytest.raises(ValueError, match=rf"pack: indices\[1\] is {bad}, expected 0 <= index < 4"):
        cpu.pack(x, indices)
    with pytest.raises(ValueError, match=rf"unpack: indices\[1\] is {bad}, expected 0 <= index < 4"):
        cpu.unpack(x[:2], indices, 4)
