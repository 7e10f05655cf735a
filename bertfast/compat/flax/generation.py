"""generate of FlaxBertForCausalLM: greedy decoding, sampling, beam search.

Source: FlaxGenerationMixin of transformers 4.37, which differs from PyTorch's generate: sequences always have max_length columns;
min_length forbids the end token for one token more.
"""

import warnings
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from bertfast.compat import arrays
from bertfast.compat.arrays import Array
from bertfast.compat.flax import prng
from bertfast.compat.flax.beam_search import beam_search
from bertfast.compat.flax.decoding import CachedDecoder, CustomProcessors, custom_processors, decode, full_mask
from bertfast.compat.flax.generation_settings import check_settings, read_settings
from bertfast.compat.flax.leaves import ParameterTree
from bertfast.compat.flax.outputs import FlaxBeamSearchOutput, FlaxGreedySearchOutput, FlaxSampleOutput
from bertfast.compat.flax.pretrained import FlaxBertPreTrainedModel
from bertfast.compat.flax.processors import processors
from bertfast.compat.outputs import ModelOutput
from bertfast.compat.tracing import refuse_tracing

if TYPE_CHECKING:
    from transformers import GenerationConfig


class UnsupportedError(NotImplementedError, ValueError):
    """4.37's NotImplementedError; also a ValueError, since it is about an argument."""


class FlaxGenerationMixin(FlaxBertPreTrainedModel):
    """generate and its helpers, for FlaxBertForCausalLM."""

    generation_config: "GenerationConfig | None" = None

    def can_generate(self) -> bool:
        """True, as in transformers."""
        return True

    def _load_generation_config(self, folder: str | PathLike[str]) -> None:
        from transformers import GenerationConfig

        try:
            self.generation_config = GenerationConfig.from_pretrained(folder)
        except OSError:
            self.generation_config = None

    def prepare_inputs_for_generation(self, input_ids: Array, max_length: int, attention_mask: "Array | None" = None) -> dict[str, Any]:
        """Arguments of the first step: an empty cache, the mask over max_length columns, position_ids."""
        array_type = arrays.array_type_of((input_ids, attention_mask))
        ids = arrays.to_torch(input_ids, "input_ids")
        mask, positions = full_mask(ids, attention_mask, max_length)
        return {
            "past_key_values": self.init_cache(ids.shape[0], max_length),
            "attention_mask": arrays.from_torch(mask.to(torch.int32), array_type),
            "position_ids": arrays.from_torch(positions.to(torch.int32), array_type),
        }

    def update_inputs_for_generation(self, model_outputs: ModelOutput, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the next step: the last output's cache, positions advanced by one."""
        model_kwargs["past_key_values"] = model_outputs["past_key_values"]
        model_kwargs["position_ids"] = model_kwargs["position_ids"][:, -1:] + 1
        return model_kwargs

    def generate(
        self,
        input_ids: Array,  # [B, S]
        generation_config: "GenerationConfig | None" = None,  # default: the folder's, then the model config
        prng_key: "int | Array | None" = None,  # a seed or a jax.random key, for do_sample; default: 0
        trace: bool = True,  # without effect
        params: "ParameterTree | None" = None,
        logits_processor: CustomProcessors | None = None,  # f(input_ids, scores, length) -> scores, on NumPy arrays
        attention_mask: "Array | None" = None,  # [B, S]
        **kwargs: object,  # settings by the names of GenerationConfig
    ) -> FlaxGreedySearchOutput | FlaxSampleOutput | FlaxBeamSearchOutput:
        """Continue input_ids. Returns FlaxGreedySearchOutput, FlaxSampleOutput or FlaxBeamSearchOutput.

        `sequences` [B or B * num_return_sequences, max_length] int32, padded with pad_token_id, prompt included. Raises ValueError for
        an unknown setting and for lengths that do not fit, KeyError where config.is_decoder is False, NotImplementedError for
        do_sample with num_beams above 1.
        """
        refuse_tracing(f"{type(self).__name__}.generate", (input_ids, attention_mask))
        settings = read_settings(self.config, self.generation_config, generation_config, kwargs)
        array_type = arrays.array_type_of((input_ids, attention_mask))
        ids = arrays.to_torch(input_ids, "input_ids")
        if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
            raise ValueError(f"input_ids: got {ids.dtype} of shape {tuple(ids.shape)}, expected integers [batch, length]")
        ids = ids.to(self._device, torch.int64)
        S = ids.shape[1]
        if settings.max_new_tokens is not None:
            settings.max_length = settings.max_new_tokens + S
        elif settings.default_length and settings.max_length == 20:
            warnings.warn("max_length: not given, 20 is used; pass max_new_tokens or max_length", UserWarning, stacklevel=2)
        check_settings(self.config, settings, S)
        beams = int(settings.num_beams)
        if settings.do_sample and beams > 1:
            raise UnsupportedError("do_sample: Flax's generation has no sampling with num_beams above 1")
        rows = ids.repeat_interleave(beams, dim=0)
        mask = None if attention_mask is None else arrays.to_torch(attention_mask, "attention_mask").to(self._device)
        with torch.no_grad():
            engine = self._engine_on(params)
            decoder = CachedDecoder(self, engine, rows, None if mask is None else mask.repeat_interleave(beams, dim=0), settings.max_length)
            process = processors(settings, S) + custom_processors(logits_processor, decoder)
            if beams > 1:
                found = beam_search(decoder, ids, settings, process)
                return FlaxBeamSearchOutput(*(arrays.from_torch(t, array_type) for t in found))
            key = prng.read_key(0 if prng_key is None else prng_key, "prng_key") if settings.do_sample else None
            sequences = arrays.from_torch(decode(decoder, ids, settings, process, key), array_type)
        return FlaxSampleOutput(sequences) if settings.do_sample else FlaxGreedySearchOutput(sequences)
