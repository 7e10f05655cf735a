"""How int8 weights are made and laid out, and what the op contract says to those that are wrong."""

import pytest
import torch

from bertfast import ops
from bertfast.ops import int8, reference


def test_the_rotation_is_orthogonal_and_its_own_inverse():
    matrix = int8.rotate(torch.eye(64, dtype=torch.float64))
    assert torch.equal(matrix @ matrix, torch.eye(64, dtype=torch.float64))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.abs(), torch.full((64, 64), 0.125, dtype=torch.float64))


@pytest.mark.parametrize("width", [1, 64])
@pytest.mark.parametrize(("features", "inputs"), [(768, 768), (70, 312), (1, 1), (64, 65), (0, 64), (3, 0)])
def test_files_and_panels_hold_the_same(features, inputs, width):
    q, scales = ops.quantize_weight(torch.randn(features, inputs))
    assert q.shape == (features, -(-inputs // 64) * 64)
    assert scales.shape == (features, -(-inputs // 128))
    weight = ops.pack_int8(q, scales, inputs, width)
    assert (weight.features, weight.inputs, weight.width) == (features, inputs, width)
    for was, now in zip((q, scales), ops.unpack_int8(weight), strict=True):
        assert torch.equal(was, now)


def test_a_weight_is_nearly_itself():
    weight = torch.randn(100, 312)
    q, scales = ops.quantize_weight(weight)
    back = int8.dequantize(q, scales, 312)
    step = scales.max()  # each rotated value is off by at most half of it, 64 of them by at most 8 halves in length
    assert (back - weight).square().view(100, -1).sum(-1).sqrt().max() <= step / 2 * q.shape[1] ** 0.5


def test_is_as_exact_for_embeddings_as_a_scale_a_row():
    words = torch.randn(500, 384) * torch.rand(500, 1)
    rows, row_scales = by_row(words)
    ours = int8.dequantize(*ops.quantize_weight(words), 384)
    assert (ours - words).norm() <= (rows * row_scales - words).norm()


def by_row(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and one scale a row, as int8 usually is: x is nearly their product."""
    scales = x.abs().amax(dim=1, keepdim=True) / 127
    return (x / scales).round(), scales


def test_is_more_exact_than_a_scale_per_channel_and_token():
    """The usual scheme, on inputs with the outliers that transformers have."""
    x, weight = torch.randn(64, 768), torch.randn(256, 768)
    x[:, [5, 300]] *= 30
    truth = x.double() @ weight.double().T
    ours = reference.int8_linear(x, [ops.pack_int8(*ops.quantize_weight(weight), 768)], [None], qmax=63)
    (a, a_scales), (w, w_scales) = by_row(x), by_row(weight)
    usual = (a.double() @ w.double().T) * a_scales * w_scales.T
    assert (ours - truth).norm() < (usual - truth).norm() / 2


@pytest.mark.parametrize(("qmax", "shared"), [(127, 2), (63, 1)])
def test_inputs_share_a_scale_where_they_have_bits_to_spare(qmax, shared):
    x = torch.randn(4, 300) * torch.arange(1, 301)
    q, scales = reference.quantize_inputs(x, qmax)
    assert (q.shape, scales.shape) == ((4, 320), (4, 5))
    for first in range(0, 5, shared):
        part = slice(first, first + shared)
        assert (scales[:, part] == scales[:, first, None]).all()
        assert (q[:, first * 64 : (first + shared) * 64].abs().amax(dim=1) == qmax).all()
    assert len(scales[0].unique()) == -(-5 // shared)
    rotated = int8.rotate(int8.pad_to_blocks(x)).unflatten(1, (5, 64))
    assert ((q.unflatten(1, (5, 64)) * scales[:, :, None] - rotated).abs() <= scales[:, :, None] * 0.5001).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, s: (q.int(), s, 100), r"q must be \[F, K'\] int8, got torch.int32"),
        (lambda q, s: (q, s, 64), r"does not match inputs=64: expected 64 columns"),
        (lambda q, s: (q[:, :100], s, 100), "expected 128 columns"),
        (lambda q, s: (q, s.double(), 100), "scales must be float32"),
        (lambda q, s: (q, s.repeat(1, 2), 100), r"scales \(3, 2\) do not match q \(3, 128\): expected \(3, 1\)"),
        (lambda q, s: (q, s * torch.nan, 100), "finite and not negative"),
        (lambda q, s: (q, -s, 100), "finite and not negative"),
        (lambda q, s: (q - 128, s, 100), "q holds -128"),
    ],
)
def test_pack_says_what_is_wrong(change, message):
    q, scales = ops.quantize_weight(torch.ones(3, 100))
    with pytest.raises(ValueError, match=message):
        ops.pack_int8(*change(torch.zeros_like(q), scales))


def test_quantizing_says_what_is_wrong():
    for bad in (torch.ones(3), torch.ones(3, 4).double()):
        with pytest.raises(ValueError, match="float32"):
            ops.quantize_weight(bad)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="holds inf or nan"):
            ops.quantize_weight(torch.full((2, 3), bad))


def test_the_contract_checks_shapes_and_types():
    x, bias = torch.ones(2, 100), torch.ones(3)
    weight = ops.pack_int8(*ops.quantize_weight(torch.ones(3, 100)), 100)
    torn = ops.Int8Weight(weight.panels[:, :-1], weight.scales, 3, 100)
    for call, message in (
        (lambda: ops.int8_linear(x.double(), [weight], [bias]), "x must be"),
        (lambda: ops.int8_linear(x[:, :99], [weight], [bias]), "100 inputs"),
        (lambda: ops.int8_linear(x, [weight], [bias[:2]]), "bias"),
        (lambda: ops.int8_linear(x, [weight], [bias.double()]), "bias is torch.float64"),
        (lambda: ops.int8_linear(x, [weight], []), "1 weights and 0 biases"),
        (lambda: ops.int8_linear(x, [torn], [bias]), "panels"),
        (lambda: ops.int8_linear(x, [weight], [bias], "sigmoid"), "activation 'sigmoid'"),
        (lambda: ops.int8_linear(x.T.contiguous().T, [weight], [bias]), "contiguous"),
        (lambda: ops.int8_linear(x.clone().requires_grad_(), [weight], [bias]), "do not differentiate"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    ids, words = torch.tensor([0, 1]), ops.pack_int8(*ops.quantize_weight(torch.ones(5, 100)), 100, 1)

    def table(panels: torch.Tensor, scales: torch.Tensor) -> ops.Int8Weight:
        return ops.Int8Weight(panels, scales, 5, 100)

    def embed(weight: ops.Int8Weight, positions: torch.Tensor = x) -> torch.Tensor:
        return ops.int8_embed_layer_norm(ids, weight, ids, positions, None, x, x[0], x[0], 1e-12)

    for call, message in (
        (lambda: embed(table(words.panels.float(), words.scales)), "panels are damaged"),
        (lambda: embed(table(words.panels[:4], words.scales)), "panels"),
        (lambda: embed(table(words.panels, words.scales[:4])), "scales"),
        (lambda: embed(table(words.panels, words.scales.double())), "scales is"),
        (lambda: embed(words, x[:, :9]), "position_weight"),
        (lambda: embed(weight=ops.pack_int8(*ops.quantize_weight(torch.ones(5, 64)), 64)), "words of 64 columns"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
