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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin, logits_process
from transformers.generation.utils import GenerateDecoderOnlyOutput

from bertfast import ops
from bertfast.batch.attention import Attention, Varlen, uniform_cu_seqlens
from bertfast.batch.layout import Needs, PackedBatch, make_batch
from bertfast.cache import layers as kv_cache
from bertfast.cache.layout import Ranges, Write
from bertfast.engine import eligibility
from bertfast.engine.cpu_plans import StepPlan
from bertfast.generation import cuda_steps
from bertfast.graph.encoder import Rows, encode
from bertfast.graph.heads import predictions
from bertfast.runtime.config_access import is_causal
from bertfast.runtime.native import _C

# Processors that treat each row by itself: rows that have ended may be missing from their batch.
ROW_BY_ROW = frozenset(
    getattr(logits_process, f"{name}LogitsProcessor", None) or getattr(logits_process, f"{name}LogitsWarper", None)
    for name in (
        *("MinLength", "MinNewTokensLength", "RepetitionPenalty", "NoRepeatNGram", "NoBadWords", "SequenceBias", "SuppressTokens"),
        *("SuppressTokensAtBegin", "ForcedBOSToken", "ForcedEOSToken", "ExponentialDecayLengthPenalty"),
        *("Temperature", "TopK", "TopP", "TopH", "MinP", "Typical", "Epsilon", "Eta"),
    )
) | {logits_process.InfNanRemoveLogitsProcessor, logits_process.LogitNormalization}  # fmt: skip


def is_row_by_row(processor: Any, B: int) -> bool:
    return type(processor) in ROW_BY_ROW and not any(isinstance(t, Tensor) and t.dim() and len(t) == B for t in vars(processor).values())


READ = frozenset(("attention_mask", "position_ids", "token_type_ids", "use_cache", "logits_to_keep", *kv_cache.NAMES))

# What a loop of ours does in the model's place: of a model that does it in its own way, it is asked.
ASKED = ("_prefill", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")

LOOK_EVERY = 8  # steps between looks at which rows have ended, where looking means waiting for the device


def check_length(model: Any, generation_config: Any, arguments: Any) -> None:
    """ValueError where a sequence would need more positions than the model has, or more cells than its cache: before anything runs.

    The last token is returned but never read, so it needs neither.
    """
    most, new, mask = generation_config.max_length, 0, arguments.get("attention_mask")
    positions, cache = arguments.get("position_ids"), kv_cache.given_cache(arguments)
    limit = model.config.max_position_embeddings
    if most is None or positions is None:
        return
    new = most - positions.shape[-1]
    reached = int(positions.max()) + new
    if reached > limit:
        prompt = positions.shape[-1] if mask is None else int(mask.sum(dim=-1).max())
        raise ValueError(
            f"max_length={most}: a prompt of {prompt} tokens and {new} new ones need {reached} positions, expected at most "
            f"max_position_embeddings={limit}; ask for fewer tokens (max_new_tokens) or shorten the prompt"
        )
    room = cache.get_max_length() if cache is not None and hasattr(cache, "get_max_length") and len(cache) else -1
    if 0 <= room < most - 1:
        raise ValueError(
            f"max_length={most}: {most - 1} tokens have to be cached, but the cache holds {room}; make it longer (max_cache_len)"
        )


def reason_for_their_loop(model: Any, own: type, input_ids: Tensor, config: Any, synced_gpus: bool, arguments: Any) -> str | None:
    """Why a generate() call takes transformers' loop; None where ours covers it."""
    reason = eligibility.reason_to_leave(model, {})
    if reason is not None:
        return reason
    if type(model).forward is not own.forward or model._forward_hooks or model._forward_pre_hooks:  # type: ignore[attr-defined]  # own: a model's class
        return "hooks on the model, or a forward of a subclass"
    if any(getattr(type(model), name) is not getattr(GenerationMixin, name) or name in vars(model) for name in ASKED):
        return "the model prepares its inputs in a way of its own"
    if not is_causal(model.config):
        return "the model is no causal decoder"
    if synced_gpus or config.is_assistant or config.prefill_chunk_size is not None or config.compile_config is not None:
        return "an option that ours does not have (synced_gpus, an assistant, chunked prefill, compilation)"
    unread = sorted(name for name, value in arguments.items() if value is not None and name not in READ)
    if unread:
        return f"an argument that only a forward reads: {', '.join(unread)}"
    if not arguments.get("use_cache") or arguments.get("logits_to_keep") != 1:
        return "use_cache or logits_to_keep was changed"
    cache = kv_cache.given_cache(arguments)
    if type(cache) is not DynamicCache or cache.get_seq_length() or getattr(cache, "_is_user_defined", False) or cache.offloading:
        return "a cache was given"
    mask = arguments.get("attention_mask")
    if input_ids.shape[1] == 0 or (mask is not None and (mask.dim() != 2 or mask.shape != input_ids.shape or not mask[:, -1].all())):
        return "no prompt, or one that is padded on the right"
    if config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states or model.keep_padding):
        return "attentions, hidden states or a cache in which padding counts were asked for"
    return None


