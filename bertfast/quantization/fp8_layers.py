"""float8 layers for NVIDIA GPUs, which replace nn.Linear and nn.LayerNorm.

Shape letters: K inputs and F outputs of a linear layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bertfast.graph.projections import linear
from bertfast.ops import Fp8Weight
from bertfast.ops.derivative import RELOAD_HINT
from bertfast.ops.fp8 import Scales, dequantize_fp8
from bertfast.quantization.fp8_support import why_device_unsupported
from bertfast.quantization.layer import QuantizedLayer


class Fp8Linear(QuantizedLayer):
    """nn.Linear with a float8 (e4m3) weight on a GPU: [F, K], and float32 scales [1, F] or, of groups, [K / 128, F]."""

    scheme = "fp8"

    def __init__(self, layer: nn.Linear, weight: Fp8Weight) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, layer.weight.dtype
        self.register_buffer("weight_fp8", weight.values)
        self.register_buffer("weight_scales", weight.scales)
        self.bias = layer.bias
        self.emits_groups = False  # the layer that reads this one's activated result has a weight with scales of groups
        self.train(layer.training)

    @property
    def kernel_weight(self) -> Fp8Weight:
        return Fp8Weight(self.weight_fp8, self.weight_scales)

    @property
    def emits(self) -> Scales:
        """How an activated result is quantized for the layer that reads it."""
        return "group" if self.emits_groups else "row"

    def dequantized(self) -> Tensor:
        return dequantize_fp8(self.kernel_weight)

    def check_conversion(self, fn: Callable[[Tensor], Tensor]) -> None:
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.weight_fp8.device))
        if probe.dtype != self.dtype:
            raise RuntimeError(f"a model in fp8 cannot become {probe.dtype}: its weights are float8. For another dtype, {RELOAD_HINT}")
        reason = why_device_unsupported(probe.device) if probe.device != self.weight_fp8.device else None
        if reason is not None:
            raise RuntimeError(f"a model in fp8 cannot move to {probe.device}: {reason}. For another device, {RELOAD_HINT}")

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(
            "a model in fp8 is not saved: it is quantized for its GPU at every load, which takes a moment. "
            'Save the float model, and load it with quantization="fp8"'
        )

    def forward(self, x: Tensor) -> Tensor:  # [..., K] -> [..., F]
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [..., {self.in_features}], the inputs of this layer")
        return linear(x.reshape(-1, self.in_features).contiguous(), [self]).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        groups = self.kernel_weight.scaled_by == "group"
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, groups={groups}"


class Fp8LayerNorm(nn.LayerNorm):
    """nn.LayerNorm whose result the graph also quantizes for the product that reads it. In transformers' forward: nn.LayerNorm."""

    emits: Scales = "row"
