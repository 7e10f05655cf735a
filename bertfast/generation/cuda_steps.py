"""The steps of a generation on a GPU: one CUDA graph for each number of sequences, replayed token after token.

A step reads one token of each sequence: some 150 kernels of a few microseconds, which Python cannot launch as fast as they run. They
are the same at every step, so they are recorded once; what differs lies in buffers on the device: the tokens, and the counters
(positions, filled cells), which the recorded step itself moves on. The host writes tokens, replays, and never waits.

A graph holds addresses, so the KV cache has to stay where it is. A model keeps the one of its last generation (rounded up, for as long as
nothing larger is asked for), and with it the graphs, which count among those of
bertfast.engine.cuda_graphs; they go when the model goes or its weights move. Sequences that have ended leave when the rest fits the next
smaller size, so that a batch needs few sizes.

Shape letters: A sequences in a step, N heads, C cells of a cache row, D head size, V vocabulary.
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
from bertfast.engine import cuda_graphs
from bertfast.engine.cuda_graphs import GraphOwner, Replay
from bertfast.engine.guard import guard_of
from bertfast.graph.encoder import encode
from bertfast.graph.heads import HeadOutput

logger = logging.getLogger("bertfast")

TOKENS, POSITIONS, TYPES, CACHE_ROWS, FILLED = range(5)  # the rows of the state


@dataclass(frozen=True, slots=True)
class CapturedStep:
    replay: Replay
    logits: Tensor  # [A, V], rewritten by every replay


def is_supported(model: Any) -> bool:
    """Whether steps of this model are recorded: on a GPU, unless something is against it, which is counted for `bertfast info`."""
    weight = model.base_model.embeddings.position_embeddings.weight
    if not on_gpu(weight):
        return False
    reason = cuda_graphs.why_model_eager(model.base_model)
    if reason is not None:
        cuda_graphs.count_reason(reason)
    return reason is None


def on_gpu(t: Tensor) -> bool:
    return t.is_cuda


class CudaDecoder:
    """A KV cache, the state of the sequences in it, and the steps that were recorded over them."""

    def __init__(self, model: Any, owner: GraphOwner, cells: Any, slots: int, room: int) -> None:
        """cells: of bertfast.generation.loop, [slots, N, room, D] a layer."""
        self.model: Any = model  # None while nobody uses them, as is the owner
        self.owner: Any = owner
        self.cells, self.slots, self.room = cells, slots, room
        weight = model.base_model.embeddings.position_embeddings.weight
        self.device, self.dtype = weight.device, weight.dtype
        with torch.inference_mode(False):  # it outlives the call
            self.state = torch.zeros(FILLED + 1, slots, dtype=torch.int64, device=self.device)
        self.graphs = GraphOwner()  # of the recorded steps, on the shelf of all graphs
        self.count, self.most, self.has_types = 0, 0, False

    def begin(self, positions: Tensor, types: Tensor | None, slots: Tensor, filled: Tensor) -> None:  # each [A] int64
        """The sequences as their prompts leave them."""
        self.count = self.most = len(positions)
        self.has_types = types is not None
        for row, values in ((POSITIONS, positions), (TYPES, types), (CACHE_ROWS, slots), (FILLED, filled)):
            if values is not None:
                self.state[row, : self.count].copy_(values)

    def size_for(self, count: int) -> int:
        """Sequences that a step has if `count` of them are to go on: a power of two, or all that there were."""
        return min(self.most, 1 << max(count - 1, 0).bit_length())

    def reorder(self, parents: Tensor, slots: Tensor) -> None:  # [A'] int64 each
        """Sequence i goes on from sequence parents[i], in a slot of its own."""
        self.state[:, : len(parents)] = self.state[:, : self.count].index_select(1, parents)
        self.state[CACHE_ROWS, : len(slots)] = slots
        self.count = len(parents)
        self.most = max(self.most, self.count)

    def __call__(self, tokens: Tensor) -> Tensor:  # [A] int64 -> [A, V] float32, the caller's own
        """Reads one token of each sequence."""
        from bertfast.ops import cuda  # imports triton, which a machine without a GPU may not have

        guard_of(self.model).reason()  # has a new owner if a weight has moved
        if (owner := cuda_graphs.owner_of(self.model)) is not self.owner:
            self.owner, self.graphs = owner, GraphOwner()
        cuda.raise_out_of_range(self.device)  # what an earlier replay met: the host sees no op of this one
        with cuda_graphs.serialized(self.device):
            self.state[TOKENS, : self.count].copy_(tokens)
            key = (self.graphs.number, self.count, self.has_types, *cuda_graphs.kernel_settings(self.model))
            step = cuda_graphs.graph_cache.find(key)
            if step is None:
                step = self.record()
                cuda_graphs.graph_cache.keep(key, step)
                if isinstance(step, str):
                    logger.warning("no CUDA graph for a step of %d sequences: %s", self.count, step)
            if isinstance(step, CapturedStep):
                step.replay()
                return step.logits.to(torch.float32, copy=True)
        cuda_graphs.count_reason(step)
        return self.run().float()

    def run(self) -> Tensor:  # [A, V]
        """One step as calls of ops, counters included."""
        tokens, positions, types, slots, filled = self.state[:, : self.count]
        positions.add_(1)
        cells = filled.clone()
        filled.add_(1)
        attention = CachedRangeAttention(slots, None, filled, self.cells.store(slots, cells))
        rows = GraphInputs(tokens, None, types if self.has_types else None, positions, attention)
        return self.model.family.lm_logits(self.model, encode(self.model.base_model, rows, ops), ops)

    def record(self) -> CapturedStep | str:
        """The step as a graph, or why there is none. Trusted only once its first replay has given the bits of plain launches."""
        state = self.state[:, : self.count]
        before = state.clone()

        def recording() -> dict[str, HeadOutput]:
            return {"logits": HeadOutput(self.run())}

        plain = self.run().clone()
        state.copy_(before)
        try:
            replay, outputs = cuda_graphs.capture(recording, self.device)
        except RuntimeError as error:  # CUDA's own account of what a graph cannot hold; the stream is usable again
            return f"CUDA could not record the step: {str(error).splitlines()[0]}"
        state.copy_(before)
        replay()
        after, logits = state.clone(), outputs["logits"].value
        state.copy_(before)
        moved = before.clone()
        moved[POSITIONS] += 1
        moved[FILLED] += 1
        if not torch.equal(cuda_graphs.bit_pattern(logits), cuda_graphs.bit_pattern(plain)) or not torch.equal(after, moved):
            return "the first replay of a step gave other values than plain launches"
        return CapturedStep(replay, logits)


def acquire(model: Any, slots: int, room: int, make: Callable[[int, int], Any]) -> CudaDecoder:
    """Steps over a cache of at least `slots` rows of `room` cells: those of the last generation where they are large enough, else new
    ones over make(slots, room). Nobody else has them until they are given back."""
    owner = cuda_graphs.owner_of(model)
    with cuda_graphs.lock:
        idle, owner.idle_steps = owner.idle_steps, None
    if isinstance(idle, CudaDecoder) and idle.slots >= slots and idle.room >= room:
        idle.model, idle.owner = model, owner
        return idle
    del idle  # before the new one is allocated
    slots, room = 1 << max(slots - 1, 0).bit_length(), max(64, 1 << max(room - 1, 0).bit_length())
    return CudaDecoder(model, owner, make(slots, room), slots, room)


def release(steps: CudaDecoder) -> None:
    """For the next generation. They wait at their owner, which the model's guard holds: they must keep neither alive."""
    owner, steps.owner, steps.model = steps.owner, None, None
    with cuda_graphs.lock:
        owner.idle_steps = steps
