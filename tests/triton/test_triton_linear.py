"""linear and linear_concat on CUDA: cuBLAS with the activation kernel, and the Triton kernel with its epilogue."""

import pytest
import torch

from accuracy import assert_as_accurate
from bertfast.kernels import linear as kernel
from bertfast.kernels import tuning
from bertfast.ops import activations, reference
from bertfast.ops import cuda as backend
from bertfast.ops.cuda import launch, products

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def linear_inputs(tokens, K, F, dtype, device) -> list[torch.Tensor]:
    x, weight, bias, residual = torch.randn(tokens, K), torch.randn(F, K) / max(K, 1) ** 0.5, torch.randn(F), torch.randn(tokens, F)
    return [t.to(device, dtype) for t in (x, weight, bias, residual)]


def reference_linear(dtype, x, weight, bias, activation=None) -> torch.Tensor:
    return reference.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), activation)


def check(actual, *arguments, **more) -> None:
    assert_as_accurate(
        actual,
        yardstick=reference_linear(torch.float32, *arguments, **more).to(actual.dtype),
        truth=reference_linear(torch.float64, *arguments, **more),
    )


TILES = [
    pytest.param(dtype, most, tile, id=f"{str(dtype)[6:]}-rows{most}") for dtype in DTYPES for most, tile in tuning.linear_entries(dtype)
]


@pytest.mark.parametrize(("dtype", "most", "tile"), TILES)
@pytest.mark.parametrize(("tokens", "K", "F"), [(1, 64, 64), (130, 256, 136), (37, 101, 29), (7, 1, 5)])
def test_the_kernel_at_every_tuning_entry(dtype, most, tile, tokens, K, F, device):
    x, weight, bias, _ = linear_inputs(tokens, K, F, dtype, device)
    assert tuning.linear_tile(dtype, most) == tile
    check(kernel.linear(x, weight, None, tile=tile), x, weight, None)
    check(kernel.linear(x, weight, bias, gelu=True, tile=tile), x, weight, bias, "gelu")
    check(kernel.linear(x, weight, bias, tile=tile), x, weight, bias)


def test_many_tiles_are_all_computed(device):
    """More row tiles than a group holds, the last group short: each tile is one program's."""
    x, weight, bias, _ = linear_inputs(16 * 11 + 3, 32, 70, torch.float16, device)
    tile = kernel.Tile(16, 16, 32, 1, 1, group=4)
    check(kernel.linear(x, weight, bias, tile=tile), x, weight, bias)


@every_dtype
def test_the_invariant_tile_gives_a_row_the_same_bits_in_any_batch(dtype, device):
    x, weight, bias, _ = linear_inputs(150, 96, 70, dtype, device)
    tile = tuning.linear_invariant_tile(dtype)
    together = kernel.linear(x, weight, bias, gelu=True, tile=tile)
    for rows in (slice(0, 1), slice(77, 90), slice(100, 150)):
        assert torch.equal(kernel.linear(x[rows], weight, bias, gelu=True, tile=tile), together[rows])


@every_dtype
@pytest.mark.parametrize("activation", [None, *sorted(activations.ACTIVATIONS)])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_linear(activation, with_bias, dtype, device):
    x, weight, bias, _ = linear_inputs(19, 40, 33, dtype, device)
    bias = bias if with_bias else None
    actual = backend.linear(x, weight, bias, activation)
    # The yardstick rounds the product before the activation, as cuBLAS does.
    product = reference_linear(torch.float32, x, weight, bias if activation is None else None).to(dtype).float()
    if activation is not None:
        product = activations.activated(product if bias is None else product + bias.float(), activation)
    assert_as_accurate(actual, yardstick=product.to(dtype), truth=reference_linear(torch.float64, x, weight, bias, activation))


@every_dtype
def test_linear_of_no_rows(dtype, device):
    x, weight, bias, _ = linear_inputs(0, 40, 33, dtype, device)
    assert backend.linear(x, weight, bias, "gelu").shape == (0, 33)
    assert backend.linear_concat(x, [weight, weight], [bias, bias]).shape == (0, 66)


@every_dtype
@pytest.mark.parametrize("layout", ["one-buffer", "weights-only", "separate", "out-of-order"])
@pytest.mark.parametrize("biases", ["all", "some", "none"])
def test_linear_concat_of_weights_in_any_layout(layout, biases, dtype, device):
    sizes, K = (24, 8, 16), 40
    x, weight, bias, _ = linear_inputs(13, K, sum(sizes), dtype, device)
    weights, vectors = list(weight.split(sizes)), list(bias.split(sizes))
    if layout == "separate":
        weights = [w.clone() for w in weights]
    if layout == "out-of-order":
        weights = weights[::-1]
        vectors = vectors[::-1]
    if layout != "one-buffer":
        vectors = [b.clone() for b in vectors]
    if biases != "all":
        vectors[1] = None
    if biases == "none":
        vectors = [None] * 3
    actual = backend.linear_concat(x, weights, vectors)
    definition = [
        reference.linear_concat(x.to(wide), [w.to(wide) for w in weights], [None if b is None else b.to(wide) for b in vectors])
        for wide in (torch.float32, torch.float64)
    ]
    assert_as_accurate(actual, yardstick=definition[0].to(dtype), truth=definition[1])
    assert actual.is_contiguous()


def test_weights_in_one_buffer_are_one_product(monkeypatch, device):
    x, weight, bias, _ = linear_inputs(5, 16, 24, torch.float32, device)
    calls = []
    real = torch.nn.functional.linear
    monkeypatch.setattr(products.F, "linear", lambda *arguments: calls.append(1) or real(*arguments))
    backend.linear_concat(x, weight.split(8), bias.split(8))
    assert len(calls) == 1
    backend.linear_concat(x, [w.clone() for w in weight.split(8)], bias.split(8))
    assert len(calls) == 1


def test_parameters_under_grad_mode(device):
    """Parameters that require grad reach the op under no_grad only."""
    x, weight, bias, _ = linear_inputs(5, 16, 24, torch.float32, device)
    parts = [torch.nn.Parameter(w.clone()) for w in weight.split(8)], [torch.nn.Parameter(b.clone()) for b in bias.split(8)]
    with torch.no_grad():
        actual = backend.linear_concat(x, *parts)
    torch.testing.assert_close(actual, reference.linear(x, weight, bias))


def test_ops_dispatch_to_this_backend(cuda_path, device):
    from bertfast import ops

    x, weight, bias, residual = linear_inputs(6, 16, 16, torch.float16, device)
    assert ops.dispatch.backend_of(device.type, torch.float16) is backend
    assert torch.equal(ops.linear(x, weight, bias, "gelu"), backend.linear(x, weight, bias, "gelu"))
    normalised = backend.add_layer_norm(x, residual, bias, bias, 1e-12)
    assert torch.equal(ops.add_layer_norm(x, residual, bias, bias, 1e-12), normalised)


def test_tf32_only_where_torch_allows_it(monkeypatch, device):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for allowed in (False, True):
            matmul.allow_tf32 = allowed
            assert launch.allow_tf32() is allowed
    finally:
        matmul.allow_tf32 = before
