"""The steps of a generation on a GPU: one CUDA graph for each number of sequences, replayed token after token.

A step is some 150 kernels of a few microseconds, which Python cannot launch as fast as they run. They are the same at every step, so they
are captured once; what differs lies on the device: the tokens, and the counters (positions, cached tokens), which the captured step
advances itself. The host writes tokens, replays, and never waits.

A CUDA graph holds addresses, so the KV cache must stay where it is: a model keeps the decoder of its last generation (sizes rounded up)
until a larger one is asked for, the model goes or its weights move. Finished sequences leave when the rest fits the next smaller power
of two, so that a batch needs few graphs.

Shape letters: A sequences in a step, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.packed import GraphInputs
from bertfast.cache.attention import CachedRangeAttention
from bertfast.cache.decode import DecodeCache
from bertfast.engine import cuda_capture, cuda_graph_cache
from bertfast.engine.cuda_buffers import power_of_two
from bertfast.engine.cuda_capture import Replay, bit_pattern
from bertfast.engine.cuda_graph_cache import GraphKey, GraphOwner
from bertfast.engine.cuda_graph_eligibility import count_reason, kernel_settings, why_model_eager
from bertfast.engine.model_state import ModelState, current_state, state_of
from bertfast.graph.encoder import encode
from bertfast.graph.heads import HeadOutput
from bertfast.runtime.model_types import Model
from bertfast.runtime.native import _C

logger = logging.getLogger("bertfast")

# Rows of the state, [5, cache rows] int64.
TOKENS, POSITIONS, TOKEN_TYPES, CACHE_ROWS, LENGTHS = range(5)


@dataclass(frozen=True, slots=True)
class CapturedStep:
    replay: Replay
    logits: Tensor  # [A, V], rewritten by every replay


def is_supported(model: Model) -> bool:
    """Whether steps of this model are captured. On a GPU a reason against it is counted for `bertfast info`."""
    weight = model.base_model.embeddings.position_embeddings.weight
    if not on_gpu(weight):
        return False
    reason = why_model_eager(model.base_model)
    if reason is not None:
        count_reason(reason)
    return reason is None


def on_gpu(t: Tensor) -> bool:
    return t.is_cuda


class CudaDecoder:
    """A KV cache, the state of the sequences in it, and the steps captured over them."""

    keeps_cache = True  # for the next generation

    def __init__(self, model: Model, state: ModelState, cache: DecodeCache, rows: int, capacity: int) -> None:
        """cache: [rows, N, capacity, D] a layer; capacity: tokens a row holds."""
        self.model: Any = model  # None while the decoder is idle, as is model_state
        self.model_state: ModelState | None = state
        self.cache, self.rows, self.capacity = cache, rows, capacity
        weight = model.base_model.embeddings.position_embeddings.weight
        self.device, self.dtype = weight.device, weight.dtype
        with torch.inference_mode(False):  # it outlives the call
            self.state = torch.zeros(LENGTHS + 1, rows, dtype=torch.int64, device=self.device)
        self.graphs = GraphOwner()  # of the captured steps
        self.count, self.largest, self.has_types = 0, 0, False

    def begin(self, positions: Tensor, token_types: Tensor | None, cache_rows: Tensor, lengths: Tensor) -> None:
        """The sequences as their prompts leave them, [A] int64 each. positions: of the last token; lengths: cached tokens."""
        self.count = self.largest = len(positions)
        self.has_types = token_types is not None
        for row, values in ((POSITIONS, positions), (TOKEN_TYPES, token_types), (CACHE_ROWS, cache_rows), (LENGTHS, lengths)):
            if values is not None:
                self.state[row, : self.count].copy_(values)

    def size_for(self, count: int) -> int:
        """Sequences that a step has if `count` of them go on: a power of two, or all that there were."""
        return min(self.largest, power_of_two(count))

    def reorder(self, parents: Tensor, cache_rows: Tensor) -> None:  # [A'] int64 each
        """Sequence i goes on from sequence parents[i], in a cache row of its own."""
        self.state[:, : len(parents)] = self.state[:, : self.count].index_select(1, parents)
        self.state[CACHE_ROWS, : len(cache_rows)] = cache_rows
        self.count = len(parents)
        self.largest = max(self.largest, self.count)

    def __call__(self, tokens: Tensor) -> Tensor:  # [A] int64 -> [A, V] float32, the caller's own
        """Reads one token of each sequence."""
        from bertfast.ops import cuda  # imports triton, which a machine without a GPU may not have

        if (state := current_state(self.model)) is not self.model_state:  # a weight has moved
            self.model_state, self.graphs = state, GraphOwner()
        cuda.raise_out_of_range(self.device)  # of an earlier replay: a replayed op cannot raise
        with cuda_graph_cache.serialized(self.device):
            self.state[TOKENS, : self.count].copy_(tokens)
            key: GraphKey = (self.graphs.number, self.count, self.has_types, *kernel_settings(self.model))
            step = cuda_graph_cache.cache.find(key)
            if step is None:
                step = self.capture()
                cuda_graph_cache.cache.put(key, step)
                if isinstance(step, str):
                    logger.warning("no CUDA graph for a step of %d sequences, which runs kernel by kernel: %s", self.count, step)
            if isinstance(step, CapturedStep):
                step.replay()
                return step.logits.to(torch.float32, copy=True)
        count_reason(str(step))
        return self.run_ops().float()

    def run_ops(self) -> Tensor:  # [A, V]
        """One step as calls of ops, counters included."""
        tokens, positions, token_types, cache_rows, lengths = self.state[:, : self.count]
        positions.add_(1)
        written = lengths.clone()
        lengths.add_(1)
        attention = CachedRangeAttention(cache_rows, None, lengths, self.cache.store(cache_rows, written))
        inputs = GraphInputs(tokens, None, token_types if self.has_types else None, positions, attention)
        return self.model.family.lm_logits(self.model, encode(self.model.base_model, inputs, ops), ops)

    def capture(self) -> CapturedStep | str:
        """The step as a CUDA graph, or why there is none. Used only if its first replay gives the bits of the eager step."""
        state = self.state[:, : self.count]
        before = state.clone()
        eager = self.run_ops().clone()
        state.copy_(before)
        try:
            replay, outputs = cuda_capture.capture(lambda: {"logits": HeadOutput(self.run_ops())}, self.device)
        except RuntimeError as error:
            return f"CUDA could not capture the step: {str(error).splitlines()[0]}"
        state.copy_(before)
        replay()
        after, logits = state.clone(), outputs["logits"].value
        state.copy_(before)
        advanced = before.clone()
        advanced[POSITIONS] += 1
        advanced[LENGTHS] += 1
        if not torch.equal(bit_pattern(logits), bit_pattern(eager)) or not torch.equal(after, advanced):
            return "the first replay of a step gave other values than the eager step"
        return CapturedStep(replay, logits)

    def release(self) -> None:
        """Parks the decoder on the model's state for reuse. Drops its references to both, which would be a cycle."""
        state, self.model_state, self.model = self.model_state, None, None
        assert state is not None, "released once"
        with cuda_graph_cache.lock:
            state.idle_decoder = self


def acquire(model: Model, rows: int, capacity: int, make: Callable[[int, int], DecodeCache]) -> CudaDecoder:
    """A decoder over at least `rows` cache rows of `capacity` tokens, its own until released: the idle one where it is large enough, else
    a new one over make(rows, capacity)."""
    state = state_of(model)
    with cuda_graph_cache.lock:
        idle, state.idle_decoder = state.idle_decoder, None
    if isinstance(idle, CudaDecoder) and idle.rows >= rows and idle.capacity >= capacity:
        idle.model, idle.model_state = model, state
        idle.cache.table = _C.SlotTable(idle.rows, idle.capacity)
        return idle
    del idle  # before the new one is allocated
    rows, capacity = power_of_two(rows), max(64, power_of_two(capacity))
    return CudaDecoder(model, state, make(rows, capacity), rows, capacity)
