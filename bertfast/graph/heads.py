"""The heads: from the rows of the last layer to the outputs of each class of transformers' modeling_bert.

A head computes on packed rows and unpacks its logits last. A head that reads the first rows alone asks the graph for those only. HEADS has
an entry for each class: its logits, output class, loss and inputs.

Shape letters: R rows, B batch, S padded length, H hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
from transformers.models.bert import modeling_bert

from bertfast.batch.inputs import CheckedArguments
from bertfast.batch.packed import PackedBatch
from bertfast.graph import losses
from bertfast.graph.layers import LinearLayer
from bertfast.graph.projections import activated_linear, affine, linear
from bertfast.ops import Ops
from bertfast.ops.fp8 import unquantized
from bertfast.runtime.model_types import Model

if TYPE_CHECKING:
    from transformers.utils import ModelOutput

PADDED_SPAN_LOGIT = -1e4  # start and end logits of padding: never the argmax of a row


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """The arguments of a head."""

    rows: Tensor  # [R, H]; with first_rows_only [B, H]
    batch: PackedBatch
    arguments: CheckedArguments
    O: Ops
    first_rows_only: bool


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """One output of a head, as the ops return it: a matrix, reshaped to [B, S, C] if its rows are those of the padded batch."""

    value: Tensor
    padded_rows: bool = False
    pad_mask: Tensor | None = None  # if not padded_rows: bool over the leading dimensions of value, True at padding


Compute = Callable[[Model, HeadInputs], dict[str, HeadOutput]]
Finish = Callable[[dict[str, Tensor], CheckedArguments], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Head:
    compute: Compute
    output: type["ModelOutput"]
    loss: losses.Loss = losses.no_loss
    pooled: bool = False  # reads column 0 through the pooler
    first_rows_only: bool = False  # reads nothing else
    token_logits: bool = False  # an output has logits for each position
    position_fill: Mapping[str, float] = field(default_factory=dict)  # outputs with a value for each position: what padding left out gets
    finish: Finish | None = None  # from the reshaped outputs to those returned
    token_labels: tuple[str, ...] = ()  # [B, S] arguments: at padded cells they count unless -100
    span_labels: tuple[str, ...] = ()  # [B] arguments: given, every cell counts
    shifted: bool = False  # a label is the target of the cell on its left
    choices: bool = False  # inputs are [B, choices, S]


def pooled_output(model: modeling_bert.BertModel, inputs: HeadInputs) -> Tensor:  # -> [B, H]
    first = inputs.rows if inputs.first_rows_only else inputs.O.pack(inputs.rows, inputs.batch.first_rows)
    return unquantized(activated_linear(model.pooler.dense, model.pooler.activation, first, inputs.O))


def token_logits(module: LinearLayer, inputs: HeadInputs, fill: float = 0.0) -> HeadOutput:
    return HeadOutput(inputs.batch.unpack(linear(inputs.rows, [module], inputs.O), inputs.O, fill), padded_rows=True)


def lm_head_logits(head: modeling_bert.BertLMPredictionHead, x: Tensor, O: Ops) -> Tensor:  # [R, H] -> [R, V]
    transform = head.transform
    hidden = unquantized(activated_linear(transform.dense, transform.transform_act_fn, x, O))
    return linear(O.add_layer_norm(hidden, None, *affine(transform.LayerNorm)), [head.decoder], O)


def encoder_outputs(model: modeling_bert.BertModel, inputs: HeadInputs) -> dict[str, HeadOutput]:
    out = {"last_hidden_state": HeadOutput(inputs.batch.unpack(inputs.rows, inputs.O), padded_rows=True)}
    if model.pooler is not None:
        out["pooler_output"] = HeadOutput(pooled_output(model, inputs))
    return out


def masked_lm(model: Model, inputs: HeadInputs) -> dict[str, HeadOutput]:
    logits = model.family.lm_logits(model, inputs.rows, inputs.O)
    return {"logits": HeadOutput(inputs.batch.unpack(logits, inputs.O), padded_rows=True)}


def causal_lm(model: Model, inputs: HeadInputs) -> dict[str, HeadOutput]:
    keep = inputs.arguments.get("logits_to_keep", 0)
    if isinstance(keep, int) and keep == 0:
        return masked_lm(model, inputs)
    hidden = select_columns(inputs.batch.cells(inputs.batch.unpack(inputs.rows, inputs.O)), keep)
    logits = model.family.lm_logits(model, hidden.reshape(-1, hidden.shape[-1]).contiguous(), inputs.O).view(*hidden.shape[:-1], -1)
    padding = inputs.batch.padding()
    if padding is None:
        return {"logits": HeadOutput(logits)}
    padding = select_columns(padding[..., None], keep)[..., 0]
    return {"logits": HeadOutput(logits.masked_fill(padding[..., None], 0.0), pad_mask=padding)}


def select_columns(x: Tensor, keep: int | Tensor) -> Tensor:
    """The columns of x [B, S, C] that logits_to_keep selects.

    keep: how many of the last ones; indices [k] for every sequence, or [B, k]; or a [B, S] bool mask, whose result is flat.
    """
    if isinstance(keep, int):
        return x[:, -keep:] if keep else x
    if keep.dim() == 2:
        return x[keep] if keep.dtype == torch.bool else x.take_along_dim(keep[..., None], dim=1)
    return x[:, keep]


def pretraining(model: modeling_bert.BertForPreTraining, inputs: HeadInputs) -> dict[str, HeadOutput]:
    logits = model.family.lm_logits(model, inputs.rows, inputs.O)
    return {
        "prediction_logits": HeadOutput(inputs.batch.unpack(logits, inputs.O), padded_rows=True),
        "seq_relationship_logits": HeadOutput(linear(pooled_output(model.base_model, inputs), [model.cls.seq_relationship], inputs.O)),
    }


def next_sentence(model: modeling_bert.BertForNextSentencePrediction, inputs: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": HeadOutput(linear(pooled_output(model.base_model, inputs), [model.cls.seq_relationship], inputs.O))}


def sequence_classification(model: modeling_bert.BertForSequenceClassification, inputs: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": HeadOutput(linear(pooled_output(model.base_model, inputs), [model.classifier], inputs.O))}


def multiple_choice(model: modeling_bert.BertForMultipleChoice, inputs: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": HeadOutput(linear(pooled_output(model.base_model, inputs), [model.classifier], inputs.O))}


def reshape_choices(outputs: dict[str, Tensor], arguments: CheckedArguments) -> dict[str, Tensor]:  # [B * choices, 1] -> [B, choices]
    return {"logits": outputs["logits"].view(-1, arguments["num_choices"])}


def token_classification(model: modeling_bert.BertForTokenClassification, inputs: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": token_logits(model.classifier, inputs)}


def question_answering(model: modeling_bert.BertForQuestionAnswering, inputs: HeadInputs) -> dict[str, HeadOutput]:
    return {"logits": token_logits(model.qa_outputs, inputs, PADDED_SPAN_LOGIT)}


def split_span_logits(outputs: dict[str, Tensor], arguments: CheckedArguments) -> dict[str, Tensor]:  # [B, S, 2] -> [B, S] twice
    logits = outputs["logits"]
    if logits.shape[-1] != 2:
        raise ValueError(f"config.num_labels: got {logits.shape[-1]}, expected 2 (start and end) for question answering")
    start, end = logits.unbind(-1)
    return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}


LOGITS = {"logits": 0.0}
SPAN_LOGITS = {"start_logits": PADDED_SPAN_LOGIT, "end_logits": PADDED_SPAN_LOGIT}

HEADS: dict[str, Head] = {
    "BertModel": Head(
        encoder_outputs, BaseModelOutputWithPoolingAndCrossAttentions, pooled=True, position_fill={"last_hidden_state": 0.0}
    ),
    "BertForPreTraining": Head(
        pretraining, modeling_bert.BertForPreTrainingOutput, losses.pretraining, pooled=True,
        token_logits=True, position_fill={"prediction_logits": 0.0}, token_labels=("labels",),
    ),
    "BertLMHeadModel": Head(
        causal_lm, CausalLMOutputWithCrossAttentions, losses.causal_lm,
        token_logits=True, position_fill=LOGITS, token_labels=("labels",), shifted=True,
    ),
    "BertForMaskedLM": Head(
        masked_lm, MaskedLMOutput, losses.masked_lm, token_logits=True, position_fill=LOGITS, token_labels=("labels",)
    ),
    "BertForNextSentencePrediction": Head(
        next_sentence, NextSentencePredictorOutput, losses.next_sentence, pooled=True, first_rows_only=True
    ),
    "BertForSequenceClassification": Head(
        sequence_classification, SequenceClassifierOutput, losses.sequence_classification, pooled=True, first_rows_only=True
    ),
    "BertForMultipleChoice": Head(
        multiple_choice, MultipleChoiceModelOutput, losses.multiple_choice,
        pooled=True, first_rows_only=True, choices=True, finish=reshape_choices,
    ),
    "BertForTokenClassification": Head(
        token_classification, TokenClassifierOutput, losses.token_classification,
        token_logits=True, position_fill=LOGITS, token_labels=("labels",),
    ),
    "BertForQuestionAnswering": Head(
        question_answering, QuestionAnsweringModelOutput, losses.question_answering,
        token_logits=True, position_fill=SPAN_LOGITS, span_labels=("start_positions", "end_positions"), finish=split_span_logits,
    ),
}  # fmt: skip
