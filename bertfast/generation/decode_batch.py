"""The sequences of a generation that are not done."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from bertfast import ops
from bertfast.batch.attention import VarlenAttention
from bertfast.batch.layout import make_batch
from bertfast.batch.packed import GraphInputs, OutputNeeds, PackedBatch
from bertfast.cache.attention import CachedRangeAttention, PromptAttention
from bertfast.cache.decode import DecodeCache
from bertfast.engine.cpu_plans import DecodeStepPlan
from bertfast.generation import cuda_steps
from bertfast.graph.encoder import encode
from bertfast.ops import Ops
from bertfast.runtime.native import _C


class DecodeBatch:
    """The sequences that are not done, a row each."""

    def __init__(self, model: Any, batch: PackedBatch, inner: VarlenAttention, most: int, beams: int = 1) -> None:
        """most: how long a sequence may get, padding included. beams: how many sequences each prompt may become, by `reorder`."""
        self.model, self.base = model, model.base_model
        rows, S = batch.rows, batch.columns
        lengths = inner.cu_seqlens_q.diff()
        host = lengths.tolist()
        self.blank = S - max(host)  # columns in which every prompt is padded
        room = max(host) + max(most - S - 1, 0)
        self.steps: cuda_steps.CudaDecoder | None = None
        if cuda_steps.is_supported(model):
            self.steps = cuda_steps.acquire(model, batch.batch * beams, room, lambda slots, cells: DecodeCache(self.base, slots, cells))
            self.cells = self.steps.cells
            self.cells.table = _C.SlotTable(self.steps.slots, self.steps.room)
        else:
            self.cells = DecodeCache(self.base, batch.batch * beams, room)
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
        self.plan = DecodeStepPlan(model, [*self.cells.keys, *self.cells.values], self.run_step)
        if self.steps is not None:
            self.steps.begin(self.position, self.token_types, self.slots, self.length)

    @torch.no_grad()
    def read_prompts(self) -> Tensor:  # [A, V]
        sequence = torch.repeat_interleave(self.length, output_size=self.batch.rows.input_ids.shape[0])
        places = torch.arange(len(sequence), device=sequence.device) - (self.last_rows + 1 - self.length).index_select(0, sequence)
        rows = self.batch.rows
        rows.attention = PromptAttention(self.inner, self.cells.store(self.slots.index_select(0, sequence), places))
        return self.model.family.lm_logits(self.model, encode(self.base, rows, ops, first_rows=self.last_rows), ops)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:  # [A] int64 -> [A, V]
        """Reads one token of each sequence."""
        self.cells.table.extend(1)
        if self.steps is not None:
            return self.steps(tokens)
        self.position = self.position + 1
        cells, self.length = self.length, self.length + 1
        attention = CachedRangeAttention(self.slots, None, self.length, self.cells.store(self.slots, cells))
        self.rows = GraphInputs(tokens, None, self.token_types, self.position, attention)
        return self.plan({
            "input_ids": tokens, "position_ids": self.position, "token_type_ids": self.token_types,
            "cache_rows": self.slots, "cells": cells, "last": self.length,
        })  # fmt: skip

    def run_step(self, O: Ops) -> Tensor:
        return self.model.family.lm_logits(self.model, encode(self.base, self.rows, O), O)

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
            cuda_steps.release(self.steps)


def pack_prompts(model: Any, input_ids: Tensor, arguments: dict[str, Any]) -> PackedBatch | None:
    """The prompts without their padding; None where only a mask can say what they see."""
    given = {name: arguments.get(name) for name in ("attention_mask", "position_ids", "token_type_ids")}
    batch = make_batch({"input_ids": input_ids, **given}, model.base_model, OutputNeeds())
    causal = isinstance(batch.rows.attention, VarlenAttention) and batch.rows.attention.causal
    return batch if causal and batch.pad_mask is None else None


def invariant_tiles(model: Any) -> AbstractContextManager[None]:
    """In which a generation runs: with fixed tiles, where the model asks for them."""
    return ops.batch_invariant(model.base_model.embeddings.position_embeddings.weight) if model.batch_invariant else nullcontext()