class Cells:
    """The loop's own KV cache: for each layer keys and values, [slots, N, C, D], and whose slot is whose."""

    def __init__(self, bert: Any, slots: int, cells: int) -> None:
        weight = bert.embeddings.position_embeddings.weight
        heads = bert.config.num_attention_heads
        shape = (2, len(bert.encoder.layer), slots, heads, cells, bert.config.hidden_size // heads)
        with torch.inference_mode(False):  # on a GPU they outlive the call
            self.buffer = torch.empty(shape, dtype=weight.dtype, device=weight.device)
            self.keys, self.values = (list(part.unbind()) for part in self.buffer)
        self.table = _C.SlotTable(slots, cells)

    def store(self, rows: Tensor, cells: Tensor) -> Write:
        """Writes each layer's new keys and values, [R, H], at (rows, cells), both [R]; gives back all cells of the layer."""
        layer = iter(zip(self.keys, self.values, strict=True))

        def write(k: Tensor, v: Tensor, heads: int, O: Any) -> tuple[Tensor, Tensor]:
            keys, values = next(layer)
            D = k.shape[1] // heads
            O.write_cache(k.view(-1, heads, D), v.view(-1, heads, D), keys, values, rows, cells)
            return keys, values

        return write

    def reorder(self, parents: list[int]) -> None:
        """Sequence i becomes a copy of what was sequence parents[i]; one without a child ends."""
        for source, target, first, last in self.table.reorder(parents):
            cells = self.buffer[:, :, :, :, first:last]
            cells[:, :, target].copy_(cells[:, :, source])

    def as_cache(self, ours: bool, columns: int) -> DynamicCache:
        """What was cached, as transformers' object: [A, N, columns, D] a layer, in the order of the batch; a sequence ends in the last
        column, before it stands nothing (zeros). ours: the buffers stay in use, so the caller gets copies."""
        lengths, rows = self.table.lengths, self.table.running
        if any(length != columns for length in lengths):
            cells = self.buffer.new_zeros(*self.buffer.shape[:2], len(rows), self.buffer.shape[3], columns, self.buffer.shape[5])
            for i, (slot, length) in enumerate(zip(rows, lengths, strict=True)):
                cells[:, :, i, :, columns - length :] = self.buffer[:, :, slot, :, :length]
        else:
            whole = not ours and rows == list(range(self.buffer.shape[2]))
            cells = (self.buffer if whole else self.buffer[:, :, rows])[:, :, :, :, :columns]
        cache = DynamicCache()
        for keys, values in zip(*cells, strict=True):
            layer = kv_cache.Layer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache


class Prompt:
    """Attention of the prompts: varlen, causal, its keys and values kept. The last layer needs the last position of each alone."""

    def __init__(self, inner: Varlen, write: Write) -> None:
        self.inner, self.write = inner, write

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Any) -> Tensor:
        self.write(k, v, heads, O)
        return self.inner(q, k, v, heads, O)

    def first_rows(self) -> "Attention | None":
        """One query a sequence: here the last, which a causal mask aligned at the end lets see everything."""
        one = uniform_cu_seqlens(len(self.inner.cu_seqlens_q) - 1, 1, self.inner.cu_seqlens_q.device)
        return Prompt(Varlen(one, self.inner.cu_seqlens_k, 1, self.inner.max_seqlen_k, causal=True), self.write)


