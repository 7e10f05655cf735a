"""The output classes of the Flax models and of generate.

Shape letters: B batch, S length, H hidden, V vocabulary, M max_length.
"""

from bertfast.compat.arrays import Array
from bertfast.compat.flax.cache_tree import CacheTree
from bertfast.compat.outputs import ModelOutput, output_dataclass


@output_dataclass
class FlaxBaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """last_hidden_state [B, S, H], pooler_output [B, H], hidden_states, past_key_values, attentions, cross_attentions."""

    last_hidden_state: "Array | None" = None
    pooler_output: "Array | None" = None
    hidden_states: "tuple[Array, ...] | None" = None
    past_key_values: "CacheTree | None" = None
    attentions: "tuple[Array, ...] | None" = None
    cross_attentions: "tuple[Array, ...] | None" = None


# 4.37 documented this name for models without cross-attention; its code returned the class above.
FlaxBaseModelOutputWithPooling = FlaxBaseModelOutputWithPoolingAndCrossAttentions


@output_dataclass
class FlaxBertForPreTrainingOutput(ModelOutput):
    """prediction_logits [B, S, V], seq_relationship_logits [B, 2], hidden_states, attentions."""

    prediction_logits: "Array | None" = None
    seq_relationship_logits: "Array | None" = None
    hidden_states: "tuple[Array, ...] | None" = None
    attentions: "tuple[Array, ...] | None" = None


@output_dataclass
class FlaxCausalLMOutputWithCrossAttentions(ModelOutput):
    """logits [B, S, V], past_key_values, hidden_states, attentions, cross_attentions."""

    logits: "Array | None" = None
    past_key_values: "CacheTree | None" = None
    hidden_states: "tuple[Array, ...] | None" = None
    attentions: "tuple[Array, ...] | None" = None
    cross_attentions: "tuple[Array, ...] | None" = None


@output_dataclass
class FlaxGreedySearchOutput(ModelOutput):
    """sequences [B, M] int32."""

    sequences: "Array | None" = None


@output_dataclass
class FlaxSampleOutput(ModelOutput):
    """sequences [B, M] int32."""

    sequences: "Array | None" = None


@output_dataclass
class FlaxBeamSearchOutput(ModelOutput):
    """sequences [B * num_return_sequences, M] int32, scores [B * num_return_sequences] float32."""

    sequences: "Array | None" = None
    scores: "Array | None" = None
