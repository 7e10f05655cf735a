"""int8: which layers of a model become int8, and how.

The linear layers of the encoder, the word embeddings and the decoder of a language-model head (Family.quantizable). Positions, token types,
LayerNorm, pooler, the transform before a decoder (one H x H matrix) and classifiers stay float32. The float originals are dropped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from bertfast.graph.family import family_of
from bertfast.quantization.int8_layers import Int8Embedding, Int8Linear, Int8Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantizable_layers(model: "PreTrainedModel") -> Iterator[tuple[str, nn.Linear | nn.Embedding | Int8Table]]:
    """The layers that int8 replaces, by name; a layer under two names comes twice."""
    quantizable = family_of(model.config).quantizable
    for name, module in model.named_modules(remove_duplicate=False):
        if quantizable(name):
            yield name, module


def why_not_quantizable(model: "PreTrainedModel") -> str | None:
    """Why int8 cannot quantize a model; None where it can."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            return f"its parameters are {parameter.dtype} ({name}), expected torch.float32; call .float() on it first"
        if parameter.device.type != "cpu":
            return f"its parameters are on {parameter.device} ({name}), and int8 runs on CPUs; call .to('cpu') on it first"
        if type(parameter) is not nn.Parameter:
            return f"parameter {name} is a {type(parameter).__name__}"
    for name, layer in quantizable_layers(model):
        if not isinstance(layer, Int8Table) and type(layer) not in (nn.Linear, nn.Embedding):
            return f"{name} is a {type(layer).__name__}, expected torch's own layer; merge or remove the adapter first"
    return None


def quantize(model: "PreTrainedModel") -> None:
    """Replaces the layers in place, for a model that why_not_quantizable accepts. ValueError, naming the layer, for weights that are not
    finite."""
    words = {id(layer.weight): name for name, layer in quantizable_layers(model) if type(layer) is nn.Embedding}
    ties = {
        name: words[id(layer.weight)] for name, layer in quantizable_layers(model) if type(layer) is nn.Linear and id(layer.weight) in words
    }
    tied = {id(model.get_submodule(name)) for name in ties}

    def quantized(layer: nn.Linear | nn.Embedding) -> Int8Table:
        if isinstance(layer, nn.Embedding):
            return Int8Embedding.of(layer)
        return Int8Linear.zeros_like(layer) if id(layer) in tied else Int8Linear.of(layer)

    replace(model, quantized)
    for decoder, embedding in ties.items():
        model.get_submodule(decoder).tie(model.get_submodule(embedding))


def put_empty_layers(model: "PreTrainedModel") -> None:
    """Replaces the layers by int8 ones of zeros, for a state dict to be loaded into."""

    def empty(layer: nn.Linear | nn.Embedding) -> Int8Table:
        if isinstance(layer, nn.Embedding):
            return Int8Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx)
        return Int8Linear.zeros_like(layer)

    replace(model, empty)


def replace(model: "PreTrainedModel", quantized: Callable[[nn.Linear | nn.Embedding], Int8Table]) -> None:
    done: dict[nn.Module, Int8Table] = {}
    for name, layer in list(quantizable_layers(model)):
        if isinstance(layer, Int8Table):
            continue
        if layer not in done:
            with named(name):
                done[layer] = quantized(layer)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, done[layer])


@contextmanager
def named(name: str) -> Iterator[None]:
    """Within: a ValueError names the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
