"""Greedy decoding and sampling: the loop of `GenerationMixin._sample`, over recorded steps.

GenerationMixin prepares the call (lengths, processors, criteria, expansion) and calls `_sample`, which runs here where
`why_reference_loop` allows. Padding leaves before the first token; keys and values lie in buffers made once for the longest sequence; a
step is one row a sequence; the language-model head reads the last position of a prompt only; finished sequences leave the batch. Every
token is the one that GenerationMixin would have chosen under the same torch seed.

Shape letters: B batch, A unfinished sequences, S prompt columns, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from bertfast.batch.packed import PackedBatch
from bertfast.cache import objects as kv_cache
from bertfast.generation.decode_batch import DecodeBatch, invariant_tiles
from bertfast.generation.eligibility import is_row_by_row, why_reference_loop
from bertfast.generation.finished import FinishedTracker
from bertfast.generation.prompts import pack_prompts
from bertfast.generation.sampling import next_tokens
from bertfast.runtime.model_types import Model

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer


def run_loop(
    model: Model, input_ids: Tensor, processors: "LogitsProcessorList", criteria: "StoppingCriteriaList", config: "GenerationConfig",
    streamer: "BaseStreamer | None", packed: PackedBatch,
) -> GenerateDecoderOnlyOutput | Tensor:  # fmt: skip
    """GenerationMixin._sample: the tokens it would choose, [B, up to max_length], or its output object. packed: of `pack_prompts`."""
    B, device = input_ids.shape[0], input_ids.device
    returned: dict[str, list[Tensor] | None] = {
        "scores": [] if config.return_dict_in_generate and config.output_scores else None,
        "logits": [] if config.return_dict_in_generate and config.output_logits else None,
    }
    has_end = any(hasattr(criterion, "eos_token_id") for criterion in criteria)  # finished rows are then filled up with padding
    pad = None if config._pad_token_tensor is None else config._pad_token_tensor.to(device)
    drops = has_end and not config.return_dict_in_generate and all(is_row_by_row(p, B) for p in processors)
    custom = any(not type(c).__module__.startswith("transformers.") for c in (*processors, *criteria))

    batch = DecodeBatch(model, packed, config.max_length)
    unfinished = torch.ones(B, dtype=torch.bool, device=device)
    finished = FinishedTracker(unfinished, each_step=streamer is not None or custom)
    went_on: list[Tensor] = []  # after each step, whether any row goes on
    prompt_length = input_ids.shape[1]
    logits = batch.read_prompts()
    while True:
        members = batch.members if len(batch.members) < B else None  # None: every row, in order
        history = input_ids if members is None else input_ids.index_select(0, members)
        raw = logits.float()
        chosen = processors(history, raw)
        for name, value in (("scores", chosen), ("logits", raw)):
            if (values := returned[name]) is not None:
                values.append(value)
        tokens = next_tokens(chosen, members, B, config.do_sample)
        if members is not None:
            tokens = pad.expand(B).index_copy(0, members, tokens)  # type: ignore[union-attr]  # rows only leave where there is padding
        if has_end:
            tokens = torch.where(unfinished, tokens, pad)  # type: ignore[arg-type]  # has_end: there is one
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        unfinished = unfinished & ~criteria(input_ids, None if returned["scores"] is None else tuple(returned["scores"]))
        if streamer is not None:
            streamer.put(tokens.cpu())
        went_on.append(unfinished.any())
        flags = finished.poll(unfinished)
        if not any(flags) or input_ids.shape[1] >= config.max_length:
            break
        if drops:
            batch.drop_finished(flags)
        logits = batch.step(tokens if len(batch.members) == B else tokens.index_select(0, batch.members))

    # Late flags let some steps too many run.
    steps = len(went_on) if finished.each_step else min(len(went_on), int(torch.stack(went_on).sum()) + 1)
    input_ids = input_ids[:, : prompt_length + steps]
    if streamer is not None:
        streamer.end()
    if not config.return_dict_in_generate:
        batch.release()
        return input_ids
    batch.cache.table.crop(len(went_on) - steps)
    return output_of(input_ids, {name: None if values is None else tuple(values[:steps]) for name, values in returned.items()}, batch)


def output_of(sequences: Tensor, returned: dict[str, tuple[Tensor, ...] | None], batch: DecodeBatch) -> GenerateDecoderOnlyOutput:
    known = {field.name for field in fields(GenerateDecoderOnlyOutput)}
    cache = {name: batch.as_cache() for name in kv_cache.CACHE_NAMES if name in known}
    batch.release()
    return GenerateDecoderOnlyOutput(sequences=sequences, attentions=None, hidden_states=None, **returned, **cache)


def sample_or_reference(
    model: Model, own: type["PreTrainedModel"], reference: Callable[..., GenerateDecoderOnlyOutput | Tensor], input_ids: Tensor,
    logits_processor: "LogitsProcessorList", stopping_criteria: "StoppingCriteriaList", generation_config: "GenerationConfig",
    synced_gpus: bool = False, streamer: "BaseStreamer | None" = None, **model_kwargs: object,
) -> GenerateDecoderOnlyOutput | Tensor:  # fmt: skip
    """`_sample` of the class `own`: our loop where it covers the call, else `reference`."""
    reason = why_reference_loop(model, own, input_ids, generation_config, synced_gpus, model_kwargs)
    packed = pack_prompts(model, input_ids, model_kwargs) if reason is None else None
    if packed is None:
        return reference(model, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs)
    with invariant_tiles(model):
        return run_loop(model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, packed)
