"""The models of the fast path as types. None is instantiated: the models are transformers' classes with the mixin of bertfast.modeling."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from bertfast.graph.family import Family


class Embeddings(nn.Module):
    word_embeddings: nn.Module  # nn.Embedding or Int8Embedding
    position_embeddings: nn.Embedding


class Model(nn.Module):
    """What is read of a model, with or without a head, beside its own modules."""

    config: "PreTrainedConfig"
    family: "Family"
    base_model: "BaseModel"
    device: torch.device
    keep_padding: bool | None
    batch_invariant: bool
    num_labels: int
    loss_function: Callable[..., Tensor]


class BaseModel(Model):
    """A model without its head: `model.base_model`."""

    embeddings: Embeddings
    pooler: nn.Module | None
