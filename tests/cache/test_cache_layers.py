"""The KV cache's bookkeeping under random operations; a refused operation changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from bertfast._C import SlotTable
from bertfast.cache.layers import GrowingLayer

SLOTS, CELLS = 5, 9


class Slots(RuleBasedStateMachine):
    """SlotTable against lists: the tokens of each running sequence, which its positions of the cache would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(SLOTS, CELLS)
        self.sequences: list[list[int]] = []  # a unique label for each filled position
        self.cells: dict[tuple[int, int], int] = {}  # (cache row, position) -> label, as a caller would write it
        self.labels = 0

    def write(self, i: int, count: int) -> None:
        """Appends `count` positions to sequence i."""
        for _ in range(count):
            self.labels += 1
            self.cells[self.table.running[i], len(self.sequences[i])] = self.labels
            self.sequences[i].append(self.labels)

    def refused(self, call, *args) -> None:
        before = self.table.running, self.table.lengths
        with pytest.raises(ValueError):  # noqa: PT011 (messages are tested below)
            call(*args)
        assert (self.table.running, self.table.lengths) == before

    @rule(lengths=st.lists(st.integers(-1, CELLS + 1), max_size=SLOTS + 1))
    def admit(self, lengths: list[int]) -> None:
        if len(self.sequences) + len(lengths) > SLOTS or any(not 0 <= n <= CELLS for n in lengths):
            self.refused(self.table.admit, lengths)
            return
        slots = self.table.admit(lengths)
        assert slots == self.table.running[len(self.sequences) :]
        for length in lengths:
            self.sequences.append([])
            self.write(len(self.sequences) - 1, length)

    @rule(count=st.integers(-1, 3))
    def extend(self, count: int) -> None:
        if count < 0 or any(len(s) + count > CELLS for s in self.sequences):
            self.refused(self.table.extend, count)
            return
        self.table.extend(count)
        for i in range(len(self.sequences)):
            self.write(i, count)

    @rule(count=st.integers(-1, 3))
    def crop(self, count: int) -> None:
        if count < 0 or any(len(s) < count for s in self.sequences):
            self.refused(self.table.crop, count)
            return
        self.table.crop(count)
        self.sequences = [s[: len(s) - count] for s in self.sequences]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        parents = data.draw(st.lists(st.integers(-1, len(self.sequences)), max_size=SLOTS + 1))
        if len(parents) > SLOTS or any(not 0 <= p < len(self.sequences) for p in parents):
            self.refused(self.table.reorder, parents)
            return
        before = [self.table.running[p] for p in parents]
        old, lengths = dict(self.cells), [len(self.sequences[p]) for p in parents]
        copies = self.table.reorder(parents)
        assert not {source for source, *_ in copies} & {target for _, target, *_ in copies}
        for source, target, first, last in copies:
            self.cells.update({(target, cell): self.cells[source, cell] for cell in range(first, last)})
        ranges = {(source, target): (first, last) for source, target, first, last in copies}
        for i, (slot, parent) in enumerate(zip(self.table.running, before, strict=True)):
            if slot == parent:
                assert parents.index(parents[i]) == i, "a first child stays where it is"
                continue
            alike = (old[parent, cell] == old.get((slot, cell)) for cell in range(lengths[i]))
            common = next((cell for cell, same in enumerate(alike) if not same), lengths[i])
            assert ranges.pop((parent, slot), None) == ((common, lengths[i]) if common < lengths[i] else None), (
                "only what differs is copied"
            )
        assert not ranges
        self.sequences = [list(self.sequences[p]) for p in parents]

    @invariant()
    def holds(self) -> None:
        self.table.check_integrity()
        assert self.table.lengths == [len(s) for s in self.sequences]
        for slot, sequence in zip(self.table.running, self.sequences, strict=True):
            assert [self.cells[slot, cell] for cell in range(len(sequence))] == sequence


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_beams_of_one_prompt_copy_only_what_follows_it():
    table = SlotTable(3, 9)
    table.admit([4])
    assert table.reorder([0, 0, 0]) == [[0, 1, 0, 4], [0, 2, 0, 4]]
    assert table.reorder([2, 1, 1]) == [], "all of them hold the prompt"
    table.extend(2)
    assert table.running == [2, 1, 0]
    assert table.reorder([1, 1, 2]) == [[1, 2, 4, 6]]
    table.extend(1)
    assert table.running == [1, 2, 0]
    assert table.reorder([1, 1, 2]) == [[2, 1, 6, 7]], "the two differ in their last position"
    assert table.reorder([0, 1, 1]) == [[1, 0, 4, 7]]


