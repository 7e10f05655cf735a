"""Random graphs of ops, recorded at one size and replayed at others, with and without bands: the bits that the ops give one by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from bertfast import _C, ops
from bertfast.engine.plan_builder import CannotRecordError
from bertfast.engine.plan_inputs import PlanInputs, RowCount
from bertfast.engine.recorder import Recorder
from bertfast.graph.heads import HeadOutput
from tests.fuzz.case import Case, Target

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS = 20  # of each table
ACTIVATIONS = (None, *ops.ACTIVATIONS)
LAST = ("whole", "pack", "keys", "unpack", "two")


@dataclass(frozen=True)
class Graph(Case):
    """heads of size `size`; steps: (name, a number that says which operands); last: what becomes of the rows at the end."""

    dtype: str
    heads: int
    size: int
    steps: tuple[tuple[str, int], ...]
    last: str
    embedded: bool
    typed: bool
    batches: tuple[tuple[int, ...], ...]  # lengths of the sequences; the first is recorded
    threads: int
    seed: int

    def weights(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.randn(1 << 13, generator=generator).to(DTYPES[self.dtype]) / 4

    def inputs(self, lengths: tuple[int, ...], number: int) -> tuple[PlanInputs, list[int]]:
        generator = torch.Generator().manual_seed(self.seed + number)
        R, B, S = sum(lengths), len(lengths), max(lengths, default=0)
        cu = torch.tensor([0, *lengths]).cumsum(0).int()
        real = torch.arange(S) < torch.tensor(lengths)[:, None]
        key_rows = torch.arange(0, R, 2)
        inputs = PlanInputs(
            input_ids=torch.arange(R) if self.embedded else torch.randint(0, ROWS, (R,), generator=generator),
            position_ids=torch.randint(0, ROWS, (R,), generator=generator), cu_seqlens_q=cu, cu_seqlens_k=cu.clone(),
            token_type_ids=torch.randint(0, ROWS, (R,), generator=generator) if self.typed else None,
            words=torch.randn(R, self.heads * self.size, generator=generator).to(DTYPES[self.dtype]) if self.embedded else None,
            key_rows=key_rows, indices=real.view(-1).nonzero().view(-1), first_rows=cu[:-1].long().clamp(max=max(R - 1, 0)),
        )  # fmt: skip
        counts = {
            RowCount.ROWS: R,
            RowCount.SEQUENCES: B,
            RowCount.PADDED_ROWS: B * S,
            RowCount.KEYS: len(key_rows),
            RowCount.EMBEDDED_ROWS: R if self.embedded else 0,
        }
        return inputs, [counts.get(count, 0) for count in sorted(RowCount)]

    def run(self, O: Any, inputs: PlanInputs, counts: list[int], weights: list[Tensor]) -> dict[str, Tensor]:
        H, made = self.heads * self.size, iter(weights)

        def weight(*shape: int) -> Tensor:
            return next(made)[: torch.Size(shape).numel()].view(shape)

        words = weight(ROWS, H) if inputs.words is None else inputs.words
        x = O.embed_layer_norm(
            inputs.input_ids,
            words,
            inputs.position_ids,
            weight(ROWS, H),
            inputs.token_type_ids,
            weight(ROWS, H),
            weight(H),
            weight(H),
            1e-5,
        )
        earlier = [x]
        longest = int(inputs.cu_seqlens_q.diff().max()) if len(inputs.cu_seqlens_q) > 1 else 0
        for name, n in self.steps:
            if name == "linear":
                F = (1, 5, 32, H)[n % 4]
                inner = O.linear(x, weight(F, H), weight(F) if n % 2 else None, activation=ACTIVATIONS[n % len(ACTIVATIONS)])
                x = O.linear(inner, weight(H, F), None)
            elif name == "norm":
                x = O.add_layer_norm(x, earlier[n % len(earlier)] if n % 3 else None, weight(H), weight(H), (1e-12, 0.1)[n % 2])
            elif name == "attention":
                qkv = O.linear_concat(x, [weight(H, H) for _ in range(3)], [weight(H) if n % 2 else None for _ in range(3)])
                q, k, v = (t.view(-1, self.heads, self.size) for t in qkv.chunk(3, dim=1))
                x = O.varlen_attention(q, k, v, inputs.cu_seqlens_q, inputs.cu_seqlens_k, longest, longest, bool(n % 2)).view(-1, H)
            earlier.append(x)
        if self.last == "pack":
            return {"out": O.pack(x, inputs.first_rows)}
        if self.last == "keys":
            return {"out": O.linear(O.pack(x, inputs.key_rows), weight(3, H), None)}
        if self.last == "unpack":
            return {"out": O.unpack(x, inputs.indices, counts[RowCount.PADDED_ROWS], fill=-3.0)}
        if self.last == "two":
            return {
                "out": O.linear(x, weight(2, H), None),
                "first": O.linear(O.pack(x, inputs.first_rows), weight(2, H), None, activation="tanh"),
            }
        return {"out": x}

    def check(self) -> str:
        made = self.weights()
        weights = [next(made) for _ in range(40)]
        _C.set_num_threads(self.threads)
        try:
            inputs, counts = self.inputs(self.batches[0], 0)
            recorder = Recorder(inputs, frozenset(t.data_ptr() for t in weights))
            first = self.run(recorder, inputs, counts, weights)
            try:
                recorded = recorder.finish({name: HeadOutput(t, self.last == "unpack") for name, t in first.items()})
            except CannotRecordError as reason:
                return f"no plan: {str(reason)[:24]}"
            bands = 0
            for number, lengths in enumerate(self.batches):
                inputs, counts = self.inputs(lengths, number)
                expected = self.run(ops, inputs, counts, weights)
                out = {o.name: torch.full((counts[o.rows], o.columns), 7.0, dtype=recorded.dtype) for o in recorded.outputs}
                recorded.plan.run(counts, [*inputs.addresses(), *(t.data_ptr() for t in out.values())])
                for name, value in expected.items():
                    assert torch.equal(out[name], value), f"{name} of batch {number} has other bits"
                bands += bool(_C.cut_into_bands(inputs.cu_seqlens_q.tolist(), self.threads))
        finally:
            _C.set_num_threads(1)
        return "equal" if not bands else "equal, in bands"


few = st.lists(st.integers(0, 9), min_size=1, max_size=6)
many = st.lists(st.integers(1, 70), min_size=8, max_size=24)
steps = st.lists(st.tuples(st.sampled_from(["linear", "norm", "attention"]), st.integers(0, 11)), max_size=5).map(tuple)
batches = st.tuples(few.filter(sum), st.one_of(few.filter(sum), many), many).map(lambda b: tuple(map(tuple, b)))
TARGET = Target(
    st.builds(
        Graph,
        st.sampled_from(sorted(DTYPES)),
        st.integers(1, 3),
        st.sampled_from([1, 4, 8, 13]),
        steps,
        st.sampled_from(LAST),
        st.booleans(),
        st.booleans(),
        batches,
        st.integers(1, 3),
        st.integers(0, 999),
    ),
    batch=50,
)
