"""int8 on the CPU: the integers are those of the definition, to the last one, and what is float is as accurate as it in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor

from accuracy import assert_as_accurate
from bertfast import _C, ops
from bertfast.ops import cpu, int8, reference

pytestmark = pytest.mark.usefixtures("isa")

SHAPES = [
    pytest.param(1, 768, 768, id="one-token"),
    pytest.param(7, 101, 37, id="nothing-divides"),
    pytest.param(13, 3072, 96, id="many-groups"),
    pytest.param(5, 312, 1200, id="tinybert"),
    pytest.param(16, 384, 1536, id="minilm-up"),
    pytest.param(64, 1, 5, id="one-input"),
    pytest.param(3, 2, 1, id="one-output"),
    pytest.param(49, 64, 64, id="two-row-blocks"),
    pytest.param(401, 96, 100, id="three-items-of-rows"),
    pytest.param(0, 768, 768, id="no-tokens"),
    pytest.param(4, 0, 3, id="no-inputs"),
]


def packed(weight: Tensor) -> ops.Int8Weight:
    return ops.pack_int8(*ops.quantize_weight(weight), weight.shape[1])


def check(x: Tensor, weights: list[ops.Int8Weight], biases: list[Tensor | None], activation: str | None = None) -> Tensor:
    """A single integer that is one off would be hundreds of times what this allows."""
    actual = cpu.int8_linear(x, weights, biases, activation)
    yardstick, truth = (
        reference.int8_linear(x.to(dtype), weights, [b if b is None else b.to(dtype) for b in biases], activation, _C.int8_levels())
        for dtype in (torch.float32, torch.float64)
    )
    assert_as_accurate(actual, yardstick=yardstick, truth=truth)
    return actual


@pytest.mark.parametrize(("tokens", "inputs", "features"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_matches_definition(tokens, inputs, features, with_bias):
    x = torch.randn(tokens, inputs) * torch.randn(inputs).exp()
    check(x, [packed(torch.randn(features, inputs))], [torch.randn(features) if with_bias else None])


@pytest.mark.parametrize("tokens", range(1, 14))
def test_every_height_of_a_tile(tokens):
    check(torch.randn(tokens, 130), [packed(torch.randn(70, 130))], [None])


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_activations(activation):
    check(torch.randn(9, 200), [packed(torch.randn(70, 200) * 0.2)], [torch.randn(70)], activation)


@pytest.mark.parametrize("features", [(384, 384, 384), (5,), (1, 97, 30), (100, 0, 7)])
def test_several_weights(features):
    check(
        torch.randn(19, 70),
        [packed(torch.randn(f, 70)) for f in features],
        [torch.randn(f) if i != 1 else None for i, f in enumerate(features)],
    )


@pytest.mark.parametrize("weight_sign", [1, -1])
@pytest.mark.parametrize("pattern", ["all", "alternating"])
def test_the_largest_integers_do_not_saturate(weight_sign, pattern):
    """Every product of a group at its largest: two of them in 16 bits must still fit."""
    signs = torch.ones(3, 192)
    if pattern == "alternating":
        signs[:, ::2] = -1
    qmax = _C.int8_levels()
    weight = ops.pack_int8((signs[:1] * weight_sign * 127).to(torch.int8).repeat(70, 1), torch.ones(70, 2), 192)
    for sign in (1, -1):
        rotated = signs * sign * qmax
        out = cpu.int8_linear(int8.rotate(rotated), [weight], [None])
        assert torch.equal(out, torch.full((3, 70), 192.0 * qmax * 127 * weight_sign * sign))


def test_rows_of_zeros_and_of_next_to_nothing():
    weight, bias = packed(torch.randn(70, 100)), torch.randn(70)
    x = torch.zeros(5, 100)
    x[1], x[2], x[3, :64], x[4, 64:] = 1e-40, 1e-35, 1.0, -1.0
    out = check(x, [weight], [bias])
    assert torch.equal(out[:3], bias.expand(3, 70))


def test_weights_of_zeros():
    weight = torch.randn(70, 100)
    weight[3], weight[:, 64:] = 0.0, 0.0
    out = check(torch.randn(5, 100), [packed(weight)], [None])
    assert torch.equal(out[:, 3], torch.zeros(5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("column", [0, 63, 64, 99])
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_a_row_that_is_not_finite_is_nan_throughout_and_the_others_are_as_ever(bad, column, activation):
    weight, bias = packed(torch.randn(70, 100)), torch.randn(70)
    x = torch.randn(9, 100)
    before = cpu.int8_linear(x, [weight], [bias], activation)
    x[4, column] = bad
    if bad == 3e38:  # finite, but not once it is added to another
        x[4, column - 1 if column % 64 else column + 1] = bad
    after = cpu.int8_linear(x, [weight], [bias], activation)
    assert after[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(after[others], before[others])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("inputs", "features"), [(1000, 61), (384, 200), (3072, 24)])
def test_a_row_has_the_same_bits_alone_in_any_batch_and_on_any_threads(inputs, features):
    x, weight, bias = torch.randn(250, inputs), packed(torch.randn(features, inputs)), torch.randn(features)
    together = cpu.int8_linear(x, [weight], [bias], "gelu")
    for size, threads in ((1, 1), (2, 3), (5, 2), (31, 1), (49, 4), (200, 2)):
        _C.set_num_threads(threads)
        parts = torch.cat([cpu.int8_linear(part, [weight], [bias], "gelu") for part in x.split(size)])
        assert torch.equal(parts, together), f"in batches of {size} on {threads} threads"


def test_gelu_is_exact_to_a_rounding_beside_two():
    """Of nothing but the bias, from far below 0 to far above."""
    x = torch.cat([torch.linspace(-20, 20, 100_001), torch.tensor([-1e30, 1e30, -0.0])])
    weight = ops.pack_int8(torch.zeros(len(x), 64, dtype=torch.int8), torch.zeros(len(x), 1), 64)
    out = cpu.int8_linear(torch.zeros(1, 64), [weight], [x], "gelu")[0]
    truth = torch.nn.functional.gelu(x.double())
    assert ((out - truth).abs() <= torch.finfo(torch.float32).eps * truth.abs().clamp(min=2)).all()


def test_rows_that_neither_start_nor_end_on_a_cache_line():
    x = torch.randn(11, 101)[1:]
    assert x.data_ptr() % 64
    check(x, [packed(torch.randn(33, 101))], [None])


class TestEmbedding:
    def make_inputs(self, tokens: int, hidden: int, with_types: bool = True, width: int = 1) -> list[Any]:
        words = ops.pack_int8(*ops.quantize_weight(torch.randn(150, hidden)), hidden, width)
        return [
            torch.randint(0, 150, (tokens,)), words,
            torch.randint(0, 12, (tokens,)), torch.randn(12, hidden),
            torch.randint(0, 2, (tokens,)) if with_types else None, torch.randn(2, hidden),
            torch.randn(hidden), torch.randn(hidden),
        ]  # fmt: skip

    @pytest.mark.parametrize(("tokens", "hidden"), [(1, 768), (37, 100), (500, 312), (3, 1), (0, 64)])
    @pytest.mark.parametrize("with_types", [True, False], ids=["types", "type-0"])
    @pytest.mark.parametrize("width", [1, 64])
    def test_matches_definition(self, tokens, hidden, with_types, width):
        args = self.make_inputs(tokens, hidden, with_types, width)
        double = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        assert_as_accurate(
            cpu.int8_embed_layer_norm(*args, 1e-12),
            yardstick=reference.int8_embed_layer_norm(*args, 1e-12),
            truth=reference.int8_embed_layer_norm(*double, 1e-12),
        )

    def test_both_widths_give_the_same_bits(self):
        rows, *others = self.make_inputs(200, 312)[1:]
        ids = torch.arange(150)[torch.randint(0, 150, (200,))]
        wide = ops.pack_int8(*ops.unpack_int8(rows), 312)
        assert torch.equal(cpu.int8_embed_layer_norm(ids, rows, *others, 1e-12), cpu.int8_embed_layer_norm(ids, wide, *others, 1e-12))

    @pytest.mark.parametrize(("argument", "name", "rows"), [(0, "input_ids", 150), (2, "position_ids", 12), (4, "token_type_ids", 2)])
    @pytest.mark.parametrize("bad", [-1, 2**62])
    def test_an_id_out_of_range_is_named(self, argument, name, rows, bad):
        args = self.make_inputs(20, 100)
        args[argument][7] = bad
        with pytest.raises(ValueError, match=f"{name}: got {bad}, expected 0 <= {name} < {rows}"):
            cpu.int8_embed_layer_norm(*args, 1e-12)
