"""The modules of one encoder layer, under one set of names for every family; and what the graph asks of a layer that is not torch's.

Shape letters: R rows, H hidden, I intermediate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bertfast.ops import Fp8Weight, Int8Weight
from bertfast.ops.fp8 import Scales


class WeightedLayer(Protocol):
    """nn.Linear, nn.Embedding, or the quantized layer in its place, which has a `kernel_weight` and no `weight`."""

    @property
    def weight(self) -> Tensor: ...


class LinearLayer(WeightedLayer, Protocol):
    """nn.Linear, or the quantized layer in its place."""

    @property
    def bias(self) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class AttentionModules:
    """Self- or cross-attention with its output projection and LayerNorm. A linear layer may be a quantized one."""

    query: nn.Linear  # [R, H] -> [R, H]; query, key and value are layers of one kind: engine.module_audit checks it
    key: nn.Linear
    value: nn.Linear
    heads: int
    output: nn.Linear  # [R, H] -> [R, H]
    norm: nn.LayerNorm  # over H


@dataclass(frozen=True, slots=True)
class LayerModules:
    """A post-norm transformer layer (Devlin et al. 2018). A linear layer may be a quantized one."""

    attention: AttentionModules
    cross: AttentionModules | None
    up: nn.Linear  # [R, H] -> [R, I]
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear  # [R, I] -> [R, H]
    norm: nn.LayerNorm


def kernel_weight(layer: WeightedLayer) -> Tensor | Int8Weight | Fp8Weight:
    """The weight of a linear layer or an embedding as the ops take it: of a layer that has a `kernel_weight` that, else its `weight`."""
    weight: Tensor | Int8Weight | Fp8Weight | None = getattr(layer, "kernel_weight", None)
    return with_memory(layer.weight) if weight is None else weight


def with_memory(parameter: Tensor) -> Tensor:
    """The parameter with the memory that it has now; under grad mode itself. Another thread may set parameter.data while an op reads it."""
    return parameter if torch.is_grad_enabled() else parameter.detach()


def emitted_scales(layer: object) -> Scales | None:
    """How a layer wants its result quantized for the layer that reads it (`emits`); None, as of torch's layers: not at all."""
    return getattr(layer, "emits", None)
