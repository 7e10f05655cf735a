"""fp8: the kernels that emit float8, and whole models. Without a GPU that has scaled products, a float32 product stands in for them."""

import copy

import pytest
import torch
from test_triton_model import inputs
from test_triton_model import pair as pair_of
from torch import nn

import bertfast
from accuracy import assert_as_accurate
from bertfast import ops
from bertfast.convert import convert
from bertfast.engine import cpu_plans, cuda_capture, cuda_graph_cache, cuda_graphs
from bertfast.graph.projections import linear
from bertfast.kernels import fp8_activation, tuning
from bertfast.ops import cuda as backend
from bertfast.ops import reference
from bertfast.ops.activations import activated
from bertfast.ops.cuda import fp8 as cuda_fp8
from bertfast.ops.fp8 import dequantize_fp8, quantize_fp8_rows, quantize_fp8_weight
from bertfast.quantization import fp8 as scheme
from bertfast.quantization import fp8_support as support
from bertfast.quantization.fp8_layers import Fp8LayerNorm, Fp8Linear

E4M3 = torch.float8_e4m3fn
SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
every_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """The definition: x rounded to float8 with a scale for every `group` columns of a row."""
    grouped = x.unflatten(-1, (-1, group))
    scale = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=2.0**-60) / 448
    return ((grouped / scale).to(E4M3).to(x.dtype) * scale).flatten(-2)


def check_rounding(rows: ops.Fp8Rows, exact: torch.Tensor, group: int) -> None:
    """As near to the exact values as torch's rounding."""
    assert rows.values.dtype == E4M3
    assert rows.values.shape[0] % 16 == 0
    assert_as_accurate(dequantize_fp8(rows), yardstick=rounded(exact.float(), group), truth=exact)
    assert (rows.values[: rows.rows].float().abs().unflatten(1, (-1, group)).amax(dim=2) == 448).all(), "a scale is larger than needed"


@every_half
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(("tokens", "F", "by_group"), [(3, 768, True), (17, 128, False), (1, 3072, True), (1, 3072, False), (9, 384, True)])
def test_fp8_activation(tokens, F, by_group, activation, dtype, device):
    x, bias = (torch.randn(tokens, F) * 3).to(device, dtype), torch.randn(F).to(device, dtype)
    exact = x.double() + bias.double()
    exact = activated(exact, activation)
    scaled_by = "group" if by_group else "row"
    check_rounding(cuda_fp8.fp8_activation(x, bias, activation, scaled_by), exact, 128 if by_group else F)


@every_half
@pytest.mark.parametrize(("tokens", "H"), [(3, 768), (5, 384), (1, 1024), (2, 48)])
def test_fp8_add_layer_norm_emits_both(tokens, H, dtype, device):
    x, residual = (torch.randn(tokens, H).to(device, dtype) for _ in range(2))
    weight, bias = (torch.randn(H).to(device, dtype) for _ in range(2))
    out = backend.fp8_add_layer_norm(x, residual, weight, bias, 1e-12)
    unquantized = backend.add_layer_norm(x, residual, weight, bias, 1e-12)
    assert torch.equal(out.unquantized, unquantized)
    check_rounding(out, unquantized.double(), H)


def test_zeros_and_values_that_are_not_finite(device):
    x = torch.zeros(4, 256, dtype=torch.float16, device=device)
    x[1, 3], x[2, 200], x[3] = float("nan"), float("inf"), 6e4
    for scaled_by in ("row", "group"):
        got = dequantize_fp8(cuda_fp8.fp8_activation(x, None, None, scaled_by))
        assert (got[0] == 0).all()
        assert got[1, 3].isnan()
        assert got[2, 200].isnan()
        assert torch.allclose(got[3], x[3].float())
    assert cuda_fp8.fp8_activation(x[:0], None, None, "group").rows == 0
    with pytest.raises(ValueError, match="activation 'swish', expected one of"):
        fp8_activation.fp8_activation(x, None, "swish", x, x, tile=tuning.fp8_activation_tile(256, True))


