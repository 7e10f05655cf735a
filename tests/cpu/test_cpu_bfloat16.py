"""bfloat16 on the CPU: every op on every table, with float32 sums, statistics and softmax, rounded once."""

import pytest
import torch
from cpu_checks import boundaries, check
from torch import Tensor

from bertfast import _C, ops
from bertfast.ops import cpu, reference

pytestmark = pytest.mark.usefixtures("isa")

EPS = 1e-12


def randn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


@pytest.mark.parametrize(
    ("tokens", "inputs", "features"),
    [
        pytest.param(1, 768, 768, id="one-token"),
        pytest.param(7, 101, 37, id="nothing-divides"),
        pytest.param(50, 3072, 97, id="several-passes-over-k"),
        pytest.param(5, 1567, 31, id="ragged-last-pass"),
        pytest.param(16, 384, 1536, id="minilm-up"),
        pytest.param(401, 96, 100, id="two-row-blocks"),
        pytest.param(64, 1, 5, id="one-input"),
        pytest.param(0, 768, 768, id="no-tokens"),
        pytest.param(4, 0, 3, id="no-inputs"),
    ],
)
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_linear(tokens, inputs, features, activation):
    check("linear", randn(tokens, inputs), randn(features, inputs), randn(features), activation)


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_activations(activation):
    check("linear", torch.linspace(-13, 13, 4001)[:, None].bfloat16(), torch.ones(1, 1).bfloat16(), None, activation)


def test_linear_concat():
    check("linear_concat", randn(19, 70), [randn(97, 70), randn(30, 70), randn(1, 70)], [randn(97), None, randn(1)])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("inputs", "features"), [(1000, 61), (3072, 24)])
def test_a_row_has_the_same_bits_alone_in_any_batch_and_on_any_threads(inputs, features):
    x, weight, bias = randn(150, inputs), randn(features, inputs), randn(features)
    together = cpu.linear(x, weight, bias, "gelu")
    for size, threads in ((1, 1), (2, 3), (5, 2), (31, 1), (49, 4), (100, 2)):
        _C.set_num_threads(threads)
        parts = torch.cat([cpu.linear(part, weight, bias, "gelu") for part in x.split(size)])
        assert torch.equal(parts, together), f"in batches of {size} on {threads} threads"


@pytest.mark.parametrize(("tokens", "hidden"), [(1, 768), (101, 312), (4, 100), (3, 3), (0, 768)])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no-residual"])
def test_add_layer_norm(tokens, hidden, with_residual):
    x = randn(tokens, hidden)
    check("add_layer_norm", x, randn(tokens, hidden) if with_residual else None, randn(hidden), randn(hidden), EPS)


@pytest.mark.parametrize("with_types", [True, False], ids=["types", "type-0"])
def test_embed_layer_norm(with_types):
    T, H = 37, 100
    ids, positions, types = torch.randint(0, 50, (T,)), torch.randint(0, 12, (T,)), torch.randint(0, 2, (T,))
    tables = randn(50, H), randn(12, H), randn(2, H)
    arguments = [ids, tables[0], positions, tables[1], types if with_types else None, tables[2], randn(H), randn(H), EPS]
    check("embed_layer_norm", *arguments)
    with pytest.raises(ValueError, match="position_ids: got 12, expected 0 <= position_ids < 12"):
        cpu.embed_layer_norm(*[torch.full_like(a, 12) if a is positions else a for a in arguments])


@pytest.mark.parametrize("size", [1, 7, 32, 64, 80, 128, 256])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_varlen_attention(size, causal):
    lengths = [33, 1, 0, 140]
    rows = randn(sum(lengths), 3 * 5 * size + 3)
    q, k, v = (rows[:, i * 5 * size : (i + 1) * 5 * size].unflatten(1, (5, size)) for i in range(3))
    bounds = boundaries(lengths)
    check("varlen_attention", q, k, v, bounds, bounds, 140, 140, causal)


def test_pack_and_unpack():
    x, indices = randn(9, 5), torch.tensor([0, 3, 8])
    assert torch.equal(cpu.pack(x, indices), x[indices])
    for fill in (0.0, -1e4, 1.00390625, float("nan")):
        for order in (indices, indices.flip(0)):
            expected = reference.unpack(x[:3], order, 9, fill)
            assert torch.equal(cpu.unpack(x[:3], order, 9, fill).view(torch.int16), expected.view(torch.int16))


def test_a_cache_is_written_and_read():
    R, N, C, D = 3, 4, 20, 24
    k, v = randn(5, N, D), randn(5, N, D)
    rows, cells = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 19, 3, 4])
    keys, values = randn(R, N, C, D), randn(R, N, C, D)
    expected = keys.clone(), values.clone()
    cpu.write_cache(k, v, keys, values, rows, cells)
    reference.write_cache(k, v, *expected, rows, cells)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])
    check("cached_attention", randn(5, N, D), keys, values, rows, torch.tensor([0, 3, 0, 5, 7]), torch.tensor([1, 20, 20, 5, 16]))


def test_rounds_as_torch_does():
    """To nearest, ties to even, beyond the largest to infinity: of sums of two bfloat16 that float32 holds exactly."""
    upper = torch.randint(0, 2**16, (50_000,))
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF])
    values = ((upper[:, None] << 16) | lower).flatten().to(torch.int32).view(torch.float32)
    high = (values.view(torch.int32) & ~0xFFFF).view(torch.float32)
    low = values - high
    exact = high.isfinite() & (low.bfloat16().float() == low) & (high.abs() > 1e-30) & ((low == 0) | (low.abs() > 1e-30))
    operands = torch.stack([high[exact], low[exact]], dim=1).bfloat16()
    actual = cpu.linear(operands, torch.ones(1, 2).bfloat16(), None)[:, 0]
    expected = values[exact].bfloat16()
    assert len(expected) > 10_000
    assert expected.isinf().any()
    assert torch.equal(actual, expected)


def test_rows_of_nan_stay_nan():
    x = randn(20, 40)
    x[3, 7] = float("nan")
    out = cpu.linear(x, randn(30, 40), randn(30))
    assert out[3].isnan().all()
    assert not out[torch.arange(20) != 3].isnan().any()
