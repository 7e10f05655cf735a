"""The modules of one encoder layer, under one set of names for every family; and what the graph asks of a layer that is not torch's.

Shape letters: R rows, H hidden, I intermediate.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bertfast.ops import Fp8Weight, Int8Weight
from bertfast.ops.fp8 import Scales


@dataclass(frozen=True, slots=True)
class AttentionModules:
    """Self- or cross-attention with its output projection and LayerNorm."""

    query: Any  # [R, H] -> [R, H]; query, key and value are layers of one kind: engine.module_audit checks it
    key: Any
    value: Any
    heads: int
    output: Any  # [R, H] -> [R, H]
    norm: Any  # nn.LayerNorm over H


@dataclass(frozen=True, slots=True)
class LayerModules:
    """A post-norm transformer layer (Devlin et al. 2018)."""

    attention: AttentionModules
    cross: AttentionModules | None
    up: Any  # [R, H] -> [R, I]
    activation: Any
    down: Any  # [R, I] -> [R, H]
    norm: Any


def kernel_weight(layer: Any) -> Tensor | Int8Weight | Fp8Weight:
    """The weight of a linear layer or an embedding as the ops take it: of a layer that has a `kernel_weight` that, else its `weight`."""
    weight: Tensor | Int8Weight | Fp8Weight | None = getattr(layer, "kernel_weight", None)
    return layer.weight if weight is None else weight


def emitted_scales(layer: Any) -> Scales | None:
    """How a layer wants its result quantized for the layer that reads it (`emits`); None, as of torch's layers: not at all."""
    return getattr(layer, "emits", None)
