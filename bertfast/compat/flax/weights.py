"""The weights as Flax's nested dict, and a model on other weights than its own.

A leaf is a read-only NumPy view of a torch parameter (a dense kernel is its transpose, [in, out]): JAX's arrays cannot change
either. Trees that come back may hold any mix of such leaves, JAX's and plain NumPy arrays.
"""

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.checkpoints.names import to_flax
from bertfast.compat import arrays
from bertfast.compat.engine import Engine

Tree = dict[str, Any]
Path = tuple[str, ...]

# The leaves that were handed out, by id: array, its parameter, and whether it is that one's transpose. Forgotten with the array.
_handed_out: dict[int, tuple["weakref.ref[Any]", Tensor, bool]] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf of the tree."""

    path: Path
    name: str  # PyTorch's
    transposed: bool
    shape: tuple[int, ...]  # of the leaf


class Layout:
    """The tree that a class and config have, and how to build a module on such a tree."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        with torch.device("meta"):
            self._empty = build()
        _tie_bias(self._empty)
        self.entries: list[Entry] = []
        for name, parameter in self._empty.named_parameters():  # a tied table appears once, under its first name
            path, transposed = to_flax(name)
            self.entries.append(Entry(path, name, transposed, tuple(parameter.t().shape if transposed else parameter.shape)))

    def module(self, tensors: list[Tensor]) -> nn.Module:
        """A module on these tensors (in PyTorch's layout, one dtype), sharing their memory."""
        module = copy.deepcopy(self._empty)
        buffers = dict(module.named_buffers())
        for entry, tensor in zip(self.entries, tensors, strict=True):
            owner, _, last = entry.name.rpartition(".")
            # In place of what the empty parameter is tied to as well.
            old = getattr(module.get_submodule(owner), last)
            new = nn.Parameter(tensor, requires_grad=False)
            for child in module.modules():
                for name, parameter in child._parameters.items():
                    if parameter is old:
                        child._parameters[name] = new
        for name, buffer in buffers.items():  # transformers' position and type ids, the same in every model
            owner, _, last = name.rpartition(".")
            fresh = torch.arange(buffer.shape[-1]).expand(buffer.shape) if last == "position_ids" else torch.zeros(buffer.shape)
            module.get_submodule(owner)._buffers[last] = fresh.to(tensors[0].device, buffer.dtype)
        return module.eval()

    def leaves(self, tree: Mapping[str, Any]) -> list[Any]:
        """The tree's leaves in order; leaves that the class does not have are ignored. Raises ValueError for a missing one."""
        found = []
        for entry in self.entries:
            node: Any = tree
            for level in entry.path:
                node = node.get(level) if isinstance(node, Mapping) else None
            if node is None or isinstance(node, Mapping):
                raise ValueError(f"params: no {'/'.join(entry.path)} in it; expected the whole tree of the model")
            found.append(node)
        return found

    def tensor(self, entry: Entry, leaf: Any) -> Tensor:
        """The leaf as a parameter: PyTorch's layout, contiguous; on the leaf's memory where it lies so."""
        known = origin(leaf)
        if known is not None:
            return known[0]
        name = "params/" + "/".join(entry.path)
        value = arrays.to_torch(leaf, name)
        if tuple(value.shape) != entry.shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {entry.shape}")
        if not value.is_floating_point():
            raise ValueError(f"{name}: got {value.dtype}, expected floating point numbers")
        return (value.t() if entry.transposed else value).contiguous()

    def tree(self, leaves: list[Any]) -> Tree:
        tree: Tree = {}
        for entry, leaf in zip(self.entries, leaves, strict=True):
            node = tree
            for level in entry.path[:-1]:
                node = node.setdefault(level, {})
            node[entry.path[-1]] = leaf
        return tree


