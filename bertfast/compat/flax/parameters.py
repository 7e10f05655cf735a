"""The weights of a Flax model as the caller sees them: `params`, and the methods that make and change such trees."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from bertfast.compat.arrays import Array
from bertfast.compat.engine import Engine
from bertfast.compat.flax import prng
from bertfast.compat.flax.leaves import CastMask, ParameterTree, Tree, cast_tree, is_immutable
from bertfast.compat.flax.param_spec import ParamSpec, Path
from bertfast.compat.flax.weights import WeightSet, frozen_leaves

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Model = TypeVar("Model", bound="ParametersMixin")

_MAX_OTHER_WEIGHTS = 2  # weight sets passed as params= that stay converted


class ParametersMixin:
    """The parameter methods of FlaxBertPreTrainedModel."""

    config: "PreTrainedConfig"
    torch_class: ClassVar[str]
    _dtype: torch.dtype
    _device: torch.device
    _initialised: bool
    _spec: ParamSpec
    _weights: WeightSet | None  # the model's own
    _tree: "Tree | None"  # `params`, once the caller, who may replace leaves, has read it
    _other_weights: list[WeightSet]  # passed as params=, with immutable leaves; newest last

    def _torch_module(self) -> "PreTrainedModel":
        raise NotImplementedError

    def _random_weights(self, seed: int) -> WeightSet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed & (2**63 - 1))
            return WeightSet.of_module(self._spec, self._torch_module().to(self._device), self._dtype)

    def _set_weights(self, weights: WeightSet) -> None:
        self._weights, self._tree = weights, None

    @property
    def params(self) -> Tree:
        """The weights as a nested dict with 4.37's names: read-only NumPy arrays, or the arrays that were set.

        To change weights, replace a leaf or set the whole tree. Raises ValueError for a model made with _do_init=False.
        """
        if self._weights is None:
            raise ValueError(
                "`params` cannot be accessed from model when the model is created with `_do_init=False`: call init_weights, keep what it "
                "returns outside the model, and pass it to the call as params="
            )
        if self._tree is None:
            self._tree = self._spec.tree(self._weights.leaves)
        return self._tree

    @params.setter
    def params(self, tree: ParameterTree) -> None:
        if not self._initialised:
            raise ValueError(
                "`params` cannot be set from model when the model is created with `_do_init=False`: keep them outside the model, and pass "
                "them to the call as params="
            )
        leaves = frozen_leaves(self._spec, tree)
        self._set_weights(WeightSet.of_leaves(self._spec, leaves, self._dtype, self._device))

    @property
    def required_params(self) -> set[Path]:
        """The path of every leaf of `params`."""
        return {entry.path for entry in self._spec.entries}

    def init_weights(self, rng: "int | Array", input_shape: tuple[int, ...] = (1, 1), params: "ParameterTree | None" = None) -> Tree:
        """A tree of random weights. rng: a seed or a jax.random key; params: a tree whose leaves are kept, only missing ones are added.

        Source: 4.37's init_weights; the random numbers are torch's, not JAX's.
        """
        fresh = self._spec.tree(self._random_weights(prng.seed_of(prng.read_key(rng, "rng"))).leaves)
        return fresh if params is None else _fill_missing(params, fresh)

    def to_bf16(self, params: ParameterTree, mask: "CastMask | None" = None) -> Tree:
        """The tree with its floating point leaves in bfloat16. mask: a tree of bools, True for leaves to cast; it may end above them."""
        return cast_tree(params, torch.bfloat16, mask)

    def to_fp16(self, params: ParameterTree, mask: "CastMask | None" = None) -> Tree:
        """As to_bf16, in float16."""
        return cast_tree(params, torch.float16, mask)

    def to_fp32(self, params: ParameterTree, mask: "CastMask | None" = None) -> Tree:
        """As to_bf16, in float32."""
        return cast_tree(params, torch.float32, mask)

    def enable_gradient_checkpointing(self) -> None:
        """Accepted without effect: it saves memory in a backward, and this class has none."""

    def _engine_on(self, tree: "ParameterTree | None") -> Engine:
        """The engine with the weights of `tree`, or with the model's own."""
        if not tree:
            tree = self.params if self._tree is not None or self._weights is None else None
        if tree is None:
            assert self._weights is not None, "params raises otherwise"
            return self._weights.engine
        leaves = self._spec.leaves(tree)
        for weights in (*([self._weights] if self._weights is not None else []), *self._other_weights):
            if weights.has_leaves(leaves):
                return weights.engine
        weights = WeightSet.of_leaves(self._spec, leaves, self._dtype, self._device)
        if all(map(is_immutable, leaves)):
            self._other_weights[:] = [*self._other_weights, weights][-_MAX_OTHER_WEIGHTS:]
        return weights.engine

    def save_pretrained(self, save_directory: str | PathLike[str], params: "ParameterTree | None" = None, **kwargs: object) -> None:
        """Write config.json and model.safetensors, which this class, 4.37's classes and the PyTorch classes read. params: default: own."""
        leaves = self._spec.leaves(params if params is not None else self.params)
        tensors = [self._spec.tensor(entry, leaf) for entry, leaf in zip(self._spec.entries, leaves, strict=True)]
        self._spec.module(tensors).save_pretrained(save_directory, **kwargs)
        self.config.architectures = [self.torch_class]
        self.config.save_pretrained(save_directory)

    def to(self: Model, device: str | torch.device) -> Model:
        """Move the model's own weights to a torch device. Outputs still have the array type of the inputs."""
        self._device = torch.device(device)
        self._other_weights.clear()
        if self._weights is not None:
            weights = self._weights
            self._set_weights(WeightSet(self._spec, weights.leaves, Engine(weights.engine.module.to(self._device))))
        return self


def _fill_missing(given: Mapping[str, Any], fresh: ParameterTree) -> Tree:
    """`fresh` with the leaves of `given` where it has them."""
    return {
        name: (_fill_missing(given.get(name, {}), node) if isinstance(node, Mapping) else given.get(name, node))
        for name, node in fresh.items()
    }
