"""Beam search: `GenerationMixin._beam_search` over the steps of bertfast.generation.

Scores, penalties, early stopping, processors and criteria are transformers' own code; BeamSearchModel stands in for its model. A prompt is
read once for all of its beams; a step is the recorded one; a beam that continues another one moves to its cache row or, where two
continue one, copies the positions in which the two rows differ.

Shape letters: B prompts, K beams of each, A = B * K sequences, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutput

from bertfast.cache import objects as kv_cache
from bertfast.generation.decode_batch import DecodeBatch, invariant_tiles
from bertfast.generation.eligibility import why_reference_loop
from bertfast.generation.prompts import pack_prompts, unique_prompts
from bertfast.runtime.model_types import Model

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
    from transformers.generation.utils import GenerateBeamOutput


class BeamSearchModel:
    """The model as `_beam_search` sees it. Every other attribute is the model's own."""

    def __init__(self, model: Model, batch: DecodeBatch, beams: int) -> None:
        self.model, self.batch, self.beams = model, batch, beams

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _prefill(self, *args: object, **kwargs: object) -> CausalLMOutput:
        """The logits of the prompts' last tokens, [A, 1, V]."""
        logits = self.batch.read_prompts()
        self.batch.reorder([prompt for prompt in range(len(logits)) for _ in range(self.beams)])
        return CausalLMOutput(logits=logits.repeat_interleave(self.beams, dim=0)[:, None])

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: object) -> dict[str, Tensor]:
        return {"tokens": input_ids[:, -1].contiguous()}

    def __call__(self, tokens: Tensor, return_dict: bool = True) -> CausalLMOutput:  # [A] -> logits [A, 1, V]
        return CausalLMOutput(logits=self.batch.step(tokens)[:, None])

    def _update_model_kwargs_for_generation(self, outputs: object, model_kwargs: dict[str, object], **kwargs: object) -> dict[str, object]:
        return model_kwargs  # masks and positions, which no step reads

    def _reorder_cache(self, cache: Cache, parents: Tensor) -> Cache:  # [A]
        self.batch.reorder(parents.tolist())
        return cache


def beam_search_or_reference(
    model: Model, own: type["PreTrainedModel"], reference: Callable[..., Any], input_ids: Tensor, logits_processor: "LogitsProcessorList",
    stopping_criteria: "StoppingCriteriaList", generation_config: "GenerationConfig", synced_gpus: bool = False, **model_kwargs: object,
) -> "GenerateBeamOutput | Tensor":  # fmt: skip
    """`_beam_search` of the class `own`: `reference`, over our steps where they cover the call, else over the model's forward."""
    rest = (input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus)
    beams, packed = generation_config.num_beams, None
    if why_reference_loop(model, own, input_ids, generation_config, synced_gpus, model_kwargs) is None:
        prompts = unique_prompts(input_ids, model_kwargs, beams)
        packed = None if prompts is None else pack_prompts(model, *prompts)
    if packed is None or hasattr(model, "_reorder_cache"):
        return reference(model, *rest, **model_kwargs)
    with invariant_tiles(model):
        batch = DecodeBatch(model, packed, generation_config.max_length, beams)
        out = reference(BeamSearchModel(model, batch, beams), *rest, **model_kwargs)
        if generation_config.return_dict_in_generate:
            name = next(field.name for field in fields(out) if field.name in kv_cache.CACHE_NAMES)
            out[name] = batch.as_cache()
        batch.release()
    return out