class Weights:
    """One set of weights: its leaves, and the engine that runs on them in the compute dtype."""

    def __init__(self, layout: Layout, leaves: list[Any], engine: Engine) -> None:
        self.layout, self.leaves, self.engine = layout, leaves, engine

    @staticmethod
    def of_module(layout: Layout, module: nn.Module, dtype: torch.dtype) -> "Weights":
        """The weights of a module that was loaded or initialised; nothing is copied but what the compute dtype asks for."""
        _tie_bias(module)
        named = dict(module.named_parameters())
        leaves = [handed_out(named[entry.name].detach(), entry.transposed) for entry in layout.entries]
        return Weights(layout, leaves, Engine(module).converted(dtype))

    @staticmethod
    def of_leaves(layout: Layout, leaves: list[Any], dtype: torch.dtype, device: torch.device) -> "Weights":
        tensors = [layout.tensor(entry, leaf).to(device, dtype) for entry, leaf in zip(layout.entries, leaves, strict=True)]
        return Weights(layout, leaves, Engine(layout.module(tensors)))

    def same(self, leaves: list[Any]) -> bool:
        return all(mine is given for mine, given in zip(self.leaves, leaves, strict=True))


def handed_out(parameter: Tensor, transposed: bool) -> Any:
    """A read-only array of the parameter, known again when it comes back."""
    leaf = arrays.to_numpy(parameter.t() if transposed else parameter)
    leaf.flags.writeable = False
    key = id(leaf)
    _handed_out[key] = weakref.ref(leaf, lambda _: _handed_out.pop(key, None)), parameter, transposed
    return leaf


def origin(leaf: Any) -> tuple[Tensor, bool] | None:
    """The parameter that a leaf of ours is a view of, and whether it is the transpose; None for any other array."""
    known = _handed_out.get(id(leaf))
    return known[1:] if known is not None and known[0]() is leaf else None


def cannot_change(leaf: Any) -> bool:
    """Whether the leaf is JAX's, or one of ours."""
    return origin(leaf) is not None or arrays.kind_of((leaf,)) is arrays.Kind.JAX


def snapshot(layout: Layout, tree: Mapping[str, Any]) -> list[Any]:
    """The tree's leaves; those that could change under us are copied."""
    leaves = []
    for entry, leaf in zip(layout.entries, layout.leaves(tree), strict=True):
        if not cannot_change(leaf):
            leaf = handed_out(layout.tensor(entry, leaf).clone(), entry.transposed)
        leaves.append(leaf)
    return leaves


def plain_dict(tree: Mapping[str, Any]) -> Tree:
    """The tree as dicts (flax's FrozenDict is a Mapping too), its leaves as they are."""
    return {name: plain_dict(node) if isinstance(node, Mapping) else node for name, node in tree.items()}


def cast(tree: Mapping[str, Any], dtype: torch.dtype, mask: Mapping[str, Any] | None) -> Tree:
    """The tree with its floating leaves in another dtype; mask: a tree of bools, or of part of the leaves, True to cast."""
    out: Tree = {}
    for name, node in tree.items():
        inner = None if mask is None else mask.get(name) if isinstance(mask, Mapping) else mask
        if isinstance(node, Mapping):
            out[name] = plain_dict(node) if mask is not None and inner is None else cast(node, dtype, inner if mask is not None else None)
        else:
            out[name] = cast_leaf(node, dtype) if mask is None or bool(inner) else node
    return out


def cast_leaf(leaf: Any, dtype: torch.dtype) -> Any:
    kind = arrays.kind_of((leaf,))
    if kind is arrays.Kind.JAX:
        return leaf.astype(str(dtype).removeprefix("torch.")) if leaf.dtype.kind == "f" or leaf.dtype.name == "bfloat16" else leaf
    known = origin(leaf)
    tensor = known[0] if known is not None else arrays.to_torch(leaf, "params")
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return leaf
    if known is not None:
        return handed_out(tensor.to(dtype), known[1])
    return arrays.from_torch(tensor.to(dtype), kind)


def _tie_bias(module: nn.Module) -> None:
    """The prediction bias is one vector under two names in PyTorch; transformers 5 forgets that where the tables are untied."""
    predictions: Any = getattr(getattr(module, "cls", None), "predictions", None)
    if predictions is not None:
        predictions.decoder.bias = predictions.bias
