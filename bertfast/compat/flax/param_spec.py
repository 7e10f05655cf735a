"""The parameter tree of a Flax model: its leaves, and a torch module on the leaves of such a tree."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertfast.checkpoints.names import to_flax
from bertfast.compat import arrays
from bertfast.compat.arrays import Array
from bertfast.compat.flax.leaves import ParameterTree, Tree, exported_parameter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParamEntry:
    """One leaf of the tree."""

    path: Path
    name: str  # the PyTorch parameter
    transposed: bool  # the leaf is the transposed parameter
    shape: tuple[int, ...]  # of the leaf


class ParamSpec:
    """The parameter tree of a class and config. build: makes its torch module."""

    def __init__(self, build: "Callable[[], PreTrainedModel]") -> None:
        with torch.device("meta"):
            self._empty = build()
        tie_prediction_bias(self._empty)
        self.entries: list[ParamEntry] = []
        for name, parameter in self._empty.named_parameters():  # a tied parameter appears once, under its first name
            path, transposed = to_flax(name)
            self.entries.append(ParamEntry(path, name, transposed, tuple(parameter.t().shape if transposed else parameter.shape)))

    def module(self, tensors: list[Tensor]) -> "PreTrainedModel":
        """A module in eval mode on the memory of these tensors, one per entry, in PyTorch's layout and of one dtype."""
        module = copy.deepcopy(self._empty)
        buffers = dict(module.named_buffers())
        for entry, tensor in zip(self.entries, tensors, strict=True):
            owner, _, last = entry.name.rpartition(".")
            # Replaced wherever it is tied.
            old = getattr(module.get_submodule(owner), last)
            new = nn.Parameter(tensor, requires_grad=False)
            for child in module.modules():
                for name, parameter in child._parameters.items():
                    if parameter is old:
                        child._parameters[name] = new
        for name, buffer in buffers.items():  # transformers' position and token type ids, constants
            owner, _, last = name.rpartition(".")
            fresh = torch.arange(buffer.shape[-1]).expand(buffer.shape) if last == "position_ids" else torch.zeros(buffer.shape)
            module.get_submodule(owner)._buffers[last] = fresh.to(tensors[0].device, buffer.dtype)
        return module.eval()

    def leaves(self, tree: ParameterTree) -> "list[Array]":
        """The leaves of `tree`, one per entry; other leaves are ignored. Raises ValueError for a missing one."""
        found = []
        for entry in self.entries:
            node: ParameterTree | Array | None = tree
            for level in entry.path:
                node = node.get(level) if isinstance(node, Mapping) else None
            if node is None or isinstance(node, Mapping):
                raise ValueError(f"params: it has no {'/'.join(entry.path)}; expected the whole parameter tree of the model")
            found.append(node)
        return found

    def tensor(self, entry: ParamEntry, leaf: Array) -> Tensor:
        """The leaf in PyTorch's layout, contiguous; on the leaf's memory where possible. Raises ValueError for another shape or dtype."""
        known = exported_parameter(leaf)
        if known is not None:
            return known[0]
        name = "params/" + "/".join(entry.path)
        value = arrays.to_torch(leaf, name)
        if tuple(value.shape) != entry.shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {entry.shape}")
        if not value.is_floating_point():
            raise ValueError(f"{name}: got {value.dtype}, expected floating point numbers")
        return (value.t() if entry.transposed else value).contiguous()

    def tree(self, leaves: "list[Array]") -> Tree:
        """The nested dict of these leaves, one per entry."""
        tree: Tree = {}
        for entry, leaf in zip(self.entries, leaves, strict=True):
            node: dict[str, Any] = tree
            for level in entry.path[:-1]:
                node = node.setdefault(level, {})
            node[entry.path[-1]] = leaf
        return tree


def tie_prediction_bias(module: nn.Module) -> None:
    """Ties cls.predictions.bias and its decoder's bias, which transformers 5 does not tie where the embeddings are untied."""
    predictions = getattr(getattr(module, "cls", None), "predictions", None)
    if predictions is not None:
        predictions.decoder.bias = predictions.bias
