"""An int8 layer recorded and replayed: the same bits as op by op, rows quantized by the op that makes them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bertfast import _C, ops
from bertfast.engine.plan_builder import RecordedPlan
from bertfast.engine.plan_inputs import PlanInputs, RowCount
from bertfast.engine.recorder import QUANTIZING_OPS, Recorder
from bertfast.graph.heads import HeadOutput

H, N, INNER, EPS = 96, 3, 300, 1e-12  # neither a multiple of 64; the last 44 of 300 have a scale of their own


@pytest.fixture(params=[name for name, built, here in _C.isas() if built and here])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(before)


class Layer:
    """Embeddings, a layer and a head, computed by given ops."""

    def __init__(self, tied: bool = False) -> None:
        def packed(features: int, inputs: int) -> ops.Int8Weight:
            return ops.pack_int8(*ops.quantize_weight(torch.randn(features, inputs) * inputs**-0.5), inputs)

        self.words = ops.pack_int8(*ops.quantize_weight(torch.randn(40, H)), H, 1)
        self.positions, self.types = torch.randn(30, H), torch.randn(2, H)
        self.norms = [torch.randn(H) for _ in range(2)]
        self.qkv, self.qkv_bias = [packed(H, H) for _ in range(3)], [torch.randn(H) for _ in range(3)]
        self.out, self.up, self.down, self.head = packed(H, H), packed(INNER, H), packed(H, INNER), packed(7, H)
        if tied:
            self.words = self.head = packed(40, H)
        self.inner_bias = torch.randn(INNER)

    def weights(self) -> frozenset[int]:
        packed = [self.words, *self.qkv, self.out, self.up, self.down, self.head]
        plain = [self.positions, self.types, *self.norms, *self.qkv_bias, self.inner_bias]
        return frozenset(t.data_ptr() for t in [*plain, *(w.panels for w in packed), *(w.scales for w in packed)])

    def run(self, O: Any, ids: Tensor, positions: Tensor, cu: Tensor) -> Tensor:
        x = O.int8_embed_layer_norm(ids, self.words, positions, self.positions, None, self.types, *self.norms, EPS)
        q, k, v = (t.unflatten(1, (N, H // N)) for t in O.int8_linear(x, self.qkv, self.qkv_bias).split(H, dim=1))
        context = O.varlen_attention(q, k, v, cu, cu, 30, 30).flatten(1)
        x = O.add_layer_norm(O.int8_linear(context, [self.out], [None]), x, *self.norms, EPS)
        inner = O.int8_linear(x, [self.up], [self.inner_bias], "gelu")
        x = O.add_layer_norm(O.int8_linear(inner, [self.down], [None]), x, *self.norms, EPS)
        return O.int8_linear(x, [self.head], [None])


def make_inputs(lengths: list[int]) -> list[Tensor]:
    T = sum(lengths)
    return [torch.randint(0, 40, (T,)), torch.cat([torch.arange(n) for n in lengths]), torch.tensor([0, *lengths]).cumsum(0).int()]


def record(layer: Layer, ids: Tensor, positions: Tensor, cu: Tensor) -> tuple[Recorder, RecordedPlan]:
    recorder = Recorder(PlanInputs(input_ids=ids, position_ids=positions, cu_seqlens_q=cu, cu_seqlens_k=cu), layer.weights())
    out = layer.run(recorder, ids, positions, cu)
    return recorder, recorder.finish({"logits": HeadOutput(out)})


def replay(recorded: RecordedPlan, ids: Tensor, positions: Tensor, cu: Tensor) -> Tensor:
    out = torch.full((len(ids), recorded.outputs[0].columns), torch.nan)
    inputs = PlanInputs(input_ids=ids, position_ids=positions, cu_seqlens_q=cu, cu_seqlens_k=cu)
    counts = [0] * len(RowCount)
    counts[RowCount.ROWS], counts[RowCount.SEQUENCES] = len(ids), len(cu) - 1
    recorded.plan.run(counts, [*inputs.addresses(), out.data_ptr()])
    return out


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lengths", [[5, 9], [1], [30, 1, 17, 29, 30, 3], [30, 1, 29] * 9])
def test_a_plan_gives_the_bits_of_the_ops(lengths, tied):
    layer = Layer(tied)
    _, recorded = record(layer, *make_inputs([4, 2]))
    inputs = make_inputs(lengths)
    assert torch.equal(replay(recorded, *inputs), layer.run(ops, *inputs))


def test_rows_are_quantized_by_the_op_that_makes_them():
    recorder, recorded = record(Layer(), *make_inputs([4, 2]))
    names = [op for op, _ in recorder.calls]
    assert names.count("int8_quantize") == 1, "only attention makes float rows alone"
    assert [ops["quantized"] is not None for name, ops in recorder.calls if name in QUANTIZING_OPS] == [
        *(True, False, False, True),  # embeddings; QKV; the output product; LayerNorm
        *(True, False, True, False),  # up; down; LayerNorm; the head
    ]
    assert [ops["out"] is None for name, ops in recorder.calls if name == "int8_linear"] == [False, False, True, False, False]
    assert len(recorded.plan) == len(names)


def test_a_bad_id_is_named_by_a_plan_too():
    layer = Layer()
    _, recorded = record(layer, *make_inputs([4, 2]))
    ids, positions, cu = make_inputs([3])
    ids[1] = 40
    with pytest.raises(ValueError, match="input_ids: got 40, expected 0 <= input_ids < 40"):
        replay(recorded, ids, positions, cu)