@pytest.mark.parametrize("by_group", [False, True])
def test_weights(by_group):
    weight = torch.randn(48, 256) * torch.logspace(-6, 3, 48)[:, None]
    quantized = quantize_fp8_weight(weight, "group" if by_group else "row")
    values, scales = quantized.values, quantized.scales
    assert scales.shape == ((2 if by_group else 1), 48)
    assert scales.is_contiguous()
    got = (values.float().unflatten(1, (scales.shape[0], -1)) * scales.t()[:, :, None]).flatten(1)
    torch.testing.assert_close(got, rounded(weight, 128 if by_group else 256))


@every_half
@pytest.mark.parametrize("quantize", [None, "row", "group"])
@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
@pytest.mark.parametrize("given", ["tensor", "float8"])
def test_fp8_linear_is_its_definition(given, activation, quantize, dtype, fp8_gpu, device):
    """Through bertfast.ops: float8 values, and so results, differ only where a sum is rounded another way."""
    fp8_gpu(True)
    x, bias = torch.randn(7, 256).to(device, dtype), torch.randn(384).to(device, dtype)
    weights = [quantize_fp8_weight(torch.randn(384, 256, device=device) / 16)]
    rows = quantize_fp8_rows(x) if given == "float8" else x
    got, want = (O.fp8_linear(rows, weights, [bias], activation, quantize) for O in (ops, reference))
    assert type(got) is type(want)
    if quantize is None:
        assert got.dtype == dtype
    else:
        assert (got.scaled_by, got.dtype) == (quantize, dtype)
        got, want = dequantize_fp8(got), dequantize_fp8(want)
    step = torch.finfo(dtype).eps if quantize is None else 0.125  # of the last digit of a result
    torch.testing.assert_close(got.float(), want.float(), rtol=2 * step, atol=2 * step)


