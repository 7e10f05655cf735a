"""The heads: from the rows of the last layer to what each class of transformers returns.

A head computes on packed rows and unpacks its logits last. Heads that read the pooled token alone ask the graph for those rows
only. Every head of transformers' modeling_bert is one entry here: what it reads, its output class, its logits, its loss.

Shape letters: R rows, B batch, S padded length, H hidden, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from bertfast.batch.inputs import Arguments
from bertfast.batch.packed import PackedBatch
from bertfast.graph import losses
from bertfast.graph.encoder import activated_linear, affine, linear
from bertfast.ops import Ops

PADDED_SPAN_LOGIT = -1e4  # start and end logits of padding: an argmax or softmax over the row never lands there


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """What a head is given."""

    rows: Tensor  # [R, H], or [B, H]: the first rows alone, for a head that asked for those
    batch: PackedBatch
    arguments: Arguments
    O: Ops  # the ops
    only_first: bool


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """One output of a head, as the ops leave it: a matrix, which becomes [B, S, C] where its rows are the cells of the batch."""

    value: Tensor
    cells: bool = False
    blank: Tensor | None = None  # bool over the leading dimensions of a value that is no matrix of cells: which of them are padding


Compute = Callable[[Any, HeadInputs], dict[str, HeadOutput]]
Finish = Callable[[dict[str, Tensor], Arguments], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Head:
    compute: Compute
    output: type  # the ModelOutput it fills
    loss: losses.Loss = losses.no_loss
    pooled: bool = False  # reads column 0 through the pooler
    only_first: bool = False  # and nothing else
    finish: Finish | None = None  # what is left to do to the shaped outputs
    token_labels: tuple[str, ...] = ()  # [B, S] arguments that count at padded cells unless -100 there
    span_labels: tuple[str, ...] = ()  # [B] arguments under which every cell counts
    shifted: bool = False  # a label also concerns the cell on its left
    choices: bool = False  # inputs are [B, choices, S]


def pool(model: Any, encoded: HeadInputs) -> Tensor:  # -> [B, H]
    first = encoded.rows if encoded.only_first else encoded.O.pack(encoded.rows, encoded.batch.first_rows)
    return activated_linear(model.pooler.dense, model.pooler.activation, first, encoded.O)


def token_scores(module: Any, encoded: HeadInputs, fill: float = 0.0) -> HeadOutput:
    return HeadOutput(encoded.batch.unpack(linear(encoded.rows, [module], encoded.O), encoded.O, fill), cells=True)


def prediction_logits(head: Any, x: Tensor, O: Ops) -> Tensor:  # BertLMPredictionHead: [R, H] -> [R, V]
    transform = head.transform
    hidden = activated_linear(transform.dense, transform.transform_act_fn, x, O)
    return linear(O.add_layer_norm(hidden, None, *affine(transform.LayerNorm)), [head.decoder], O)


def encoder_outputs(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    out = {"last_hidden_state": HeadOutput(encoded.batch.unpack(encoded.rows, encoded.O), cells=True)}
    if model.pooler is not None:
        out["pooler_output"] = HeadOutput(pool(model, encoded))
    return out


def masked_lm(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    scores = model.family.lm_logits(model, encoded.rows, encoded.O)
    return {"logits": HeadOutput(encoded.batch.unpack(scores, encoded.O), cells=True)}


def causal_lm(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    keep = encoded.arguments.get("logits_to_keep", 0)
    if isinstance(keep, int) and keep == 0:
        return masked_lm(model, encoded)
    hidden = select_columns(encoded.batch.cells(encoded.batch.unpack(encoded.rows, encoded.O)), keep)
    scores = model.family.lm_logits(model, hidden.reshape(-1, hidden.shape[-1]).contiguous(), encoded.O).view(*hidden.shape[:-1], -1)
    padding = encoded.batch.padding()
    if padding is None:
        return {"logits": HeadOutput(scores)}
    padding = select_columns(padding[..., None], keep)[..., 0]
    return {"logits": HeadOutput(scores.masked_fill(padding[..., None], 0.0), blank=padding)}


def select_columns(x: Tensor, keep: Any) -> Tensor:
    """The columns of x [B, S, C] that logits_to_keep names: the last `keep`; [k] of every row; [B, k]; a [B, S] bool mask, flat."""
    if isinstance(keep, int):
        return x[:, -keep:] if keep else x
    if keep.dim() == 2:
        return x[keep] if keep.dtype == torch.bool else x.take_along_dim(keep[..., None], dim=1)
    return x[:, keep]


def pretraining(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    scores = model.family.lm_logits(model, encoded.rows, encoded.O)
    return {
        "prediction_logits": HeadOutput(encoded.batch.unpack(scores, encoded.O), cells=True),
        "seq_relationship_logits": HeadOutput(linear(pool(model.base_model, encoded), [model.cls.seq_relationship], encoded.O)),
    }


def next_sentence(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": HeadOutput(linear(pool(model.base_model, encoded), [model.cls.seq_relationship], encoded.O))}


def sequence_classification(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": HeadOutput(linear(pool(model.base_model, encoded), [model.classifier], encoded.O))}


def multiple_choice(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": HeadOutput(linear(pool(model.base_model, encoded), [model.classifier], encoded.O))}


def reshape_choices(outputs: dict[str, Tensor], arguments: Arguments) -> dict[str, Tensor]:  # [B * choices, 1] -> [B, choices]
    return {"logits": outputs["logits"].view(-1, arguments["num_choices"])}


def token_classification(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": token_scores(model.classifier, encoded)}


def question_answering(model: Any, encoded: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": token_scores(model.qa_outputs, encoded, PADDED_SPAN_LOGIT)}


def split_span_logits(outputs: dict[str, Tensor], arguments: Arguments) -> dict[str, Tensor]:  # [B, S, 2] -> [B, S] twice
    logits = outputs["logits"]
    if logits.shape[-1] != 2:
        raise ValueError(f"config.num_labels: got {logits.shape[-1]}, expected 2 (start and end) for question answering")
    start, end = logits.unbind(-1)
    return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}


HEADS: dict[str, Head] = {
    "BertModel": Head(encoder_outputs, BaseModelOutputWithPoolingAndCrossAttentions, pooled=True),
    "BertForPreTraining": Head(pretraining, BertForPreTrainingOutput, losses.pretraining, pooled=True, token_labels=("labels",)),
    "BertLMHeadModel": Head(causal_lm, CausalLMOutputWithCrossAttentions, losses.causal_lm, token_labels=("labels",), shifted=True),
    "BertForMaskedLM": Head(masked_lm, MaskedLMOutput, losses.masked_lm, token_labels=("labels",)),
    "BertForNextSentencePrediction": Head(next_sentence, NextSentencePredictorOutput, losses.next_sentence, pooled=True, only_first=True),
    "BertForSequenceClassification": Head(
        sequence_classification, SequenceClassifierOutput, losses.sequence_classification, pooled=True, only_first=True
    ),
    "BertForMultipleChoice": Head(
        multiple_choice,
        MultipleChoiceModelOutput,
        losses.multiple_choice,
        pooled=True,
        only_first=True,
        choices=True,
        finish=reshape_choices,
    ),
    "BertForTokenClassification": Head(token_classification, TokenClassifierOutput, losses.token_classification, token_labels=("labels",)),
    "BertForQuestionAnswering": Head(
        question_answering,
        QuestionAnsweringModelOutput,
        losses.question_answering,
        span_labels=("start_positions", "end_positions"),
        finish=split_span_logits,
    ),
}
