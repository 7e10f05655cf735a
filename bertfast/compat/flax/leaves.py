"""The leaves of `params`: arrays on the memory of torch parameters, recognised when they come back."""

import weakref
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertfast.compat import arrays
from bertfast.compat.arrays import Array

Tree: TypeAlias = "dict[str, Tree | Array]"
ParameterTree: TypeAlias = "Mapping[str, ParameterTree | Array]"  # a caller's: dicts or Flax's FrozenDict
CastMask: TypeAlias = "Mapping[str, CastMask | bool]"  # True for leaves to cast; may end above them

# id of an exported leaf -> (the array, its parameter, whether the array is the transpose); removed with the array.
_exported: dict[int, tuple["weakref.ref[npt.NDArray[np.generic]]", Tensor, bool]] = {}


def export_leaf(parameter: Tensor, transposed: bool) -> npt.NDArray[np.generic]:
    """A read-only NumPy view of the parameter, or of its transpose; exported_parameter finds the parameter again."""
    leaf = arrays.to_numpy(parameter.t() if transposed else parameter)
    leaf.flags.writeable = False
    key = id(leaf)
    _exported[key] = weakref.ref(leaf, lambda _: _exported.pop(key, None)), parameter, transposed
    return leaf


def exported_parameter(leaf: object) -> tuple[Tensor, bool] | None:
    """The parameter behind an exported leaf, and whether the leaf is its transpose; None for any other array."""
    known = _exported.get(id(leaf))
    return known[1:] if known is not None and known[0]() is leaf else None


def is_immutable(leaf: object) -> bool:
    """Whether the leaf is a JAX array or an exported one, which nobody can write to."""
    return exported_parameter(leaf) is not None or arrays.array_type_of((leaf,)) is arrays.ArrayType.JAX


def to_dict(tree: ParameterTree) -> Tree:
    """The tree as nested dicts (it may be Flax's FrozenDict), with the same leaves."""
    return {name: to_dict(node) if isinstance(node, Mapping) else node for name, node in tree.items()}


def cast_tree(tree: ParameterTree, dtype: torch.dtype, mask: "CastMask | bool | None") -> Tree:
    """The tree with its floating point leaves in `dtype`. mask: True for leaves to cast."""
    out: Tree = {}
    for name, node in tree.items():
        inner = None if mask is None else mask.get(name) if isinstance(mask, Mapping) else mask
        if isinstance(node, Mapping):
            out[name] = to_dict(node) if mask is not None and inner is None else cast_tree(node, dtype, inner if mask is not None else None)
        else:
            out[name] = cast_leaf(node, dtype) if mask is None or bool(inner) else node
    return out


def cast_leaf(leaf: Array, dtype: torch.dtype) -> Array:
    """The leaf in another dtype; itself where it has that dtype or is not floating point."""
    if arrays.is_jax(leaf):
        return leaf.astype(str(dtype).removeprefix("torch.")) if leaf.dtype.kind == "f" or leaf.dtype.name == "bfloat16" else leaf
    known = exported_parameter(leaf)
    tensor = known[0] if known is not None else arrays.to_torch(leaf, "params")
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return leaf
    if known is not None:
        return export_leaf(tensor.to(dtype), known[1])
    return arrays.from_torch(tensor.to(dtype), arrays.array_type_of((leaf,)))
