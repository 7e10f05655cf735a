"""float8 on NVIDIA GPUs: what takes the place of layers in a model with quantization="fp8", and how it gets there.

The products of an encoder layer run on float8 (e4m3) tensor cores, all but the one after attention: nothing before it could quantize its
input on the way, and it is a twelfth of the work. Weights have a scale for each output channel. Inputs have one for each row, emitted by
the LayerNorm before (Fp8LayerNorm) or by the activation (Fp8Linear.project); the input of the second feed-forward product, whose outliers
are the largest, has one for each 128 columns, and its weight too, where torch's product can do that (sm_90, CUDA 12.9 or later; one for
each row elsewhere). Everything else stays in the model's float16 or bfloat16.

Not measured yet: bertfast.kernels.tuning.FP8_LOSES is where a GPU that loses by it is written down, and then refused.

Shape letters: K inputs and F outputs of a linear layer, R rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bertfast import ops
from bertfast.ops import Ops
from bertfast.quantization.int8_layers import RELOAD_HINT, QuantizedLayer, without_derivative

LEAST_CAPABILITY = (8, 9)
E4M3_MAX = 448.0  # of float8_e4m3fn
MULTIPLE = 16  # of which the scaled product takes K and F


class Fp8Linear(QuantizedLayer):
    """nn.Linear with its weight in float8, on a GPU: [F, K] e4m3, and scales [1, F] or, by groups, [K / 128, F] float32."""

    scheme = "fp8"

    def __init__(self, linear: Any, weight: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = linear.in_features, linear.out_features, linear.weight.dtype
        self.register_buffer("weight_fp8", weight)
        self.register_buffer("weight_scales", scales)
        self.bias = linear.bias
        self.emits_groups = False  # whether an activation behind it is scaled by groups: as its reader's weight is
        self.train(linear.training)

    @property
    def by_group(self) -> bool:
        return self.weight_scales.shape[0] > 1

    def dequantized(self) -> Tensor:  # [F, K] float32
        scales = self.weight_scales.t()
        return (self.weight_fp8.float().view(*scales.shape, -1) * scales[:, :, None]).flatten(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fp8Linear":
        self.check_conversion(fn)
        return nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]  # torch's own

    def check_conversion(self, fn: Callable[[Tensor], Tensor]) -> None:
        """RuntimeError where .to, .float, .cpu or their like cannot be."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.weight_fp8.device))
        if probe.dtype != self.dtype:
            raise RuntimeError(
                f"a model in fp8 cannot become {probe.dtype}: its weights are float8 already. For another dtype, {RELOAD_HINT}"
            )
        reason = why_device_unsupported(probe.device) if probe.device != self.weight_fp8.device else None
        if reason is not None:
            raise RuntimeError(f"a model in fp8 cannot move to {probe.device}: {reason}. For another device, {RELOAD_HINT}")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(
            "a model in fp8 is not saved: it is made for the GPU it runs on, in a moment, from the float model. "
            'Save that one, and load it with quantization="fp8"'
        )

    def forward(self, x: Tensor) -> Tensor:  # [..., K] -> [..., F]
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [..., {self.in_features}], the inputs of this layer")
        out: Tensor = self.project(x.reshape(-1, self.in_features).contiguous(), [self], ops)
        return out.view(*x.shape[:-1], self.out_features)

    @staticmethod
    def project(x: Any, layers: Sequence["Fp8Linear"], O: Ops, activation: str | None = None) -> Any:  # [R, K] -> [R, sum F]
        """What graph.linear does for layers of this kind. x: rows as a tensor or, from an activation, already in float8; with
        an activation, the result is in float8."""
        inputs = [x] if isinstance(x, Tensor) else []
        return without_derivative("fp8", lambda: _product(x, layers, activation), *inputs, *(m.bias for m in layers))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, groups={self.by_group}"


