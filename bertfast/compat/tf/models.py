"""TFBertForTokenClassification and TFBertForQuestionAnswering.

Source of the behaviour: the classes of these names in transformers 4.37.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bertfast.compat.arrays import Array
from bertfast.compat.engine import EngineOutput
from bertfast.compat.tf import losses
from bertfast.compat.tf.keras import Inputs
from bertfast.compat.tf.outputs import TFQuestionAnsweringModelOutput, TFTokenClassifierOutput
from bertfast.compat.tf.pretrained import TFBertPreTrainedModel


class TFBertForTokenClassification(TFBertPreTrainedModel):
    """BERT with a token classification head: logits [B, S, num_labels]."""

    torch_class = "BertForTokenClassification"
    output_class = TFTokenClassifierOutput

    def call(
        self,
        input_ids: "Inputs | None" = None,  # [B, S] int32 or int64; or a list of the inputs in this order, or a dict
        attention_mask: "Array | None" = None,  # [B, S] (or 1 for either); (1 - mask) * -10000 is added to the scores
        token_type_ids: "Array | None" = None,  # [B, S]
        position_ids: "Array | None" = None,  # [B, S]
        head_mask: "Array | None" = None,  # [N] or [L, N]; multiplies the attention probabilities
        inputs_embeds: "Array | None" = None,  # [B, S, H] in place of input_ids
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: "Array | None" = None,  # [B, S]; negative ones are ignored
        training: bool | None = False,  # apply dropout
    ) -> Any:
        """The output_class, with arrays of the type of the inputs; a tuple with return_dict=False.

        Raises ValueError or TypeError, naming the argument, where 4.37 raised, and inside a trace (tf.function, jax.jit).
        """
        return self._run(
            {
                "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids,
                "head_mask": head_mask, "inputs_embeds": inputs_embeds, "output_attentions": output_attentions,
                "output_hidden_states": output_hidden_states, "return_dict": return_dict, "labels": labels, "training": training,
            }
        )  # fmt: skip

    def _head_dropout(self) -> float:
        rate = getattr(self.config, "classifier_dropout", None)
        return float(self.config.hidden_dropout_prob if rate is None else rate)

    def _wants_loss(self, values: Mapping[str, object]) -> bool:
        return values["labels"] is not None

    def _loss(self, result: EngineOutput, values: Mapping[str, object]) -> Tensor | None:
        return losses.token_classification(result.outputs["logits"], values["labels"], bool(getattr(self.config, "tf_legacy_loss", False)))


class TFBertForQuestionAnswering(TFBertPreTrainedModel):
    """BERT with a span head for question answering: start_logits and end_logits [B, S]."""

    torch_class = "BertForQuestionAnswering"
    output_class = TFQuestionAnsweringModelOutput

    def call(
        self,
        input_ids: "Inputs | None" = None,  # [B, S] int32 or int64; or a list of the inputs in this order, or a dict
        attention_mask: "Array | None" = None,  # [B, S] (or 1 for either); (1 - mask) * -10000 is added to the scores
        token_type_ids: "Array | None" = None,  # [B, S]
        position_ids: "Array | None" = None,  # [B, S]
        head_mask: "Array | None" = None,  # [N] or [L, N]; multiplies the attention probabilities
        inputs_embeds: "Array | None" = None,  # [B, S, H] in place of input_ids
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        start_positions: "Array | None" = None,  # [B] or [B, 1]
        end_positions: "Array | None" = None,  # [B] or [B, 1]
        training: bool | None = False,  # apply dropout
    ) -> Any:
        """The output_class, with arrays of the type of the inputs; a tuple with return_dict=False.

        Raises ValueError or TypeError, naming the argument, where 4.37 raised, and inside a trace (tf.function, jax.jit).
        """
        return self._run(
            {
                "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids,
                "head_mask": head_mask, "inputs_embeds": inputs_embeds, "output_attentions": output_attentions,
                "output_hidden_states": output_hidden_states, "return_dict": return_dict,
                "start_positions": start_positions, "end_positions": end_positions, "training": training,
            }
        )  # fmt: skip

    def _wants_loss(self, values: Mapping[str, object]) -> bool:
        return values["start_positions"] is not None and values["end_positions"] is not None

    def _loss(self, result: EngineOutput, values: Mapping[str, object]) -> Tensor | None:
        outputs = result.outputs
        return losses.question_answering(outputs["start_logits"], outputs["end_logits"], values["start_positions"], values["end_positions"])
