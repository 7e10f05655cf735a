"""The output classes of the TF models. Shape letters: B batch, S length."""

from typing import Any

from bertfast.compat.outputs import ModelOutput, output_dataclass


@output_dataclass
class TFTokenClassifierOutput(ModelOutput):
    """loss [1] (or [active], with config.tf_legacy_loss), logits [B, S, num_labels], hidden_states, attentions."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@output_dataclass
class TFQuestionAnsweringModelOutput(ModelOutput):
    """loss [B], start_logits and end_logits [B, S], hidden_states, attentions."""

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None