def _product(x: Any, layers: Sequence[Fp8Linear], activation: str | None) -> Any:
    from bertfast.ops import cuda  # imports triton, which a machine without a GPU may not have

    first = layers[0]
    rows = x if isinstance(x, cuda.Fp8Rows) else cuda.emitted_fp8(x)
    if rows is None or rows.by_group != first.by_group:
        assert isinstance(x, Tensor), "what an activation emitted fits its reader"
        rows = cuda.fp8_activation(x, None, None, first.by_group)
    weights, scales, biases = [m.weight_fp8 for m in layers], [m.weight_scales for m in layers], [m.bias for m in layers]
    if activation is None:
        return cuda.fp8_linear(rows, weights, scales, biases, first.dtype)
    product = cuda.fp8_linear(rows, weights, scales, [None] * len(layers), first.dtype)
    return cuda.fp8_activation(product, first.bias, activation, first.emits_groups)


class Fp8LayerNorm(nn.LayerNorm):
    """nn.LayerNorm that the graph asks for its result in float8 as well; transformers' forward uses it as it is."""

    def add(self, x: Tensor, residual: Tensor) -> Tensor:  # [R, H]
        from bertfast.ops import cuda

        return cuda.fp8_add_layer_norm(x, residual, self.weight, self.bias, self.eps)


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device; None for any other."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def groups_supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's scaled product takes a scale for every 128 columns of a row: on Hopper alone, with cuBLAS of CUDA 12.9."""
    found = capability(device)
    return found is not None and found[0] == 9 and why_no_scaled_mm(device, dtype, True) is None


@cache
def why_no_scaled_mm(device: torch.device, dtype: torch.dtype, by_group: bool) -> str | None:
    """What torch says against a scaled product of this kind, tried once; None where it computes one. Which kinds there are depends on the
    chip, on cuBLAS and on torch's version: the product itself knows best."""
    from bertfast.ops import cuda

    values = torch.ones(16, 256, device=device).to(torch.float8_e4m3fn)
    scales = torch.ones(2 if by_group else 1, 16, device=device)
    try:
        out = cuda.scaled_mm(values, values.t(), scales.t(), scales, None, dtype)
    except (RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None if (out == 256).all() else "it computes something else"


def why_device_unsupported(device: torch.device) -> str | None:
    """Why fp8 does not run there; None where it does."""
    found = capability(device)
    wanted = "fp8 needs an NVIDIA GPU of compute capability 8.9 or later (Ada, Hopper, Blackwell)"
    if found is None:
        return f"it is on {device}, and {wanted}; move the model to one first"
    if found < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {found[0]}.{found[1]}, and {wanted}; use dtype=torch.bfloat16 here"
    return None


def why_not_quantizable(model: Any) -> str | None:
    """Why a BERT cannot be quantized; None where it can."""
    if any(isinstance(m, QuantizedLayer) for m in model.modules()):
        return f"it is quantized already; {RELOAD_HINT}, then quantize that"
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float16, torch.bfloat16):
            return f"its parameters are {parameter.dtype} ({name}), expected torch.bfloat16 or torch.float16; call .bfloat16() on it first"
        reason = why_device_unsupported(parameter.device)
        if reason is not None:
            return reason
        reason = why_no_scaled_mm(parameter.device, parameter.dtype, False)
        if reason is not None:
            return f"torch {torch.__version__} has no scaled product with a {parameter.dtype} result on {parameter.device}: {reason}"
    for name, layer in [*model.named_modules()]:
        if _is_place(name):
            if type(layer) is not nn.Linear:
                return f"{name} is a {type(layer).__name__}, expected torch's own layer; merge or remove the adapter first"
            if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
                sizes = f"{layer.in_features} inputs and {layer.out_features} outputs"
                return f"{name} has {sizes}, and torch's scaled product takes multiples of {MULTIPLE}; use bfloat16"
    return _measured_loss(model)


