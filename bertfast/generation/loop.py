"""generate(): transformers' own, with a loop of ours inside for greedy decoding and sampling.

GenerationMixin does all of the preparation (lengths, processors, criteria, expansion) and then calls `_sample`, which is where ours
takes over, by the rule of `reason_for_their_loop`. Beam search takes the same steps (bertfast.generation.beam_search);
everything else is transformers' code on the cached forward.

What the loop saves: padding leaves before the first token; keys and values lie in buffers that were made once, for the longest
sequence; a step is one row a sequence from end to end; the language-model head sees the last position of the prompt only; rows that
have ended leave the batch. What it keeps: every token is the one that GenerationMixin would have chosen, under the same torch seed.

Shape letters: B batch, A sequences still running, S prompt columns, V vocabulary, N heads, C cells of a cache row, D head size.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from bertfast.batch.attention import VarlenAttention
from bertfast.batch.packed import PackedBatch
from bertfast.cache import objects as kv_cache
from bertfast.generation.decode_batch import DecodeBatch, invariant_tiles, pack_prompts
from bertfast.generation.eligibility import is_row_by_row, why_reference_loop
from bertfast.generation.sampling import next_tokens

POLL_EVERY = 8  # steps between looks at which rows have ended, where looking means waiting for the device


class FinishedTracker:
    """Which rows have ended, known on the host. On a GPU some steps late: nobody waits for a flag that is still on its way."""

    def __init__(self, unfinished: Tensor, each_step: bool) -> None:
        self.each_step = each_step or unfinished.device.type != "cuda"
        self.host = torch.ones(unfinished.shape, dtype=torch.bool, pin_memory=unfinished.device.type == "cuda")
        self.event: Any = None
        self.steps = 0

    def look(self, unfinished: Tensor) -> list[bool]:  # of every row of the batch: whether it goes on
        self.steps += 1
        if self.each_step:
            return unfinished.tolist()
        if self.event is None and self.steps % POLL_EVERY == 0:
            self.incoming = unfinished.to("cpu", non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            self.event.record()
        if self.event is not None and self.event.query():
            self.host, self.event = self.incoming, None
        return self.host.tolist()


def run_loop(
    model: Any, input_ids: Tensor, processors: Any, criteria: Any, config: Any, streamer: Any, arguments: dict[str, Any], batch: PackedBatch
) -> Any:
    """GenerationMixin._sample: the tokens it would choose, [B, up to max_length], or its output object.

    batch: the prompts, packed; see `pack_prompts`.
    """
    inner = batch.rows.attention
    assert isinstance(inner, VarlenAttention), "pack_prompts lets nothing else through"
    B, device = input_ids.shape[0], input_ids.device
    scores: tuple[Tensor, ...] | None = () if config.return_dict_in_generate and config.output_scores else None
    logits_kept: tuple[Tensor, ...] | None = () if config.return_dict_in_generate and config.output_logits else None
    pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)  # ended rows are filled up with padding
    pad = None if config._pad_token_tensor is None else config._pad_token_tensor.to(device)
    drops = pads and not config.return_dict_in_generate and all(is_row_by_row(p, B) for p in processors)
    custom = any(not type(c).__module__.startswith("transformers.") for c in (*processors, *criteria))

    running = DecodeBatch(model, batch, inner, config.max_length)
    unfinished = torch.ones(B, dtype=torch.bool, device=device)
    ended = FinishedTracker(unfinished, each_step=streamer is not None or custom)
    alive: list[Tensor] = []  # after each step, whether any row went on
    prompt_length = input_ids.shape[1]
    logits = running.read_prompts()
    while True:
        members = running.members if len(running.members) < B else None  # None: everybody, in order
        history = input_ids if members is None else input_ids.index_select(0, members)
        raw = logits.float()
        chosen = processors(history, raw)
        if scores is not None:
            scores += (chosen,)
        if logits_kept is not None:
            logits_kept += (raw,)
        tokens = next_tokens(chosen, members, B, config.do_sample)
        if members is not None:
            tokens = pad.expand(B).index_copy(0, members, tokens)  # type: ignore[union-attr]  # rows only leave where there is padding
        if pads:
            tokens = torch.where(unfinished, tokens, pad)  # type: ignore[arg-type]  # pads: there is one
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        unfinished = unfinished & ~criteria(input_ids, scores)
        if streamer is not None:
            streamer.put(tokens.cpu())
        alive.append(unfinished.any())
        goes_on = ended.look(unfinished)
        if not any(goes_on) or input_ids.shape[1] >= config.max_length:
            break
        if drops:
            running.leave(goes_on)
        logits = running.step(tokens if len(running.members) == B else tokens.index_select(0, running.members))

    steps = len(alive) if ended.each_step else min(len(alive), int(torch.stack(alive).sum()) + 1)  # what a late look went too far
    input_ids = input_ids[:, : prompt_length + steps]
    if streamer is not None:
        streamer.end()
    if not config.return_dict_in_generate:
        running.finish()
        return input_ids
    running.cells.table.crop(len(alive) - steps)
    cut = {"scores": scores, "logits": logits_kept}
    known = {field.name for field in fields(GenerateDecoderOnlyOutput)}
    cache = {name: running.cache() for name in kv_cache.CACHE_NAMES if name in known}
    running.finish()
    return GenerateDecoderOnlyOutput(
        sequences=input_ids, attentions=None, hidden_states=None,
        **{name: None if kept is None else kept[:steps] for name, kept in cut.items()}, **cache,
    )  # fmt: skip


def sample_or_reference(
    model: Any, own: type, theirs: Callable[..., Any], input_ids: Tensor, logits_processor: Any, stopping_criteria: Any,
    generation_config: Any, synced_gpus: bool = False, streamer: Any = None, **model_kwargs: Any,
) -> Any:  # fmt: skip
    """What `_sample` of our class does: our loop where it covers the call, else `theirs`."""
    reason = why_reference_loop(model, own, input_ids, generation_config, synced_gpus, model_kwargs)
    batch = pack_prompts(model, input_ids, model_kwargs) if reason is None else None
    if batch is None:
        return theirs(model, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs)
    with invariant_tiles(model):
        return run_loop(model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs, batch)
