"""add_layer_norm and embed_layer_norm on the CPU."""

import re

import pytest
import torch
from cpu_checks import check
from torch import Tensor

from bertfast import _C
from bertfast.ops import cpu, reference

pytestmark = pytest.mark.usefixtures("isa")

EPS = 1e-12  # BERT's own


def make_inputs(tokens: int, hidden: int, mean: float = 0.0) -> list[Tensor]:
    return [torch.randn(tokens, hidden) + mean, torch.randn(tokens, hidden), torch.randn(hidden), torch.randn(hidden)]


@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize(
    ("tokens", "hidden"),
    [
        pytest.param(1, 768, id="one-token"),
        pytest.param(7, 1024, id="bert-large"),
        pytest.param(101, 312, id="tinybert"),
        pytest.param(4, 100, id="ragged-block"),
        pytest.param(3, 3, id="shorter-than-a-vector"),
        pytest.param(5, 1, id="zero-variance"),
        pytest.param(2, 16384, id="long-rows"),
        pytest.param(0, 768, id="empty-batch"),
    ],
)
def test_matches_definition(tokens, hidden, with_residual):
    x, residual, weight, bias = make_inputs(tokens, hidden)
    check("add_layer_norm", x, residual if with_residual else None, weight, bias, EPS)


@pytest.mark.parametrize("mean", [1e2, -1e3, 1e5])
@pytest.mark.parametrize("hidden", [100, 768])
def test_large_mean_does_not_cancel(mean, hidden):
    """E[x^2] - E[x]^2 loses its digits here, and so does a mean that is rounded once."""
    check("add_layer_norm", *make_inputs(16, hidden, mean=mean), EPS)


def test_a_constant_row_is_the_bias():
    x, _, weight, bias = make_inputs(3, 100)
    for value in (0.0, 1.0, 1e6, 12345.678):
        out = cpu.add_layer_norm(torch.full_like(x, value), None, weight, bias, EPS)
        assert torch.equal(out, bias.expand_as(out)), value


def test_a_row_has_the_same_bits_alone_and_in_a_batch():
    x, residual, weight, bias = make_inputs(301, 100)
    together = cpu.add_layer_norm(x, residual, weight, bias, EPS)
    alone = [cpu.add_layer_norm(x[i : i + 1], residual[i : i + 1], weight, bias, EPS) for i in range(301)]
    assert torch.equal(torch.cat(alone), together)


class TestEmbedding:
    V, P, Y = 50, 12, 2

    def make_inputs(self, tokens: int, hidden: int) -> list[Tensor]:
        return [
            torch.randint(0, self.V, (tokens,)), torch.randn(self.V, hidden),
            torch.randint(0, self.P, (tokens,)), torch.randn(self.P, hidden),
            torch.randint(0, self.Y, (tokens,)), torch.randn(self.Y, hidden),
            torch.randn(hidden), torch.randn(hidden),
        ]  # fmt: skip

    @pytest.mark.parametrize(("tokens", "hidden"), [(1, 768), (37, 100), (500, 384), (3, 1), (0, 64)])
    @pytest.mark.parametrize("with_types", [True, False], ids=["types", "type-0"])
    def test_matches_definition(self, tokens, hidden, with_types):
        args = self.make_inputs(tokens, hidden)
        if not with_types:
            args[4] = None
        check("embed_layer_norm", *args, EPS)

    def test_rows_are_the_ids(self):
        """The edges of each table are in reach."""
        args = self.make_inputs(4, 32)
        args[0], args[2], args[4] = torch.tensor([0, 49, 0, 49]), torch.tensor([0, 11, 11, 0]), torch.tensor([0, 1, 0, 1])
        check("embed_layer_norm", *args, EPS)

    @pytest.mark.parametrize(("argument", "name", "rows"), [(0, "input_ids", 50), (2, "position_ids", 12), (4, "token_type_ids", 2)])
    @pytest.mark.parametrize("bad", [-1, -(2**62), 2**62, None], ids=["-1", "very-negative", "huge", "one-past-the-end"])
    @pytest.mark.parametrize("at", [0, 150, 299])
    def test_an_id_out_of_range_is_named_and_never_read(self, argument, name, rows, bad, at):
        args = self.make_inputs(300, 100)
        bad = rows if bad is None else bad
        args[argument][at] = bad
        message = f"^{re.escape(reference.out_of_range(name, bad, rows))}$"
        with pytest.raises(ValueError, match=message):
            cpu.embed_layer_norm(*args, EPS)
        with pytest.raises(ValueError, match=message):
            reference.embed_layer_norm(*args, EPS)

    def test_works_again_after_a_bad_id(self):
        args = self.make_inputs(20, 64)
        bad = [torch.full_like(args[0], 99), *args[1:]]
        with pytest.raises(ValueError, match="input_ids: got 99"):
            cpu.embed_layer_norm(*bad, EPS)
        check("embed_layer_norm", *args, EPS)

    @pytest.mark.usefixtures("threads")
    def test_the_bits_do_not_depend_on_threads_or_batch(self):
        args = self.make_inputs(400, 100)
        together = cpu.embed_layer_norm(*args, EPS)
        for threads in (1, 3):
            _C.set_num_threads(threads)
            rows = []
            for i in (0, 17, 399):
                one = [a[i : i + 1] if n in (0, 2, 4) else a for n, a in enumerate(args)]
                rows.append(cpu.embed_layer_norm(*one, EPS))
            assert torch.equal(torch.cat(rows), together[[0, 17, 399]])
