"""The output classes of the TF models. Shape letters: B batch, S length."""

from bertfast.compat.arrays import Array
from bertfast.compat.outputs import ModelOutput, output_dataclass


@output_dataclass
class TFTokenClassifierOutput(ModelOutput):
    """loss [1] (or [active], with config.tf_legacy_loss), logits [B, S, num_labels], hidden_states, attentions."""

    loss: "Array | None" = None
    logits: "Array | None" = None
    hidden_states: "tuple[Array, ...] | None" = None
    attentions: "tuple[Array, ...] | None" = None


@output_dataclass
class TFQuestionAnsweringModelOutput(ModelOutput):
    """loss [B], start_logits and end_logits [B, S], hidden_states, attentions."""

    loss: "Array | None" = None
    start_logits: "Array | None" = None
    end_logits: "Array | None" = None
    hidden_states: "tuple[Array, ...] | None" = None
    attentions: "tuple[Array, ...] | None" = None
