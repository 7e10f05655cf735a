"""The losses of transformers' heads, on logits of the padded shape [B, S, .].

Each takes the model (for its config), the head's logits by name and the call's arguments, and returns a scalar, or None without labels.
Source: the class of the same name in transformers' modeling_bert.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.batch.inputs import CheckedArguments
from bertfast.runtime.model_types import Model

Tensors = Mapping[str, Tensor]
Loss = Callable[[Model, Tensors, CheckedArguments], Tensor | None]


def no_loss(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    return None


def pretraining(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    labels, next_sentence = arguments.get("labels"), arguments.get("next_sentence_label")
    if labels is None or next_sentence is None:
        return None
    masked_lm = F.cross_entropy(logits["prediction_logits"].view(-1, model.config.vocab_size), labels.view(-1))
    return masked_lm + F.cross_entropy(logits["seq_relationship_logits"].view(-1, 2), next_sentence.view(-1))


def causal_lm(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    labels = arguments.get("labels")
    if labels is None:
        return None
    extra = {k: v for k, v in arguments.items() if k in ("num_items_in_batch", "shift_labels", "ignore_index")}
    return model.loss_function(logits=logits["logits"], labels=labels, vocab_size=model.config.vocab_size, **extra)


def masked_lm(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    return cross_entropy(logits["logits"], arguments.get("labels"), model.config.vocab_size)


def next_sentence(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    return cross_entropy(logits["logits"], arguments.get("labels"), 2)


def token_classification(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    return cross_entropy(logits["logits"], arguments.get("labels"), model.num_labels)


def multiple_choice(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    return cross_entropy(logits["logits"], arguments.get("labels"), logits["logits"].shape[-1])


def cross_entropy(logits: Tensor, labels: Tensor | None, classes: int) -> Tensor | None:
    return None if labels is None else F.cross_entropy(logits.view(-1, classes), labels.view(-1))


def sequence_classification(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    """Regression, single or multi label: by config.problem_type or, if that is None, by the labels; then config.problem_type is set."""
    labels, values = arguments.get("labels"), logits["logits"]
    if labels is None:
        return None
    config, num_labels = model.config, model.num_labels
    if config.problem_type is None:
        if num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "regression":
        return F.mse_loss(values.squeeze(), labels.squeeze()) if num_labels == 1 else F.mse_loss(values, labels)
    if config.problem_type == "single_label_classification":
        return F.cross_entropy(values.view(-1, num_labels), labels.view(-1))
    return F.binary_cross_entropy_with_logits(values, labels)


def question_answering(model: Model, logits: Tensors, arguments: CheckedArguments) -> Tensor | None:
    """The mean of the cross entropies of start and end; positions outside the input are ignored."""
    start, end = arguments.get("start_positions"), arguments.get("end_positions")
    if start is None or end is None:
        return None
    length = logits["start_logits"].shape[1]
    losses = []
    for name, positions in (("start_logits", start), ("end_logits", end)):
        positions = positions.squeeze(-1) if positions.dim() > 1 else positions
        losses.append(F.cross_entropy(logits[name], positions.clamp(0, length), ignore_index=length))
    return (losses[0] + losses[1]) / 2
