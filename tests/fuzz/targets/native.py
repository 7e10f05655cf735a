"""bertfast._C where it takes no addresses: odd numbers, sizes and references are refused, or the table keeps its promises.

Addresses are taken on trust, by contract: the checks for those are in bertfast.ops, the target `ops`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st

from bertfast import _C
from tests.fuzz.case import Case, Target

REFUSALS = (ValueError, TypeError, IndexError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Slots(Case):
    """A SlotTable under operations with any numbers: lengths as a list would have them, and its own check of integrity."""

    slots: int
    positions: int
    steps: tuple[tuple[str, Any], ...]

    def check(self) -> str:
        try:
            table = _C.SlotTable(self.slots, self.positions)
        except REFUSALS as error:
            assert not (0 <= self.slots <= 64 and 0 <= self.positions <= 64), f"refused: {error}"
            return f"refused: {type(error).__name__}"
        lengths: list[int] = []
        refused = 0
        for name, argument in self.steps:
            before = table.running, table.lengths
            try:
                getattr(table, name)(argument)
            except REFUSALS:
                refused += 1
                assert (table.running, table.lengths) == before, "a refused operation changed the table"
            else:
                lengths = after(lengths, name, argument)
            table.check_integrity()
            assert table.lengths == lengths, f"lengths {table.lengths}, expected {lengths}"
            assert len(set(table.running)) == len(lengths) <= self.slots and all(0 <= n <= self.positions for n in lengths)
        return "accepted" if not refused else "accepted, some steps refused"


def after(lengths: list[int], name: str, argument: Any) -> list[int]:
    if name == "admit":
        return [*lengths, *argument]
    if name == "reorder":
        return [lengths[i] for i in argument]
    return [n + argument if name == "extend" else n - argument for n in lengths]


@dataclass(frozen=True)
class Bands(Case):
    cu_seqlens: tuple[int, ...]
    threads: int

    def check(self) -> str:
        try:
            cuts = _C.cut_into_bands(list(self.cu_seqlens), self.threads)
        except REFUSALS as error:
            return f"refused: {type(error).__name__}"
        assert not cuts or (cuts == sorted(set(cuts)) and cuts[0] == 0 and cuts[-1] == len(self.cu_seqlens) - 1), f"cuts {cuts}"
        return "cut" if cuts else "not cut"


@dataclass(frozen=True)
class Recorded(Case):
    """A plan that is given odd references and sizes, and never run with an address that is not its own."""

    bfloat16: bool
    buffers: tuple[tuple[int, int, int], ...]
    op: str
    refs: tuple[tuple[int, int, int], ...]
    numbers: tuple[int, ...]
    counts: tuple[int, ...]

    def check(self) -> str:
        plan = _C.Plan(self.bfloat16)
        try:
            for buffer in self.buffers:
                plan.add_buffer(*buffer)
            CALLS[self.op](plan, iter(self.refs * 20), iter(self.numbers * 20))
            if all(kind != _C.REF_CONSTANT for kind, _, _ in self.refs):
                assert len(plan) == 1
                plan.run([], [])
        except REFUSALS as error:
            return f"refused: {type(error).__name__}"
        return "accepted"


CALLS: dict[str, Callable[..., None]] = {
    "pack": lambda p, r, n: p.pack(next(r), next(r), next(r), next(n), next(n), next(n)),
    "unpack": lambda p, r, n: p.unpack(next(r), next(r), next(r), next(n), next(n), next(n), 0.5),
    "add_layer_norm": lambda p, r, n: p.add_layer_norm(next(r), next(r), next(r), next(r), 1e-5, next(r), next(r), next(n), next(n)),
    "linear": lambda p, r, n: p.linear(next(r), next(n), [(next(r), next(r), next(n))], next(n), next(r), next(n), next(n)),
    "int8_linear": lambda p, r, n: p.int8_linear(
        next(r), [(next(r), next(r), next(r), next(n))], next(n), next(r), next(r), next(n), next(n)
    ),
    "int8_quantize": lambda p, r, n: p.int8_quantize(next(r), next(n), next(r), next(n), next(n)),
}


@dataclass(frozen=True)
class Settings(Case):
    """Functions of a number or a name."""

    name: str
    argument: Any

    def check(self) -> str:
        try:
            result = getattr(_C, self.name)(self.argument)
        except REFUSALS as error:
            return f"refused: {type(error).__name__}"
        finally:
            _C.set_num_threads(1)
        if self.name == "int8_row_bytes":
            assert self.argument >= 0 and result >= self.argument, f"int8_row_bytes({self.argument}) is {result}"
        return "accepted"


@dataclass(frozen=True)
class Batches(Case):
    """plan_batches over a real array: a permutation, in batches within the budget."""

    lengths: tuple[int, ...]
    max_tokens: int
    max_rows: int

    def check(self) -> str:
        lengths, order = torch.tensor(self.lengths, dtype=torch.int64), torch.full((len(self.lengths) + 2,), -7)
        try:
            cuts = _C.plan_batches(lengths.data_ptr(), len(lengths), self.max_tokens, self.max_rows, order[1:].data_ptr())
        except REFUSALS as error:
            return f"refused: {type(error).__name__}"
        assert order[0] == order[-1] == -7, "wrote outside of `order`"
        assert sorted(order[1:-1].tolist()) == list(range(len(lengths))), "not a permutation"
        for start, end in pairwise(cuts):
            batch = lengths[order[1 + start : 1 + end]]
            assert 1 <= len(batch) <= max(self.max_rows, 1)
            assert len(batch) == 1 or int(batch.sum()) <= self.max_tokens, f"a batch of {batch.tolist()}"
        return "accepted"


NUMBERS = [0, 1, 2, 3, 7, 64, -1, -2, 2**31 - 1, 2**31, 2**32, 2**40, 2**61, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64]
number = st.one_of(st.integers(0, 9), st.sampled_from(NUMBERS))
few = st.integers(-1, 6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.lists(st.one_of(few, few, number), max_size=4)),
        st.tuples(st.just("reorder"), st.lists(st.one_of(few, few, number), max_size=5)),
        st.tuples(st.sampled_from(["extend", "crop"]), st.one_of(few, few, number)),
    ),
    max_size=12,
).map(tuple)
slots = st.builds(Slots, st.one_of(st.integers(0, 5), number), st.one_of(st.integers(0, 9), number), steps)
lengths = st.lists(st.one_of(st.integers(0, 600), st.sampled_from([128, 128, 64])), max_size=30)
bands = st.builds(
    Bands,
    st.one_of(
        lengths.map(lambda n: tuple(int(x) for x in torch.tensor([0, *n]).cumsum(0))), st.lists(st.integers(-5, 500), max_size=6).map(tuple)
    ),
    st.one_of(st.integers(0, 4), number),
)
refs = st.lists(
    st.tuples(st.integers(-1, 5), st.one_of(st.integers(-1, 4), number), st.one_of(st.just(0), number)), min_size=1, max_size=5
).map(tuple)
recorded = st.builds(
    Recorded,
    st.booleans(),
    st.lists(st.tuples(st.integers(-1, 4), number, number), max_size=3).map(tuple),
    st.sampled_from(sorted(CALLS)),
    refs,
    st.lists(st.one_of(few, number), min_size=1, max_size=6).map(tuple),
    st.just(()),
)
odd = st.one_of(st.text(max_size=3), st.none(), st.floats(), st.just([1]))
settings = st.one_of(
    st.builds(Settings, st.just("int8_row_bytes"), st.one_of(number, odd)),
    st.builds(Settings, st.just("use_isa"), st.one_of(odd, st.just("avx9000"))),
    st.builds(Settings, st.just("set_num_threads"), st.one_of(st.integers(-3, 9), odd, st.just(2**31))),
    st.builds(Settings, st.just("update_default_threads"), st.one_of(st.integers(-3, 9), odd)),
)
batches = st.builds(
    Batches, st.lists(st.one_of(st.integers(0, 40), number), max_size=20).map(lambda n: tuple(x for x in n if x < 2**63)), number, number
)
TARGET = Target(st.one_of(slots, slots, bands, recorded, settings, batches), batch=300)