class Running:
    """The sequences that are not done, a row each."""

    def __init__(self, model: Any, batch: PackedBatch, inner: Varlen, most: int, beams: int = 1) -> None:
        """most: how long a sequence may get, padding included. beams: how many sequences each prompt may become, by `reorder`."""
        self.model, self.bert = model, model.bert
        rows, S = batch.rows, batch.columns
        lengths = inner.cu_seqlens_q.diff()
        host = lengths.tolist()
        self.blank = S - max(host)  # columns in which every prompt is padded
        room = max(host) + max(most - S - 1, 0)
        self.steps: cuda_steps.Steps | None = None
        if cuda_steps.covers(model):
            self.steps = cuda_steps.take(model, batch.batch * beams, room, lambda slots, cells: Cells(self.bert, slots, cells))
            self.cells = self.steps.cells
            self.cells.table = _C.SlotTable(self.steps.slots, self.steps.room)
        else:
            self.cells = Cells(self.bert, batch.batch * beams, room)
        device = lengths.device
        self.slots = torch.tensor(self.cells.table.admit(host), device=device)  # [A] int64
        self.members = torch.arange(batch.batch, device=device)  # [A] int64: which row of the batch
        self.member_list = list(range(batch.batch))  # the same
        self.last_rows = inner.cu_seqlens_q[1:].long() - 1
        self.length = lengths.long()  # [A]: filled cells
        self.position = rows.position_ids.index_select(0, self.last_rows)  # [A]: of the last token
        types = rows.token_type_ids
        self.token_types = None if types is None else types.index_select(0, self.last_rows)  # a new token has its predecessor's
        self.batch, self.inner = batch, inner
        self.plan = StepPlan(model, [*self.cells.keys, *self.cells.values], self.run_step)
        if self.steps is not None:
            self.steps.begin(self.position, self.token_types, self.slots, self.length)

    @torch.no_grad()
    def read_prompts(self) -> Tensor:  # [A, V]
        sequence = torch.repeat_interleave(self.length, output_size=self.batch.rows.input_ids.shape[0])
        places = torch.arange(len(sequence), device=sequence.device) - (self.last_rows + 1 - self.length).index_select(0, sequence)
        rows = self.batch.rows
        rows.attention = Prompt(self.inner, self.cells.store(self.slots.index_select(0, sequence), places))
        return predictions(self.model.cls.predictions, encode(self.bert, rows, ops, None, self.last_rows), ops)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:  # [A] int64 -> [A, V]
        """Reads one token of each sequence."""
        self.cells.table.extend(1)
        if self.steps is not None:
            return self.steps(tokens)
        self.position = self.position + 1
        cells, self.length = self.length, self.length + 1
        attention = Ranges(self.slots, None, self.length, self.cells.store(self.slots, cells))
        self.rows = Rows(tokens, None, self.token_types, self.position, attention)
        return self.plan({
            "input_ids": tokens, "position_ids": self.position, "token_type_ids": self.token_types,
            "cache_rows": self.slots, "cells": cells, "last": self.length,
        })  # fmt: skip

    def run_step(self, O: Any) -> Tensor:
        return predictions(self.model.cls.predictions, encode(self.bert, self.rows, O), O)

    def leave(self, goes_on: list[bool]) -> None:
        """Sequences leave that do not go on (a flag for each row of the batch); their slots are free. Where steps are recorded, as many
        as the next smaller step has no room for."""
        stay = [i for i, member in enumerate(self.member_list) if goes_on[member]]
        if self.steps is not None:
            size = self.steps.size_for(len(stay))
            ended = [i for i, member in enumerate(self.member_list) if not goes_on[member]]
            stay = sorted([*stay, *ended][:size])
        if len(stay) == len(self.member_list):
            return
        self.reorder(stay)

    def reorder(self, parents: list[int]) -> None:
        """Sequence i goes on from what was sequence parents[i]; one that is nobody's parent is done."""
        if parents == list(range(len(self.member_list))):
            return
        self.cells.reorder(parents)
        self.member_list = [self.member_list[i] for i in parents]
        device = self.slots.device
        kept, self.slots = torch.tensor(parents, device=device), torch.tensor(self.cells.table.running, device=device)
        self.members = self.members.index_select(0, kept)
        if self.steps is not None:
            self.steps.reorder(kept, self.slots)
            return
        self.length, self.position = self.length.index_select(0, kept), self.position.index_select(0, kept)
        self.token_types = None if self.token_types is None else self.token_types.index_select(0, kept)

    def cache(self) -> DynamicCache:
        """What was cached, padding included, for the caller to keep."""
        return self.cells.as_cache(ours=self.steps is not None, columns=self.blank + max(self.cells.table.lengths))

    def finish(self) -> None:
        if self.steps is not None:
            cuda_steps.give_back(self.steps)


