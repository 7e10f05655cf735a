"""linear and linear_concat on the CPU: accuracy on every table, and the same bits in any batch on any number of threads."""

import pytest
import torch
from cpu_checks import check

from bertfast import _C, ops
from bertfast.ops import cpu

pytestmark = pytest.mark.usefixtures("isa")

SHAPES = [
    pytest.param(1, 768, 768, id="one-token"),
    pytest.param(7, 101, 37, id="nothing-divides"),
    pytest.param(13, 3072, 96, id="several-passes-over-k"),
    pytest.param(5, 1100, 31, id="ragged-second-pass"),
    pytest.param(64, 1, 5, id="one-input"),
    pytest.param(3, 2, 1, id="one-output"),
    pytest.param(16, 384, 1536, id="minilm-up"),
    pytest.param(401, 96, 100, id="two-row-blocks"),
    pytest.param(8, 768, 100, id="small-batch-in-one-tile"),
    pytest.param(4, 1024, 25, id="small-batch-rows-4-KiB-apart"),
    pytest.param(8, 3072, 97, id="small-batch-rows-12-KiB-apart"),
    pytest.param(48, 2048, 10, id="few-rows-8-KiB-apart"),
    pytest.param(401, 1024, 100, id="many-rows-4-KiB-apart"),
    pytest.param(50, 3072, 97, id="many-rows-12-KiB-apart"),
    pytest.param(10, 70, 22, id="tiles-of-five-rows-ends-within-few-inputs"),
    pytest.param(13, 33, 18, id="tiles-of-four-and-five-rows"),
    pytest.param(53, 16, 97, id="many-rows-of-one-register"),
    pytest.param(59, 1030, 193, id="many-rows-ragged-last-pass"),
    pytest.param(0, 768, 768, id="no-tokens"),
    pytest.param(4, 0, 3, id="no-inputs"),
]


def make_inputs(tokens: int, inputs: int, features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(tokens, inputs), torch.randn(features, inputs), torch.randn(features)


@pytest.mark.parametrize(("tokens", "inputs", "features"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_matches_definition(tokens, inputs, features, with_bias):
    x, weight, bias = make_inputs(tokens, inputs, features)
    check("linear", x, weight, bias if with_bias else None)


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
@pytest.mark.parametrize(("tokens", "inputs", "features"), [(7, 101, 37), (3, 1600, 5), (1, 384, 1536)])
def test_activation_after_the_last_pass(activation, tokens, inputs, features):
    x, weight, bias = make_inputs(tokens, inputs, features)
    check("linear", x, weight * inputs**-0.5, bias, activation)


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 13.0, 100.0, 1e4])
def test_activation_at_every_magnitude(activation, scale):
    x = torch.linspace(-scale, scale, 4001)[:, None]
    check("linear", x, torch.ones(1, 1), None, activation)


def test_gelu_keeps_the_digits_of_its_negative_tail():
    """x Phi(x) relative to itself, where 1 + erf(x / sqrt 2) has cancelled: torch's float32 gelu is 0 from -5.6 on."""
    x = torch.linspace(-12.0, -1.0, 1001)
    actual = cpu.linear(x[:, None], torch.ones(1, 1), None, "gelu")[:, 0].double()
    truth = x.double() * 0.5 * torch.special.erfc(-x.double() / 2**0.5)
    # exp(-x^2 / 2) is as uncertain as its argument: half a unit in the last place of 72 at -12.
    assert ((actual - truth) / truth).abs().max() < 200 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_activation_of_what_is_not_finite(activation):
    x = torch.tensor([[float("nan")], [float("inf")], [3e38]])
    nan, inf, largest = cpu.linear(x, torch.ones(1, 1), None, activation)[:, 0].tolist()
    assert nan != nan
    assert inf == (1.0 if activation == "tanh" else float("inf"))
    assert largest == (1.0 if activation == "tanh" else pytest.approx(3e38))


@pytest.mark.parametrize("features", [(384, 384, 384), (5,), (1, 97, 30), (100, 0, 7)])
def test_concat_matches_definition(features):
    x = torch.randn(19, 70)
    weights = [torch.randn(f, 70) for f in features]
    biases = [torch.randn(f) if i != 1 else None for i, f in enumerate(features)]
    check("linear_concat", x, weights, biases)


@pytest.mark.parametrize(("inputs", "features"), [(1000, 61), (384, 200), (3072, 24), (1024, 9)])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(inputs, features):
    x, weight, bias = make_inputs(97, inputs, features)
    together = cpu.linear(x, weight, bias, "gelu")
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 31, 49, 53):
        parts = torch.cat([cpu.linear(part, weight, bias, "gelu") for part in x.split(size)])
        assert torch.equal(parts, together), f"in batches of {size}"


@pytest.mark.usefixtures("threads")
def test_the_bits_do_not_depend_on_threads():
    x, weight, bias = make_inputs(400, 800, 230)
    _C.set_num_threads(1)
    alone = cpu.linear(x, weight, bias, "gelu")
    for threads in (2, 3, 5, 16):
        _C.set_num_threads(threads)
        assert torch.equal(cpu.linear(x, weight, bias, "gelu"), alone), f"on {threads} threads"


def test_weights_are_read_where_they_lie():
    """Any change of the weight counts in the next call: no packed copy exists."""
    x, weight, bias = make_inputs(3, 40, 10)
    before = cpu.linear(x, weight, bias)
    weight.numpy()[:] *= 2
    torch.testing.assert_close(cpu.linear(x, weight, bias) - bias, 2 * (before - bias))