def test_ops_check_the_arguments_of_fp8_linear(device):
    x, weight = torch.ones(2, 256, dtype=torch.bfloat16, device=device), quantize_fp8_weight(torch.ones(16, 256, device=device))
    for arguments, message in (
        ((x.float(), [weight], [None]), r"x is torch\.float32, expected torch\.float16 or torch\.bfloat16"),
        ((x[:, :128].contiguous(), [weight], [None]), "differ in K"),
        ((x, [weight], []), "1 weights and 0 biases"),
        ((x, [ops.Fp8Weight(weight.values, weight.scales[:, :5])], [None]), "scales"),
        ((x, [weight], [torch.ones(3, dtype=torch.bfloat16, device=device)]), "bias"),
        ((x, [weight], [None], "swish"), "activation 'swish'"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.fp8_linear(*arguments)
    only_quantized = quantize_fp8_rows(x)
    with pytest.raises(ValueError, match="left in float8 alone"):
        reference.fp8_linear(only_quantized, [quantize_fp8_weight(torch.ones(16, 256, device=device), "group")], [None])


class Emulated(nn.Module):
    """A linear layer that rounds its input and weight as fp8 does and computes in its input's dtype."""

    def __init__(self, linear: nn.Linear, group: int | None) -> None:
        super().__init__()
        self.linear, self.group = linear, group or linear.in_features
        linear.weight.data = rounded(linear.weight.data.float(), self.group).to(linear.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(rounded(x, self.group))


def emulation(reference_model: nn.Module, by_group: bool) -> nn.Module:
    model = copy.deepcopy(reference_model).float()
    for layer in getattr(model, "bert", model).encoder.layer:
        inner = layer.attention.self
        for name in ("query", "key", "value"):
            setattr(inner, name, Emulated(getattr(inner, name), None))
        layer.intermediate.dense = Emulated(layer.intermediate.dense, None)
        layer.output.dense = Emulated(layer.output.dense, 128 if by_group else None)
    return model


@pytest.fixture
def fp8_gpu(monkeypatch, cuda_path, device):
    """A GPU that has float8; or this CPU as one, with plain torch for the scaled product."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability() < (8, 9):
            pytest.xfail("this GPU has no float8 units")
        yield lambda groups: None
        return
    monkeypatch.setattr(support, "capability", lambda device: (9, 0))
    products = []

    def product(x, weight, x_scales, weight_scales, bias, dtype):
        assert x.dtype == weight.dtype == E4M3
        assert x.shape[0] % 16 == 0
        assert x.stride(1) == weight.stride(0) == 1, "rows of x, columns of the weight: what the tensor cores read"
        groups = x_scales.shape[1]
        assert x_scales.shape == (x.shape[0], groups)
        assert weight_scales.shape == (groups, weight.shape[1])
        assert x_scales.stride(0) == 1 or groups == 1
        assert weight_scales.is_contiguous()
        wide = (x.float().unflatten(1, (groups, -1)) * x_scales[:, :, None]).flatten(1)
        wide_weight = (weight.t().float().unflatten(1, (groups, -1)) * weight_scales.t()[:, :, None]).flatten(1)
        products.append((wide_weight.shape, groups))
        return torch.nn.functional.linear(wide, wide_weight, None if bias is None else bias.float()).to(dtype)

    monkeypatch.setattr(cuda_fp8, "scaled_mm", product)

    def with_groups(groups: bool):
        monkeypatch.setattr(support, "groups_supported", lambda device, dtype: groups)
        return products

    yield with_groups


def by_groups(model: nn.Module) -> bool:
    return model.encoder.layer[0].output.dense.kernel_weight.scaled_by == "group"


def rms_error(out, truth, real):
    return (out.last_hidden_state[real].double() - truth.last_hidden_state[real]).pow(2).mean().sqrt()


@every_half
@pytest.mark.parametrize("groups", [True, False], ids=["groups", "rows"])
def test_the_whole_model(groups, dtype, fp8_gpu, device):
    """As near to float64 as a torch model that rounds at the same places and computes in float32."""
    products = fp8_gpu(groups)
    _, original = pair_of("BertModel", dtype, device, **SIZES)
    ours = bertfast.optimize(copy.deepcopy(original), quantization="fp8")
    assert by_groups(ours) is (groups if products is not None else support.groups_supported(device, dtype))
    if products is not None:
        products.clear()  # the trial product before quantization
    given = inputs([[1] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8], device)
    real = given["attention_mask"].bool()
    with torch.no_grad():
        out = ours(**given)
        truth = copy.deepcopy(original).double()(**given)
        emulated = emulation(original, by_groups(ours))(**given)
    assert 0 < rms_error(out, truth, real) <= 1.1 * rms_error(emulated, truth, real)
    assert rms_error(out, truth, real) > 2 * rms_error(original(**given), truth, real), "nothing was rounded to float8"
    if products is not None:
        H, F = 64, 256
        assert products == 2 * [((3 * H, H), 1), ((F, H), 1), ((H, F), 2 if groups else 1)], "three products a layer"


def test_no_separate_pass_quantizes_what_a_kernel_emits(fp8_gpu, monkeypatch, device):
    fp8_gpu(True)
    ours, _ = pair_of("BertModel", torch.bfloat16, device, **SIZES)
    bertfast.optimize(ours, quantization="fp8")
    passes, real = [], cuda_fp8.fp8_activation

    def counted(x, bias, activation, scaled_by):
        passes.append(activation)
        return real(x, bias, activation, scaled_by)

    monkeypatch.setattr(cuda_fp8, "fp8_activation", counted)
    with torch.no_grad():
        ours(**inputs([[1] * 5], device))
    assert passes == [None, "gelu", "gelu"]  # for the embeddings, and for the activation of each layer


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertLMHeadModel"])
def test_heads_in_cuda_graphs_and_eager(head, fp8_gpu, monkeypatch, device):
    fp8_gpu(True)
    if device.type == "cpu":
        from test_triton_model import capture_stand_in

        monkeypatch.setattr(cpu_plans, "run", cuda_graphs.run)
        monkeypatch.setattr(cuda_capture, "capture", capture_stand_in)
    monkeypatch.setattr(cuda_graph_cache, "cache", cuda_graph_cache.GraphCache(8))
    config = {"is_decoder": True, "use_cache": False} if head == "BertLMHeadModel" else {}
    ours, original = pair_of(head, torch.float16, device, **SIZES, num_hidden_layers=1, **config)
    bertfast.optimize(ours, keep_padding=False, quantization="fp8")  # padded queries are not captured
    given = inputs([[1] * 5, [1, 1, 0, 0, 0]], device)
    with torch.no_grad():
        replayed = ours(**given).logits
        assert len(cuda_graph_cache.cache) == 1
        monkeypatch.setenv("BERTFAST_CUDA_GRAPHS", "0")
        eager = ours(**given).logits
        truth = original.double()(**given).logits
    real = given["attention_mask"].bool() if eager.dim() == 3 else slice(None)
    if device.type == "cpu":
        assert torch.equal(replayed, eager)
    # A CUDA graph has more rows, for which a GPU may choose another product: the two are nearer to each other than to the truth.
    assert (replayed - eager)[real].pow(2).mean() < (eager - truth)[real].pow(2).mean()


def test_transformers_own_forward_runs_on_these_layers(fp8_gpu, device):
    """It quantizes inputs that no kernel emitted in float8: slightly different numbers, rounded alike."""
    fp8_gpu(True)
    _, original = pair_of("BertModel", torch.bfloat16, device, **SIZES)
    ours = bertfast.optimize(copy.deepcopy(original), quantization="fp8")
    given = inputs([[1] * 6], device)
    real = given["attention_mask"].bool()
    with torch.no_grad():
        truth = copy.deepcopy(original).double()(**given)
        fast = ours(**given)
        ours.encoder.layer[0].register_forward_hook(lambda *a: None)
        assert rms_error(ours(**given), truth, real) <= 1.5 * rms_error(fast, truth, real)


def test_weights_in_separate_buffers(fp8_gpu, device):
    """Q, K and V weights in three buffers: three products, the same numbers."""
    fp8_gpu(True)
    ours, _ = pair_of("BertModel", torch.float16, device, **SIZES)
    bertfast.optimize(ours, quantization="fp8")
    inner = ours.encoder.layer[0].attention.self
    layers = [inner.query, inner.key, inner.value]
    x = torch.randn(7, 64).to(device, torch.float16)
    with torch.no_grad():
        together = linear(x, layers)
        inner.key.weight_fp8 = inner.key.weight_fp8.clone()
        torch.testing.assert_close(linear(x, layers), together)
        separate = torch.cat([layer(x) for layer in layers], dim=1)
    torch.testing.assert_close(separate, together)


def test_cross_attention(fp8_gpu, device):
    """Its queries read other rows than its keys and values: two products."""
    products = fp8_gpu(True)
    config = {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": 1}
    _, original = pair_of("BertModel", torch.bfloat16, device, **SIZES, **config)
    ours = bertfast.optimize(copy.deepcopy(original), quantization="fp8")
    layer = ours.encoder.layer[0]
    linears = {name for name, m in layer.named_modules() if isinstance(m, Fp8Linear)}
    attention = {f"{block}.self.{name}" for block in ("attention", "crossattention") for name in ("query", "key", "value")}
    assert linears == {*attention, "intermediate.dense", "output.dense"}
    norms = [name for name, m in layer.named_modules() if isinstance(m, Fp8LayerNorm)]
    assert norms == ["attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm"]
    if products is not None:
        products.clear()
    given, states = inputs([[1] * 5], device), torch.randn(1, 7, 64).to(device, torch.bfloat16)
    with torch.no_grad():
        out = ours(**given, encoder_hidden_states=states, use_cache=False)
        truth = original.double()(**given, encoder_hidden_states=states.double(), use_cache=False)
    assert 0 < rms_error(out, truth, slice(None)) < 0.1
    if products is not None:
        assert [shape for shape, _ in products] == [(3 * 64, 64), (64, 64), (2 * 64, 64), (256, 64), (64, 256)]


def test_other_activations(fp8_gpu, device):
    fp8_gpu(True)
    _, original = pair_of("BertModel", torch.float16, device, hidden_act="silu", **SIZES)
    ours = bertfast.optimize(copy.deepcopy(original), quantization="fp8")
    given = inputs([[1] * 5], device)
    real = given["attention_mask"].bool()
    with torch.no_grad():
        emulated = emulation(original, by_groups(ours))(**given)
        truth = original.double()(**given)
        assert rms_error(ours(**given), truth, real) <= 1.1 * rms_error(emulated, truth, real)


def test_loading(fp8_gpu, tmp_path, device):
    """A float folder is loaded onto the GPU in bfloat16, or float16 if asked for; the quantized model is never saved."""
    fp8_gpu(True)
    _, original = pair_of("BertForSequenceClassification", torch.float32, device, **SIZES)
    original.save_pretrained(tmp_path)
    load = bertfast.BertForSequenceClassification.from_pretrained
    loaded = load(tmp_path, quantization="fp8", device_map=device.type)
    assert loaded.dtype == torch.bfloat16
    assert loaded.device.type == device.type
    quantized = bertfast.optimize(copy.deepcopy(original).bfloat16(), quantization="fp8")
    given = inputs([[1] * 5], device)
    with torch.no_grad():
        assert torch.equal(loaded(**given).logits, quantized(**given).logits)
    assert load(tmp_path, quantization="fp8", device_map=device.type, dtype=torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match=r"dtype=torch\.float32: what is not in fp8 is in bfloat16 or float16"):
        load(tmp_path, quantization="fp8", device_map=device.type, dtype=torch.float32)
    with pytest.raises(ValueError, match="such a model is quantized at every load, never saved; convert to int8"):
        convert(tmp_path, tmp_path / "out", quantization="fp8")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="quantization='fp8': torch sees no GPU"):
            load(tmp_path, quantization="fp8")


def test_unsupported_uses_raise(fp8_gpu, monkeypatch, device):
    fp8_gpu(True)
    ours, original = pair_of("BertModel", torch.bfloat16, device, **SIZES)
    bertfast.optimize(ours, quantization="fp8")
    with pytest.raises(RuntimeError, match="backward through an fp8 layer"):
        ours(**inputs([[1] * 5], device)).last_hidden_state.sum().backward()
    with pytest.raises(ValueError, match=r"restore: this model is in fp8 and its float weights are gone"):
        bertfast.restore(ours)
    with pytest.raises(RuntimeError, match="a model in fp8 is not saved"):
        ours.state_dict()
    with pytest.raises(RuntimeError, match=r"cannot become torch\.float32"):
        ours.float()
    assert ours.dtype == torch.bfloat16, "nothing of it was changed"
    with pytest.raises(ValueError, match="it is quantized already"):
        bertfast.optimize(ours, quantization="fp8")
    ours.batch_invariant = True
    with torch.no_grad(), pytest.raises(ValueError, match="batch_invariant: torch's float8 product"):
        ours(**inputs([[1] * 5], device))

    for dtype, sizes, message in (
        (torch.float32, SIZES, r"its parameters are torch\.float32"),
        (torch.bfloat16, {**SIZES, "intermediate_size": 136}, r"has 64 inputs and 136 outputs, and torch's scaled product takes multiples"),
    ):
        with pytest.raises(ValueError, match=message):
            bertfast.optimize(pair_of("BertModel", dtype, device, **sizes)[1], quantization="fp8")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    monkeypatch.setitem(scheme.FP8_LOSES, (name, 64), "1.2 ms against 1.1")
    with pytest.raises(ValueError, match=r"measured to lose to bfloat16 at this hidden size: 1\.2 ms against 1\.1"):
        bertfast.optimize(original, quantization="fp8")
    if device.type == "cpu":
        monkeypatch.setattr(support, "capability", lambda device: (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
        with pytest.raises(ValueError, match=r"an A100 has compute capability 8\.0, and fp8 needs .* 8\.9 or later"):
            bertfast.optimize(original, quantization="fp8")
        monkeypatch.setattr(support, "capability", lambda device: None)
        with pytest.raises(ValueError, match="it is on cpu, and fp8 needs an NVIDIA GPU"):
            bertfast.optimize(original, quantization="fp8")