class Ended:
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
        if self.event is None and self.steps % LOOK_EVERY == 0:
            self.incoming = unfinished.to("cpu", non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            self.event.record()
        if self.event is not None and self.event.query():
            self.host, self.event = self.incoming, None
        return self.host.tolist()


def sample(
    model: Any, input_ids: Tensor, processors: Any, criteria: Any, config: Any, streamer: Any, arguments: dict[str, Any], batch: PackedBatch
) -> Any:
    """GenerationMixin._sample: the tokens it would choose, [B, up to max_length], or its output object.

    batch: the prompts, packed; see `pack_prompts`.
    """
    inner = batch.rows.attention
    assert isinstance(inner, Varlen), "pack_prompts lets nothing else through"
    B, device = input_ids.shape[0], input_ids.device
    scores: tuple[Tensor, ...] | None = () if config.return_dict_in_generate and config.output_scores else None
    logits_kept: tuple[Tensor, ...] | None = () if config.return_dict_in_generate and config.output_logits else None
    pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)  # ended rows are filled up with padding
    pad = None if config._pad_token_tensor is None else config._pad_token_tensor.to(device)
    drops = pads and not config.return_dict_in_generate and all(is_row_by_row(p, B) for p in processors)
    custom = any(not type(c).__module__.startswith("transformers.") for c in (*processors, *criteria))

    running = Running(model, batch, inner, config.max_length)
    unfinished = torch.ones(B, dtype=torch.bool, device=device)
    ended = Ended(unfinished, each_step=streamer is not None or custom)
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
        tokens = choose(chosen, members, B, config.do_sample)
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
    cache = {name: running.cache() for name in kv_cache.NAMES if name in known}
    running.finish()
    return GenerateDecoderOnlyOutput(
        sequences=input_ids, attentions=None, hidden_states=None,
        **{name: None if kept is None else kept[:steps] for name, kept in cut.items()}, **cache,
    )  # fmt: skip


def choose(scores: Tensor, members: Tensor | None, B: int, do_sample: bool) -> Tensor:  # [A, V] -> [A]
    if not do_sample:
        return argmax(scores)
    probabilities = scores.softmax(dim=-1)
    if members is None:
        return draw(probabilities)
    # Rows that have left still draw, so that those that run meet the random numbers they would have met.
    everybody = probabilities.new_ones(B, probabilities.shape[1]).index_copy(0, members, probabilities)
    return draw(everybody).index_select(0, members)


def draw(probabilities: Tensor) -> Tensor:  # [B, V] -> [B]
    """One sample a row: torch.multinomial's, from the same random numbers."""
    if probabilities.device.type != "cuda":
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    return race(probabilities)  # multinomial may look at the probabilities on the host first


def race(probabilities: Tensor) -> Tensor:  # [B, V] -> [B]
    """What multinomial does for one sample: of exponential clocks that tick at these rates, which rings first."""
    return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(dim=-1)


def argmax(scores: Tensor) -> Tensor:  # [A, V] -> [A]
    """scores.argmax(dim=-1); on the CPU without torch's threads, which would go on spinning beside the next step."""
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or not scores.is_contiguous():
        return scores.argmax(dim=-1)
    out = torch.empty(len(scores), dtype=torch.int64)
    _C.argmax(scores.data_ptr(), scores.shape[0], scores.shape[1], out.data_ptr())
    return out


def pack_prompts(model: Any, input_ids: Tensor, arguments: dict[str, Any]) -> PackedBatch | None:
    """The prompts without their padding; None where only a mask can say what they see."""
    given = {name: arguments.get(name) for name in ("attention_mask", "position_ids", "token_type_ids")}
    batch = make_batch({"input_ids": input_ids, **given}, model.bert, Needs())
    causal = isinstance(batch.rows.attention, Varlen) and batch.rows.attention.causal
    return batch if causal and batch.blank is None else None


def invariance_of(model: Any) -> AbstractContextManager[None]:
    """In which a generation runs: with fixed tiles, where the model asks for them."""
    return ops.batch_invariant(model.bert.embeddings.position_embeddings.weight) if model.batch_invariant else nullcontext()


def sample_or_leave(
    model: Any, own: type, theirs: Callable[..., Any], input_ids: Tensor, logits_processor: Any, stopping_criteria: Any,
    generation_config: Any, synced_gpus: bool = False, streamer: Any = None, **model_kwargs: Any,
) -> Any:  # fmt: skip
    """What `_sample` of our class does: our loop where it covers the call, else `theirs`."""
    reason = reason_for_their_loop(model, own, input_ids, generation_config, synced_gpus, model_kwargs)
    batch = pack_prompts(model, input_ids, model_kwargs) if reason is None else None
    if batch is None:
        return theirs(model, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs)
    with invariance_of(model):
        return sample(model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs, batch)
