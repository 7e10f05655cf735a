"""Beam search: transformers' own, taking the steps of bertfast.generation.loop.

Which beams go on, which hypotheses are kept and when the search ends is decided by `GenerationMixin._beam_search`, in its own code: so
scores, penalties, early stopping, processors and criteria are what they are. What it asks of a model is answered by `Searched`: the prompt
is read once for all of its beams; a step is the recorded one; and a beam that goes on from another moves to that beam's slot of the cache,
or, where two go on from one, takes over the cells in which the slots differ.

Shape letters: B prompts, K beams of each, A = B * K sequences, S prompt columns, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from bertfast.batch.attention import VarlenAttention
from bertfast.cache import objects as kv_cache
from bertfast.generation.decode_batch import DecodeBatch, invariant_tiles, pack_prompts
from bertfast.generation.eligibility import why_reference_loop


class BeamSearchModel:
    """What `_beam_search` takes for its model. Whatever it asks beyond the steps, the model answers."""

    def __init__(self, model: Any, running: DecodeBatch, beams: int) -> None:
        self.model, self.running, self.beams = model, running, beams

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _prefill(self, *args: Any, **kwargs: Any) -> CausalLMOutput:
        """The logits of the prompts' last tokens, [A, 1, V]."""
        logits = self.running.read_prompts()
        self.running.reorder([prompt for prompt in range(len(logits)) for _ in range(self.beams)])
        return CausalLMOutput(logits=logits.repeat_interleave(self.beams, dim=0)[:, None])

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"tokens": input_ids[:, -1].contiguous()}

    def __call__(self, tokens: Tensor, return_dict: bool = True) -> CausalLMOutput:  # [A] -> logits [A, 1, V]
        return CausalLMOutput(logits=self.running.step(tokens)[:, None])

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: Any, **kwargs: Any) -> Any:
        return model_kwargs  # masks and positions that would grow: nobody reads them

    def _reorder_cache(self, cache: Any, parents: Tensor) -> Any:  # [A]
        self.running.reorder(parents.tolist())
        return cache


def unique_prompts(input_ids: Tensor, arguments: dict[str, Any], beams: int) -> tuple[Tensor, dict[str, Any]] | None:
    """One row for each K alike of input_ids, [A, S], and of the tensors beside them; None where they are not alike."""
    names = [name for name in ("attention_mask", "position_ids", "token_type_ids") if arguments.get(name) is not None]
    alone = {}
    for name, t in (("input_ids", input_ids), *((name, arguments[name]) for name in names)):
        if t.shape != input_ids.shape or len(t) % beams:
            return None
        alone[name] = t[::beams]
        if not torch.equal(alone[name].repeat_interleave(beams, dim=0), t):
            return None
    return alone.pop("input_ids"), alone


def beam_search_or_reference(
    model: Any, own: type, theirs: Callable[..., Any], input_ids: Tensor, logits_processor: Any, stopping_criteria: Any,
    generation_config: Any, synced_gpus: bool = False, **model_kwargs: Any,
) -> Any:  # fmt: skip
    """What `_beam_search` of our class does: `theirs`, over our steps where they cover the call, else over the model's forward."""
    rest = (input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus)
    beams, batch = generation_config.num_beams, None
    if why_reference_loop(model, own, input_ids, generation_config, synced_gpus, model_kwargs) is None:
        alone = unique_prompts(input_ids, model_kwargs, beams)
        batch = None if alone is None else pack_prompts(model, *alone)
    if batch is None or hasattr(model, "_reorder_cache"):
        return theirs(model, *rest, **model_kwargs)
    assert isinstance(batch.rows.attention, VarlenAttention), "pack_prompts lets nothing else through"
    with invariant_tiles(model):
        running = DecodeBatch(model, batch, batch.rows.attention, generation_config.max_length, beams)
        out = theirs(BeamSearchModel(model, running, beams), *rest, **model_kwargs)
        if generation_config.return_dict_in_generate:
            name = next(field.name for field in fields(out) if field.name in kv_cache.CACHE_NAMES)
            out[name] = running.cache()
        running.finish()
    return out
