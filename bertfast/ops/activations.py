"""The activations that `linear` fuses: one row each, for every backend, for the graph and for `bertfast info`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_TRANSFORMERS, _TORCH = "transformers.activations", "torch.nn.modules.activation"


@dataclass(frozen=True, slots=True)
class Activation:
    name: str  # in the op contract
    reference: Callable[[Tensor], Tensor]  # the definition
    classes: tuple[str, ...]  # modules of transformers and torch that compute it, by full name
    cpp: str  # key of _C.ACTIVATIONS
    triton: str  # one of bertfast.kernels.math.ACTIVATIONS


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation("gelu", F.gelu, (f"{_TRANSFORMERS}.GELUActivation",), "gelu", "gelu"),
        # transformers has two names for the tanh form: gelu_new writes the formula out, the other calls torch.
        Activation("gelu_new", _gelu_tanh, (f"{_TRANSFORMERS}.NewGELUActivation",), "gelu_new", "gelu_new"),
        Activation(
            "gelu_pytorch_tanh",
            _gelu_tanh,
            (f"{_TRANSFORMERS}.GELUTanh", f"{_TRANSFORMERS}.PytorchGELUTanh"),
            "gelu_pytorch_tanh",
            "gelu_pytorch_tanh",
        ),
        Activation("relu", F.relu, (f"{_TORCH}.ReLU",), "relu", "relu"),
        Activation("silu", F.silu, (f"{_TRANSFORMERS}.SiLUActivation", f"{_TORCH}.SiLU"), "silu", "silu"),
        Activation("tanh", torch.tanh, (f"{_TORCH}.Tanh",), "tanh", "tanh"),
    )
}

_BY_CLASS = {full_name: row.name for row in ACTIVATIONS.values() for full_name in row.classes}


def activated(x: Tensor, activation: str | None) -> Tensor:
    """activation(x) by its definition; x itself for None."""
    return x if activation is None else ACTIVATIONS[activation].reference(x)


def fused_name(module: object) -> str | None:
    """The contract's name for an activation module; None where linear cannot fuse it. By class, not by config: an activation that was
    replaced in the module tree is called as it stands."""
    return _name_of(type(module))


def fused_config_name(hidden_act: str) -> str | None:
    """The contract's name for a config's `hidden_act`, a key of transformers' ACT2FN; None where linear cannot fuse it."""
    from transformers.activations import ACT2CLS

    entry = ACT2CLS.get(hidden_act)
    return _name_of(entry[0] if isinstance(entry, tuple) else entry)


def _name_of(kind: type | None) -> str | None:
    return None if kind is None else _BY_CLASS.get(f"{kind.__module__}.{kind.__qualname__}")
