"""The methods that the TF models had from Keras: predict, the weights as a list of arrays, and training, which raises."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bertfast.checkpoints.names import to_tf
from bertfast.compat import arrays
from bertfast.compat.arrays import Array
from bertfast.compat.engine import Engine
from bertfast.compat.tf import arguments

Inputs: TypeAlias = "Array | Sequence[Array | None] | Mapping[str, Array]"  # one array, the inputs in order, or by name


class KerasMixin:
    """The Keras methods of TFBertPreTrainedModel."""

    torch_class: ClassVar[str]
    call: Callable[..., Any]
    _engine: Engine
    _names: Sequence[str]  # of call's arguments

    def predict(self, x: Inputs, batch_size: int | None = None, verbose: object = None, **kwargs: object) -> Any:
        """The outputs for all rows of x (an array, a list of inputs in order, or a dict), as NumPy arrays.

        Computed batch_size (default: 32) rows at a time. Raises TypeError for Keras arguments beyond x, batch_size and verbose.
        """
        if kwargs:
            raise TypeError(f"predict: got an unexpected argument {next(iter(kwargs))!r}; expected x, batch_size and verbose")
        given = dict.fromkeys(self._names)
        values = {k: v for k, v in arguments.merge_arguments(self._names, {**given, "input_ids": x}).items() if v is not None}
        values = {k: _as_numpy(v) if arrays.is_array(v) else v for k, v in values.items()}
        rows = next((len(v) for v in values.values() if isinstance(v, np.ndarray) and v.ndim), 0)
        size = batch_size or 32
        parts = [
            self.call({k: v[at : at + size] if isinstance(v, np.ndarray) and v.ndim and len(v) == rows else v for k, v in values.items()})
            for at in range(0, max(rows, 1), size)
        ]
        if isinstance(parts[0], tuple):
            return tuple(_concatenate([part[i] for part in parts]) for i in range(len(parts[0])))
        return type(parts[0])(**{name: _concatenate([part[name] for part in parts]) for name in parts[0]})

    def get_weights(self) -> list[npt.NDArray[np.generic]]:
        """Copies of the weights as NumPy arrays, in Keras's order and layout (kernels [in, out])."""
        return [arrays.to_numpy(p.t() if transposed else p).copy() for p, transposed in self._keras_parameters()]

    def set_weights(self, weights: "Sequence[Array]") -> None:
        """Set the weights from arrays in the order and layout of get_weights. Raises ValueError for another number or shape."""
        parameters = self._keras_parameters()
        if len(weights) != len(parameters):
            raise ValueError(f"weights: got {len(weights)} arrays, expected {len(parameters)}")
        for i, (value, (parameter, transposed)) in enumerate(zip(weights, parameters, strict=True)):
            tensor = arrays.to_torch(value, f"weights[{i}]")
            target = parameter.data.t() if transposed else parameter.data
            if tensor.shape != target.shape:
                raise ValueError(f"weights[{i}]: got shape {tuple(tensor.shape)}, expected {tuple(target.shape)}")
            target.copy_(tensor)

    def count_params(self) -> int:
        """The number of weights."""
        return sum(p.numel() for p, _ in self._keras_parameters())

    def _keras_parameters(self) -> list[tuple[Tensor, bool]]:
        named = dict(self._engine.module.named_parameters())
        names = list(named)
        # Keras builds token type embeddings before position embeddings, PyTorch after.
        i, j = (names.index(f"bert.embeddings.{kind}_embeddings.weight") for kind in ("position", "token_type"))
        names[i], names[j] = names[j], names[i]
        return [(named[name], to_tf(name)[1]) for name in names]

    def compile(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises NotImplementedError: inference only."""
        self._no_training("compile")

    def fit(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises NotImplementedError: inference only."""
        self._no_training("fit")

    def evaluate(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises NotImplementedError: inference only."""
        self._no_training("evaluate")

    def train_on_batch(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises NotImplementedError: inference only."""
        self._no_training("train_on_batch")

    def _no_training(self, method: str) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__}.{method}: this class runs inference. Train with bertfast.{self.torch_class}, a torch module that reads "
            "the same folders (transformers.Trainer, or a loop of your own); for a loss of this model, pass labels to the call"
        )


def _as_numpy(value: object) -> npt.NDArray[np.generic]:
    return value if isinstance(value, np.ndarray) else arrays.to_numpy(arrays.to_torch(value, "x"))


def _concatenate(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(layer) for layer in zip(*parts, strict=True))
    return np.concatenate(parts)
