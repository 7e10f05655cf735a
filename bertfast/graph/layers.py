"""The modules of one encoder layer, under one set of names for every family.

Shape letters: R rows, H hidden, I intermediate.
"""

from dataclasses import dataclass
from typing import Any


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
