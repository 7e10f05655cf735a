"""fp8: which layers of a model become float8, and how.

The products of an encoder layer run on float8 (e4m3) tensor cores, except the one after attention: no kernel before it could quantize its
input, and it is a twelfth of the work. Weights have a scale for each output channel. Inputs have one for each row, emitted by the LayerNorm
before (Fp8LayerNorm) or with the activation (Fp8Linear.emits). The input of the second feed-forward product has the largest outliers: it
and its weight have a scale for each 128 columns where torch's product takes that (sm_90, CUDA 12.9 or later). Everything else stays in
the model's float16 or bfloat16.

Shape letters: K inputs and F outputs of a linear layer.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from bertfast.graph.family import family_of
from bertfast.graph.layers import AttentionModules, LayerModules
from bertfast.ops.derivative import RELOAD_HINT
from bertfast.ops.fp8 import GROUP_SIZE, Fp8Weight, quantize_fp8_weight
from bertfast.quantization import fp8_support
from bertfast.quantization.fp8_layers import Fp8LayerNorm, Fp8Linear
from bertfast.quantization.layer import QuantizedLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLE = 16  # of which the scaled product takes K and F

# Where quantization="fp8" was measured slower than bfloat16, and so is refused: {(device name, hidden size): the figures}.
# benchmarks/gpu.sh prints entries; nothing has been measured yet.
FP8_LOSES: dict[tuple[str, int], str] = {}


def encoder_layers(model: "PreTrainedModel") -> list[LayerModules]:
    return family_of(model.config).layers(model.base_model)


def projections(attention: AttentionModules | None) -> list[nn.Linear]:
    return [] if attention is None else [attention.query, attention.key, attention.value]


def why_not_quantizable(model: "PreTrainedModel") -> str | None:
    """Why fp8 cannot quantize a model; None where it can."""
    if any(isinstance(m, QuantizedLayer) for m in model.modules()):
        return f"it is quantized already; {RELOAD_HINT}, then quantize that"
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float16, torch.bfloat16):
            return f"its parameters are {parameter.dtype} ({name}), expected torch.bfloat16 or torch.float16; call .bfloat16() on it first"
        reason = fp8_support.why_device_unsupported(parameter.device)
        if reason is not None:
            return reason
        reason = fp8_support.why_no_product(parameter.device, parameter.dtype, "row")
        if reason is not None:
            return f"torch {torch.__version__} has no scaled product with a {parameter.dtype} result on {parameter.device}: {reason}"
    names = {m: name for name, m in model.named_modules()}
    for modules in encoder_layers(model):
        for layer in (*projections(modules.attention), *projections(modules.cross), modules.up, modules.down):
            if type(layer) is not nn.Linear:
                return f"{names[layer]} is a {type(layer).__name__}, expected torch's own layer; merge or remove the adapter first"
            if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
                sizes = f"{layer.in_features} inputs and {layer.out_features} outputs"
                return f"{names[layer]} has {sizes}, and torch's scaled product takes multiples of {MULTIPLE}; use bfloat16"
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    slower = FP8_LOSES.get((name, model.config.hidden_size))
    return None if slower is None else f"on {name} it is measured to lose to bfloat16 at this hidden size: {slower}; use bfloat16"


@torch.no_grad()
def quantize(model: "PreTrainedModel") -> None:
    """Replaces the layers in place, for a model that why_not_quantizable accepts. Their float weights are dropped."""
    layers = encoder_layers(model)
    while layers:  # the float weights of one layer are freed before the next is quantized
        layer = layers.pop()
        replace_modules(model, dict(_quantized(layer)))
        for norm in (layer.attention.norm, layer.norm, *([] if layer.cross is None else [layer.cross.norm])):
            norm.__class__ = Fp8LayerNorm


def replace_modules(model: nn.Module, replacements: dict[nn.Module, Fp8Linear]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])


def _quantized(layer: LayerModules) -> Iterator[tuple[nn.Module, Fp8Linear]]:
    """The linear layers of `layer`, each with what replaces it."""
    own, cross = projections(layer.attention), projections(layer.cross)
    for together in (own, cross[:1], cross[1:]):  # in cross-attention queries and keys read different rows
        yield from _side_by_side(together)
    down = layer.down
    grouped = down.in_features % GROUP_SIZE == 0 and down.in_features > GROUP_SIZE
    by_group = grouped and fp8_support.groups_supported(down.weight.device, down.weight.dtype)
    up = Fp8Linear(layer.up, quantize_fp8_weight(layer.up.weight))
    up.emits_groups = by_group
    yield layer.up, up
    yield down, Fp8Linear(down, quantize_fp8_weight(down.weight, "group" if by_group else "row"))


def _side_by_side(layers: list[nn.Linear]) -> Iterator[tuple[nn.Module, Fp8Linear]]:
    """Quantized with weights, scales and biases in one buffer each, so that one product computes all of them."""
    if not layers:
        return
    whole = quantize_fp8_weight(torch.cat([m.weight for m in layers]))
    sizes = [m.out_features for m in layers]
    if all(m.bias is not None for m in layers):
        for m, part in zip(layers, torch.split(torch.cat([m.bias for m in layers]), sizes), strict=True):
            m.bias = nn.Parameter(part, requires_grad=m.bias.requires_grad)
    for m, values, scales in zip(layers, torch.split(whole.values, sizes), torch.split(whole.scales, sizes, dim=1), strict=True):
        yield m, Fp8Linear(m, Fp8Weight(values, scales))
