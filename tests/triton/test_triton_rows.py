"""The ops that take a batch row by row, in Triton: add_layer_norm, embed_layer_norm, pack, unpack; and the activation kernel."""

import pytest
import torch

from accuracy import assert_as_accurate
from bertfast.kernels import activation as kernel
from bertfast.kernels import tuning
from bertfast.ops import cuda as backend
from bertfast.ops import reference
from bertfast.ops.activations import activated

EPS = 1e-12  # BERT's; 0 in float16, so kernels add it in float32
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])


def in_dtype(arguments: list, dtype: torch.dtype) -> list:
    return [t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in arguments]


def check(op: str, *arguments) -> torch.Tensor:
    actual = getattr(backend, op)(*arguments)
    definition = getattr(reference, op)
    assert_as_accurate(
        actual,
        yardstick=definition(*in_dtype(arguments, torch.float32)).to(actual.dtype),
        truth=definition(*in_dtype(arguments, torch.float64)),
    )
    return actual


def add_layer_norm_inputs(tokens, H, dtype, device, mean=0.0) -> list[torch.Tensor]:
    shapes = [(tokens, H), (tokens, H), (H,), (H,)]  # x, residual, weight, bias
    x, *rest = (torch.randn(shape) for shape in shapes)
    return [t.to(device, dtype) for t in (x + mean, *rest)]


@every_dtype
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize(("tokens", "H"), [(1, 768), (7, 384), (3, 1024), (5, 100), (2, 31), (3, 1), (2, 5000), (0, 768)])
def test_add_layer_norm(tokens, H, with_residual, dtype, device):
    x, residual, weight, bias = add_layer_norm_inputs(tokens, H, dtype, device)
    check("add_layer_norm", x, residual if with_residual else None, weight, bias, EPS)


@every_dtype
def test_add_layer_norm_with_a_large_mean(dtype, device):
    """Here E[x^2] - E[x]^2 would lose its digits; the variance around the mean does not."""
    check("add_layer_norm", *add_layer_norm_inputs(4, 768, dtype, device, mean=1e3), EPS)


def test_add_layer_norm_of_rows_wider_than_the_kernel_takes(device):
    check("add_layer_norm", *add_layer_norm_inputs(2, 9000, torch.float32, device), EPS)


def test_add_layer_norm_propagates_nan_and_inf(device):
    x, residual, weight, bias = add_layer_norm_inputs(3, 64, torch.float16, device)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    out = backend.add_layer_norm(x, residual, weight, bias, EPS)
    assert out[0].isfinite().all()
    assert out[1:].isnan().all()


def embed_layer_norm_inputs(tokens, H, dtype, device, with_types=True) -> list:
    tables = [torch.randn(rows, H).to(device, dtype) for rows in (50, 20, 2)]
    ids = [torch.randint(rows, (tokens,), device=device) for rows in (50, 20, 2)]
    weight, bias = (torch.randn(H).to(device, dtype) for _ in range(2))
    return [ids[0], tables[0], ids[1], tables[1], ids[2] if with_types else None, tables[2], weight, bias, EPS]


@every_dtype
@pytest.mark.parametrize("with_types", [True, False], ids=["types", "type-0"])
@pytest.mark.parametrize(("tokens", "H"), [(1, 768), (7, 384), (5, 100), (3, 31), (0, 768)])
def test_embed_layer_norm(tokens, H, with_types, dtype, device):
    check("embed_layer_norm", *embed_layer_norm_inputs(tokens, H, dtype, device, with_types))


def test_embed_layer_norm_of_tables_with_one_row(device):
    ids = torch.zeros(3, dtype=torch.int64, device=device)
    table, vector = torch.randn(1, 48, device=device), torch.randn(48, device=device)
    check("embed_layer_norm", ids, table, ids, table, ids, table, vector, vector, EPS)


def test_embed_layer_norm_wider_than_the_kernel_takes(device):
    check("embed_layer_norm", *embed_layer_norm_inputs(2, 9000, torch.float32, device))


