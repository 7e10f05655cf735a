"""One call of a Flax model: arguments read, then run on the kernels or on the graph under its own mask."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.batch.attention import MaskedAttention
from bertfast.batch.packed import PackedBatch
from bertfast.compat.dense import Dropout, padded_batch
from bertfast.compat.engine import Engine, EngineOutput
from bertfast.compat.flax import inputs
from bertfast.compat.flax.cache_buffers import CacheBuffers, CacheStep, cached_step
from bertfast.runtime.config_access import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class FlaxCall:
    """Reads the arguments of one call; run or run_cached computes it. Raises ValueError or TypeError, naming the argument."""

    def __init__(
        self,
        engine: Engine,
        config: "PreTrainedConfig",
        values: Mapping[str, object],  # the array arguments by name
        *,
        attentions: bool,  # whether to return attention probabilities
        hidden_states: bool,
        dropout: Dropout | None,
        keep_padding: bool,
    ) -> None:
        self.engine, self.config = engine, config
        self.attentions, self.hidden_states, self.dropout, self.keep_padding = attentions, hidden_states, dropout, keep_padding
        self.inputs = inputs.read_inputs(values, config, engine.device)
        self.head_masks = inputs.read_head_mask(values["head_mask"], config, engine.device, engine.dtype)
        self.encoder: tuple[Tensor, Tensor | None] | None = None  # hidden states, and which of them are real
        if values["encoder_hidden_states"] is not None and setting(config, "add_cross_attention"):
            self.encoder = inputs.read_encoder(
                values["encoder_hidden_states"], values["encoder_attention_mask"], config, self.inputs.shape[0], engine.device, engine.dtype
            )

    def run(self) -> EngineOutput:
        """The call without a cache."""
        read, mask = self.inputs, self.inputs.attention_mask
        if mask is not None:
            mask = inputs.read_mask(mask, "attention_mask", read.shape)
        if self.dropout is None and self.head_masks is None and not self.attentions and read.in_range:
            arguments = self._torch_arguments(mask)
            if arguments is not None:
                return self.engine.plain(arguments, self.keep_padding and "attention_mask" in arguments, self.hidden_states)
        visible: Tensor | None = None if mask is None else mask[:, None, None, :]
        if self.config.is_decoder:
            S = read.shape[1]
            causal = torch.ones(S, S, dtype=torch.bool, device=self.engine.device).tril()
            visible = causal if visible is None else visible & causal
        return self.engine.encoded(self._batch(visible), self.hidden_states, self.dropout)

    def run_cached(self, buffers: CacheBuffers, index: int) -> tuple[EngineOutput, CacheBuffers]:
        """The call on a KV cache whose first `index` columns are filled; also returns the buffers that hold the cache afterwards."""
        step, visible = cached_step(buffers, index, self.inputs, self.config, self.attentions)
        return self.engine.encoded(self._batch(visible, step), self.hidden_states, self.dropout), step.buffers

    def _torch_arguments(self, mask: Tensor | None) -> dict[str, Tensor] | None:
        """The arguments of the same call on the torch class; None where its result would differ."""
        read, arguments = self.inputs, {"input_ids": self.inputs.input_ids}
        if read.token_type_ids is not None:
            arguments["token_type_ids"] = read.token_type_ids
        if read.position_ids is not None:
            arguments["position_ids"] = read.position_ids
        if mask is not None and not read.mask_is_ones and not (mask.shape == read.shape and bool(mask.all())):
            if mask.shape != read.shape or not bool(mask.any(dim=1).all()):
                return None
            # A left pad of a decoder sees nothing; Flax's value for it matters where padding is kept or column 0 is pooled.
            if self.config.is_decoder and (self.keep_padding or (self.engine.head.pooled and not bool(mask[:, 0].all()))):
                return None
            arguments["attention_mask"] = mask
        if self.encoder is not None:
            states, real = self.encoder
            if not self.config.is_decoder or (real is not None and (real.shape != states.shape[:2] or not bool(real.any(dim=1).all()))):
                return None
            arguments["encoder_hidden_states"] = states
            if real is not None:
                arguments["encoder_attention_mask"] = real
        return arguments

    def _batch(self, visible: Tensor | None, memory: CacheStep | None = None) -> PackedBatch:  # visible: bool, broadcasts to [B, 1, S, Sk]
        read, embeddings = self.inputs, self.engine.bert.embeddings
        B, head_masks, attentions, dropout = read.shape[0], self.head_masks, self.attentions, self.dropout
        ids, words, positions, types = inputs.embedding_inputs(read, embeddings, self.config)
        drop = None if dropout is None else dropout.of_probabilities(shared=True)
        attention = MaskedAttention(B, inputs.additive(visible), head_masks, attentions, drop, memory)
        if self.encoder is None:
            return padded_batch(read.shape, embeddings, ids, words, types, positions, attention)
        states, real = self.encoder
        across = MaskedAttention(B, inputs.additive(None if real is None else real[:, None, None, :]), head_masks, attentions, drop)
        rows = states.reshape(-1, states.shape[2])
        return padded_batch(read.shape, embeddings, ids, words, types, positions, attention, rows, across)
