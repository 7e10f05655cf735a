"""_C.plan_batches: which sequences share a batch."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertfast import _C


def plan(lengths: list[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    given_lengths, order = torch.tensor(lengths, dtype=torch.int64), torch.full((len(lengths),), -1)
    cuts = _C.plan_batches(given_lengths.data_ptr(), len(lengths), max_tokens, max_rows, order.data_ptr())
    assert cuts[0] == 0
    assert cuts[-1] == len(lengths)
    return [order[first:last].tolist() for first, last in pairwise(cuts)]


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 300), st.integers(1, 20))
def test_plan(lengths, max_tokens, max_rows):
    batches = plan(lengths, max_tokens, max_rows)
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: -lengths[i]), "longest first, ties in input order"
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert sum(lengths[i] for i in batch) <= max_tokens or len(batch) == 1
    for batch, following in pairwise(batches):
        grown = sum(lengths[i] for i in batch) + lengths[following[0]]
        assert len(batch) == max_rows or grown > max_tokens, "a batch ends only at a limit"


def test_a_sequence_above_the_budget_is_a_batch_by_itself():
    assert plan([3, 500, 2, 400], max_tokens=10, max_rows=8) == [[1], [3], [0, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], 0, 1), "max_tokens: got 0, expected 1 or more"),
        (([1], 1, 0), "max_rows: got 0, expected 1 or more"),
        (([1, -2], 1, 1), r"lengths\[1\] is -2, expected 0 or more"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments)