@pytest.mark.parametrize("value", [-1, 50, 1 << 40, -(1 << 40)])
@pytest.mark.parametrize(("which", "name"), [(0, "input_ids"), (2, "position_ids"), (4, "token_type_ids")])
def test_an_id_out_of_range_is_named_and_never_read(which, name, value, device):
    arguments = embed_layer_norm_inputs(5, 64, torch.float16, device)
    rows = arguments[which + 1].shape[0]
    arguments[which][3] = value

    def embed_and_synchronise() -> None:
        backend.embed_layer_norm(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize()
            backend.raise_out_of_range(device)

    with pytest.raises(ValueError, match=rf"{name}: got {value}, expected 0 <= {name} < {rows}"):
        embed_and_synchronise()
    backend.raise_out_of_range(device)  # reported once
    check("embed_layer_norm", *embed_layer_norm_inputs(5, 64, torch.float16, device))


@every_dtype
@pytest.mark.parametrize("activation", sorted(kernel.ACTIVATIONS))
@pytest.mark.parametrize(("tokens", "F"), [(3, 512), (9, 100), (1, 7), (33, 1), (0, 64)])
def test_activation(tokens, F, activation, dtype, device):
    x, bias = (torch.randn(tokens, F) * 4).to(device, dtype), torch.randn(F).to(device, dtype)
    tile = tuning.activation_tile(F)
    for in_place in (False, True):
        given = x.clone()
        actual = kernel.bias_activation(given, bias, activation, tile=tile, in_place=in_place)
        assert (actual.data_ptr() == given.data_ptr()) is (in_place or given.numel() == 0)

        def definition(wide):
            return activated(x.to(wide) + bias.to(wide), activation)

        assert_as_accurate(actual, yardstick=definition(torch.float32).to(dtype), truth=definition(torch.float64))


@pytest.mark.parametrize("activation", sorted(kernel.ACTIVATIONS))
def test_activation_at_the_extremes(activation, device):
    """Tiny and huge values, zeros of both signs, infinity and NaN give what torch gives."""
    x = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 0.2499, -0.2501, 20.0, -20.0, 1e4, -1e4, float("inf"), float("nan")]])
    actual = kernel.bias_activation(x.to(device), None, activation, tile=tuning.activation_tile(14)).cpu()
    want = activated(x.double(), activation).float()
    torch.testing.assert_close(actual, want, equal_nan=True)  # relative, so that small values count
    assert actual[0, 0] == 0


def test_an_unknown_activation_is_refused(device):
    with pytest.raises(ValueError, match=r"activation 'swish', expected one of \[.*'gelu'"):
        kernel.bias_activation(torch.zeros(1, 1, device=device), None, "swish", tile=tuning.activation_tile(1))


@every_dtype
@pytest.mark.parametrize("columns", [1, 2, 3, 100, 768, 1500])
def test_pack_and_unpack_are_exact(columns, dtype, device):
    padded = torch.randn(11, columns).to(device, dtype)
    padded[4] = float("nan")
    indices = torch.tensor([10, 0, 3, 7, 4, 9], device=device)
    packed = backend.pack(padded, indices)
    assert torch.equal(packed.nan_to_num(), padded[indices].nan_to_num())
    for fill in (0.0, -1e4):
        want = reference.unpack(packed, indices, 11, fill)
        assert torch.equal(backend.unpack(packed, indices, 11, fill).nan_to_num(7.0), want.nan_to_num(7.0))


def test_pack_and_unpack_of_no_rows(device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert backend.pack(torch.zeros(3, 5, device=device), none).shape == (0, 5)
    assert torch.equal(backend.unpack(torch.zeros(0, 5, device=device), none, 3, 2.0), torch.full((3, 5), 2.0, device=device))


def test_a_negative_index_is_no_row(device):
    """The batch of a CUDA graph has more indices than rows: -1 neither reads nor writes."""
    x = torch.randn(4, 20, device=device)
    indices = torch.tensor([2, -1, 0, -1], device=device)
    packed = backend.pack(x, indices)
    assert torch.equal(packed, torch.stack([x[2], torch.zeros_like(x[0]), x[0], torch.zeros_like(x[0])]))
    x[1], x[3] = float("nan"), float("nan")
    unpacked = backend.unpack(x, indices, 5, 1.0)
    ones = torch.ones_like(x[0])
    assert torch.equal(unpacked, torch.stack([x[2], ones, x[0], ones, ones]))
