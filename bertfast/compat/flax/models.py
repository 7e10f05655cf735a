"""FlaxBertModel, FlaxBertForPreTraining and FlaxBertForCausalLM.

Source of the behaviour: the classes of these names in transformers 4.37.
"""

from typing import TYPE_CHECKING

from bertfast.compat.flax.generation import FlaxGenerationMixin
from bertfast.compat.flax.outputs import (
    FlaxBaseModelOutputWithPoolingAndCrossAttentions,
    FlaxBertForPreTrainingOutput,
    FlaxCausalLMOutputWithCrossAttentions,
)
from bertfast.compat.flax.pretrained import FlaxBertPreTrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class FlaxBertModel(FlaxBertPreTrainedModel):
    """BERT without a head: last_hidden_state [B, S, H] and pooler_output [B, H]."""

    torch_class = "BertModel"
    output_class = FlaxBaseModelOutputWithPoolingAndCrossAttentions
    cache_prefix = ()


class FlaxBertForPreTraining(FlaxBertPreTrainedModel):
    """BERT with masked-LM and next-sentence heads: prediction_logits [B, S, V], seq_relationship_logits [B, 2]."""

    torch_class = "BertForPreTraining"
    output_class = FlaxBertForPreTrainingOutput

    def _set_up(self, config: "PreTrainedConfig", input_shape: tuple[int, ...], seed: int, dtype: object, initialised: bool) -> None:
        if config.add_cross_attention:
            raise ValueError("config.add_cross_attention: FlaxBertForPreTraining has no cross-attention; leave it False")
        super()._set_up(config, input_shape, seed, dtype, initialised)


class FlaxBertForCausalLM(FlaxGenerationMixin, FlaxBertPreTrainedModel):
    """BERT with a language-model head: logits [B, S, V]; causal if config.is_decoder. Has generate."""

    torch_class = "BertLMHeadModel"
    output_class = FlaxCausalLMOutputWithCrossAttentions