def _measured_loss(model: Any) -> str | None:
    from bertfast.ops import cuda

    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    lost = cuda.fp8_loses(name, model.config.hidden_size)
    return None if lost is None else f"on {name} it is measured to lose to bfloat16 at this hidden size: {lost}; use bfloat16"


@torch.no_grad()
def quantize(model: Any) -> None:
    """Puts the layers of this file into a BERT, in place; its float weights there are gone. ValueError, before anything is changed, where
    it cannot be."""
    reason = why_not_quantizable(model)
    if reason is not None:
        raise ValueError(f"quantization='fp8': {reason}")
    for layer in model.modules():
        if hasattr(layer, "intermediate") and hasattr(layer, "attention"):
            _quantize_layer(layer)


def _quantize_layer(layer: Any) -> None:
    down = layer.output.dense
    by_group = down.in_features % 128 == 0 and down.in_features > 128 and groups_supported(down.weight.device, down.weight.dtype)
    for attention in filter(None, (layer.attention, getattr(layer, "crossattention", None))):
        inner = attention.self
        names = ("query", "key", "value")
        crosses = attention is not layer.attention  # queries and keys are of different rows: keys and values are one product
        for group in (names[:1], names[1:]) if crosses else (names,):
            for name, quantized in zip(group, _side_by_side([getattr(inner, name) for name in group]), strict=True):
                setattr(inner, name, quantized)
    layer.intermediate.dense = Fp8Linear(layer.intermediate.dense, *quantized_weight(layer.intermediate.dense.weight, False))
    layer.intermediate.dense.emits_groups = by_group
    layer.output.dense = Fp8Linear(layer.output.dense, *quantized_weight(layer.output.dense.weight, by_group))
    for block in filter(None, (layer.attention, getattr(layer, "crossattention", None))):
        block.output.LayerNorm.__class__ = Fp8LayerNorm
    layer.output.LayerNorm.__class__ = Fp8LayerNorm


def _side_by_side(linears: list[Any]) -> Iterator[Fp8Linear]:
    """The layers with their weights, scales and biases back to back in one buffer each, so that one product does them all."""
    weight, scales = quantized_weight(torch.cat([m.weight for m in linears]), False)
    sizes = [m.out_features for m in linears]
    if all(m.bias is not None for m in linears):
        joined = torch.cat([m.bias for m in linears])
        for m, part in zip(linears, torch.split(joined, sizes), strict=True):
            m.bias = nn.Parameter(part, requires_grad=m.bias.requires_grad)
    return map(Fp8Linear, linears, torch.split(weight, sizes), torch.split(scales, sizes, dim=1))


def quantized_weight(weight: Tensor, by_group: bool) -> tuple[Tensor, Tensor]:
    """A weight [F, K] in float8 with its scales, [1, F] or [K / 128, F]: max |w| / 448 over a row, or over 128 columns of it."""
    grouped = weight.detach().float().reshape(weight.shape[0], -1, 128 if by_group else weight.shape[1])  # [F, groups, columns]
    scales = grouped.abs().amax(dim=2).clamp(min=2.0**-60) / E4M3_MAX
    values = (grouped / scales[:, :, None]).clamp(-E4M3_MAX, E4M3_MAX).flatten(1).to(torch.float8_e4m3fn)
    return values, scales.t().contiguous()


def _is_place(name: str) -> bool:
    """Whether the module of that name in a BERT is a linear layer that becomes an Fp8Linear."""
    if ".encoder.layer." not in f".{name}":
        return False
    return name.endswith(("self.query", "self.key", "self.value", "intermediate.dense")) or (
        name.endswith("output.dense") and not name.endswith("attention.output.dense")
    )


def check_conversion(model: Any, fn: Callable[[Tensor], Tensor]) -> None:
    """RuntimeError, before any of its tensors is changed, where a model in fp8 cannot be converted by fn."""
    first = next((m for m in model.modules() if isinstance(m, Fp8Linear)), None)
    if first is not None:
        first.check_conversion(fn)