def test_messages():
    table = SlotTable(2, 4)
    table.admit([3])
    for call, message in (
        (lambda: table.admit([1, 1]), "2 sequences came, expected at most 1, the free ones of 2 slots"),
        (lambda: table.admit([5]), "length 5 came, expected 0 to 4, the positions of a slot"),
        (lambda: table.extend(2), "has 3 positions and needs 2 more, but the cache holds 4"),
        (lambda: table.crop(4), "got 4 positions, but a sequence has only 3"),
        (lambda: table.reorder([1]), "got parent 1"),
        (lambda: table.reorder([0, 0, 0]), "3 sequences do not fit in 2 slots"),
        (lambda: SlotTable(-1, 4), "slots: got -1"),
        (lambda: SlotTable(1, -4), "positions: got -4"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


class Growth(RuleBasedStateMachine):
    """GrowingLayer against transformers' DynamicLayer: concatenate, slice, select. Views that were read keep their values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = GrowingLayer()
        self.expected = torch.empty(2, 2, 0, 3)
        self.read: list[tuple[Tensor, Tensor]] = []

    @rule(count=st.integers(1, 3))
    def append(self, count: int) -> None:
        new = torch.rand(self.expected.shape[0], 2, count, 3)
        self.layer.update(new, -new)
        self.expected = torch.cat([self.expected, new], dim=2)

    @rule(count=st.integers(1, 3), fails=st.booleans(), most=st.sampled_from([None, 12]))
    def write_in_place(self, count: int, fails: bool, most: int | None) -> None:
        """As the graph writes. fails: the call raises before it extends the layer."""
        new = torch.rand(self.expected.shape[0], 2, count, 3)
        at = self.expected.shape[2]
        keys, values = self.layer.room_for(count, new, most)
        keys[:, :, at : at + count], values[:, :, at : at + count] = new, -new
        if not fails:
            self.layer.extend(count)
            self.expected = torch.cat([self.expected, new], dim=2)

    @rule(count=st.integers(0, 4))
    def crop(self, count: int) -> None:
        count = min(count, self.expected.shape[2])
        self.layer.crop(-count)
        self.expected = self.expected[:, :, : self.expected.shape[2] - count]

    @precondition(lambda self: self.expected.shape[2] > 0)
    @rule(order=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def reorder(self, order: list[int]) -> None:
        order = [i % len(self.expected) for i in order]
        self.layer.reorder_cache(torch.tensor(order))
        self.expected = self.expected[order]

    @precondition(lambda self: self.expected.shape[2] > 0)
    @rule()
    def look(self) -> None:
        self.read.append((self.layer.keys, self.layer.keys.clone()))

    @invariant()
    def holds(self) -> None:
        assert self.layer.get_seq_length() == self.expected.shape[2]
        if self.layer.is_initialized:
            buffers = self.layer._buffers  # the properties would mark the layer as seen
            for buffer, expected in zip(buffers, (self.expected, -self.expected), strict=True):
                if buffer is not None:
                    assert torch.equal(buffer[:, :, : expected.shape[2]], expected)
        for view, value in self.read:
            assert torch.equal(view, value)


@pytest.mark.parametrize("looked", [False, True])
def test_reordering_keeps_capacity_and_unchanged_sequences(looked: bool):
    layer, start = GrowingLayer(), torch.rand(3, 2, 4, 5)
    layer.update(start, -start)
    layer.update(start[:, :, :1], start[:, :, :1])
    before = layer.room_for(0, start)[0]
    room, held = before.shape[2], layer.keys if looked else None
    if not looked:
        layer._seen = False  # as if only the graph had read it
    for order in ([0, 1, 2], [1, 0, 0]):
        layer.reorder_cache(torch.tensor(order))
        assert layer._buffers[0].shape[2] == room > 5
        assert (layer._buffers[0] is before) == (not looked)
    expected = torch.cat([start, start[:, :, :1]], dim=2)
    assert torch.equal(layer.keys, expected[[1, 0, 0]])
    if looked:
        assert torch.equal(held, expected)


def test_equal_sequences_are_not_copied():
    layer, start = GrowingLayer(), torch.rand(4, 2, 3, 5)
    layer.update(start, -start)

    def reordered(*order: int) -> bool:
        """Whether anything was copied."""
        before = [(t.data_ptr(), t._version) for t in layer._buffers]
        expected = layer._buffers[0][list(order), :, : layer.get_seq_length()]
        layer.reorder_cache(torch.tensor(order))
        for cells, sign in zip(layer.borrow(), (1, -1), strict=True):
            assert torch.equal(cells, sign * expected)
        return [(t.data_ptr(), t._version) for t in layer._buffers] != before

    with torch.no_grad():
        assert reordered(0, 0, 2, 2), "two prompts become two beams each"
        assert not reordered(1, 0, 3, 2)
        assert not reordered(1, 1, 3, 3)
        assert reordered(0, 1, 2, 0), "the last beam changes to the other prompt"
        assert not reordered(3, 3, 2, 1)
        assert reordered(2, 3, 0, 1)
        new = torch.rand(4, 2, 1, 5)
        layer.update(new, -new)  # marks the layer as seen; each sequence gets its own last position
        assert reordered(1, 0, 2, 3)
        assert reordered(1, 0, 2, 3)
        assert reordered(1, 1, 1, 1)
    layer.keys[1] = layer.values[1] = 7  # a write by a reader
    order = torch.tensor([1, 0, 2, 3])
    layer.reorder_cache(order)
    order.zero_()  # the caller's own tensor
    layer.reorder_cache(torch.tensor([2, 0, 3, 1]))
    assert layer.keys[:, 0, 0, 0].eq(7).tolist() == [False, True, False, False]


TestGrowth = Growth.TestCase
TestGrowth.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


@given(lengths=st.lists(st.integers(0, CELLS), min_size=1, max_size=SLOTS))
def test_a_full_cache_row_is_refused_before_anything_changes(lengths: list[int]):
    table = SlotTable(SLOTS, CELLS)
    table.admit(lengths)
    if max(lengths) == CELLS:
        with pytest.raises(ValueError, match="the cache holds 9"):
            table.extend(1)
        assert table.lengths == lengths
    else:
        table.extend(1)
        assert table.lengths == [n + 1 for n in lengths]


def test_an_append_without_gradient_to_keys_that_have_one():
    """transformers concatenates; a write in place into a leaf is an error."""
    ours, theirs = GrowingLayer(), DynamicLayer()
    first = torch.rand(2, 2, 3, 5, requires_grad=True)
    for layer in (ours, theirs):
        layer.update(first, first)
        for count in (0, 2):
            layer.update(torch.ones(2, 2, count, 5), torch.ones(2, 2, count, 5))
        layer.keys.sum().backward()
    assert torch.equal(ours.keys, theirs.keys)
    assert first.grad.eq(2).all()


@pytest.mark.parametrize("shape", [(1, 2, 1, 5), (3, 2, 1, 5), (2, 1, 1, 5), (2, 2, 1, 1)])
@pytest.mark.parametrize("emptied", [False, True])
def test_an_append_of_another_shape_is_refused(shape: tuple[int, ...], emptied: bool):
    """torch would broadcast one sequence to all."""
    layer = GrowingLayer()
    layer.update(torch.rand(2, 2, 3, 5), torch.rand(2, 2, 3, 5))
    if emptied:
        layer.crop(-3)
    before = layer.get_seq_length()
    with pytest.raises(ValueError, match=r"cache: got states of shape .*, but it holds \(2, 2, 3, 5\)"):
        layer.update(torch.rand(shape), torch.rand(shape))
    assert layer.get_seq_length() == before


@pytest.mark.parametrize(("slots", "positions"), [(4, 2**62), (2**32, 2**32), (2**62, 4), (2, 2**40)])
def test_slots_whose_product_overflows_are_refused(slots: int, positions: int):
    with pytest.raises(ValueError, match=f"slots: got {slots} of {positions} positions"):
        SlotTable(slots, positions)
