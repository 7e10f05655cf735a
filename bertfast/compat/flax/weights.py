"""A set of weights of a Flax model: the caller's leaves, and the engine that runs on them.

A leaf is a read-only NumPy view of a torch parameter (a dense kernel is its transpose, [in, out]), since JAX's arrays are immutable
too. A tree from the caller may mix such leaves, JAX arrays and NumPy arrays.
"""

import torch
from torch import nn

from bertfast.compat.arrays import Array
from bertfast.compat.engine import Engine
from bertfast.compat.flax.leaves import ParameterTree, export_leaf, is_immutable
from bertfast.compat.flax.param_spec import ParamSpec, tie_prediction_bias


class WeightSet:
    """Leaves, and the engine that runs on them in the compute dtype."""

    def __init__(self, spec: ParamSpec, leaves: "list[Array]", engine: Engine) -> None:
        self.spec, self.leaves, self.engine = spec, leaves, engine

    @staticmethod
    def of_module(spec: ParamSpec, module: nn.Module, dtype: torch.dtype) -> "WeightSet":
        """The weights of a module, which is used as it is; a copy is made only for another compute dtype."""
        tie_prediction_bias(module)
        named = dict(module.named_parameters())
        leaves: list[Array] = [export_leaf(named[entry.name].detach(), entry.transposed) for entry in spec.entries]
        return WeightSet(spec, leaves, Engine(module).converted(dtype))

    @staticmethod
    def of_leaves(spec: ParamSpec, leaves: "list[Array]", dtype: torch.dtype, device: torch.device) -> "WeightSet":
        """The weights of a caller's leaves, on their memory where device and dtype are equal."""
        tensors = [spec.tensor(entry, leaf).to(device, dtype) for entry, leaf in zip(spec.entries, leaves, strict=True)]
        return WeightSet(spec, leaves, Engine(spec.module(tensors)))

    def has_leaves(self, leaves: "list[Array]") -> bool:
        """Whether these are the very same arrays."""
        return all(mine is given for mine, given in zip(self.leaves, leaves, strict=True))


def frozen_leaves(spec: ParamSpec, tree: ParameterTree) -> "list[Array]":
    """The leaves of `tree`; mutable ones are copied."""
    leaves = []
    for entry, leaf in zip(spec.entries, spec.leaves(tree), strict=True):
        if not is_immutable(leaf):
            leaf = export_leaf(spec.tensor(entry, leaf).clone(), entry.transposed)
        leaves.append(leaf)
    return leaves
