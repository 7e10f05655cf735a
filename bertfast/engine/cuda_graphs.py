"""A forward recorded once and replayed: on the GPU as a CUDA graph per bucket.

A small BERT is dozens of kernels of a few microseconds each, and launching them from Python takes longer than they run. A CUDA
graph launches them all at once, but only as they were: same addresses, same sizes. So calls are sorted into buckets. Rows are padded
to the next rung of a ladder, sequences to a power of two with sequences of length zero, the longest length to 64, 128, 256 or 512; the
inputs are copied into the buffers of the bucket's graph, the graph is replayed, the outputs are copied out. The kernels read the real
lengths from cu_seqlens on the device, so what lies in the padding, whatever it is, reaches no output.

At most LIMIT graphs are kept, the least recently used goes first. They share one memory pool, so no two may be in flight: a lock keeps
threads apart, an event keeps streams apart. A graph holds as long as the weights lie where they lay; values that change in place
are seen. BERTFAST_CUDA_GRAPHS=0 turns it all off.

Shape letters: T rows of a call, B sequences; Tb and Bb the same of its bucket.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import VarlenAttention
from bertfast.batch.packed import GraphInputs, PackedBatch
from bertfast.engine.call import ForwardCall
from bertfast.engine.guard import guard_of
from bertfast.graph.heads import HeadOutput
from bertfast.ops import Ops

logger = logging.getLogger("bertfast")

MAX_GRAPHS = 64  # graphs, over all models
MAX_ROWS = 8192  # above, the work of each kernel hides the launch of the next

Replay = Callable[[], None]
Outputs = dict[str, "CapturedOutput"]


class Bucket(NamedTuple):
    """The sizes a graph is recorded at; it serves every call that is not larger."""

    rows: int
    sequences: int
    longest: int


def bucket_of(rows: int, sequences: int, longest: int) -> Bucket:
    """Rows: multiples of 32 up to 512, then eight rungs an octave, so that at most an eighth is padding."""
    step = max(32, 1 << max(rows.bit_length() - 4, 0))
    return Bucket(-(-rows // step) * step, _power_of_two(sequences), max(64, _power_of_two(longest)))


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class CapturedOutput:
    """One output of a head as the graph leaves it."""

    value: Tensor  # [Tb, C], or [Bb, C] where it is one row a sequence; rewritten by every replay
    cells: bool  # its rows become the cells of the padded batch
    fill: float  # with this in the padded ones


@dataclass(slots=True)
class StaticBatch(PackedBatch):
    """A batch whose unpack is put off until after the replay: where the rows go differs from call to call."""

    fills: dict[int, float] = field(default_factory=dict)  # by the address of what was to be unpacked

    def unpack(self, x: Tensor, O: Ops, fill: float = 0.0) -> Tensor:
        self.fills[x.data_ptr()] = fill
        return x

    def buffers(self) -> list[Tensor]:
        rows, attention = self.rows, self.rows.attention
        assert isinstance(attention, VarlenAttention), "made by buffers"
        found = (rows.input_ids, rows.position_ids, rows.token_type_ids, self.first_rows, attention.cu_seqlens_q, attention.first_cu)
        return [t for t in found if t is not None]


@dataclass(slots=True)
class CapturedForward:
    """A recorded forward with the buffers that it reads and writes."""

    batch: StaticBatch
    replay: Replay
    outputs: Outputs
    stream: Any  # where the buffers were allocated; None where there are no streams

    def run(self, call: ForwardCall) -> dict[str, HeadOutput]:
        from bertfast.ops import cuda  # as in stage

        device = call.batch.rows.input_ids.device
        cuda.raise_out_of_range(device)  # what an earlier replay met: the host sees no op of this one
        if (stream := stream_of(device)) != self.stream:
            for buffer in self.batch.buffers():  # should the graph go while this stream reads them, their memory waits for it
                buffer.record_stream(stream)
        stage(call.batch, self.batch)
        self.replay()
        return copy_outputs(self.outputs, call.batch)


def stream_of(device: torch.device) -> Any:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def stage(batch: PackedBatch, into: PackedBatch) -> None:
    from bertfast.ops import cuda  # imports triton, which a machine without a GPU may not have

    (rows, attention), (rows_out, attention_out) = ((b.rows, b.rows.attention) for b in (batch, into))
    assert isinstance(attention, VarlenAttention), "reason_against let nothing else through"
    assert isinstance(attention_out, VarlenAttention), "made by buffers"
    cuda.stage(
        rows.input_ids, rows.position_ids, rows.token_type_ids, attention.cu_seqlens_q, batch.first_rows,
        rows_out.input_ids, rows_out.position_ids, rows_out.token_type_ids, attention_out.cu_seqlens_q, into.first_rows,
    )  # fmt: skip


def copy_outputs(outputs: Outputs, batch: PackedBatch) -> dict[str, HeadOutput]:
    """The caller's own tensors: the next replay overwrites the graph's."""
    T = batch.rows.input_ids.shape[0]
    copies = {}
    for name, each in outputs.items():
        if not each.cells:
            value = each.value[: batch.batch].clone()
        elif batch.indices is None:
            value = each.value[:T].clone()
        else:
            value = batch.unpack(each.value[:T], ops, each.fill)
        copies[name] = HeadOutput(value, each.cells)
    return copies


def static_inputs(bucket: Bucket, like: PackedBatch) -> StaticBatch:
    """The fixed places that a graph of this bucket reads its batch from."""
    attention = like.rows.attention
    assert isinstance(attention, VarlenAttention), "reason_against let nothing else through"
    device = like.rows.input_ids.device
    with torch.inference_mode(False):  # they outlive the call
        ids, positions, types = (torch.zeros(bucket.rows, dtype=torch.int64, device=device) for _ in range(3))
        cu_seqlens = torch.zeros(bucket.sequences + 1, dtype=torch.int32, device=device)
        first_cu = torch.arange(bucket.sequences + 1, dtype=torch.int32, device=device)
        first_rows = torch.zeros(bucket.sequences, dtype=torch.int64, device=device)
    varlen = replace(
        attention,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=bucket.longest,
        max_seqlen_k=bucket.longest,
        first_cu=first_cu,
    )
    rows = GraphInputs(ids, None, None if like.rows.token_type_ids is None else types, positions, varlen)
    return StaticBatch(rows, bucket.sequences, 1, None, None, first_rows)


def capture(run: Callable[[], dict[str, HeadOutput]], device: torch.device) -> tuple[Replay, dict[str, HeadOutput]]:
    """Records run(), which has run before as ever: its kernels are compiled and its libraries have chosen."""
    graph = torch.cuda.CUDAGraph()
    place = {"pool": _pool(device), "stream": _side_stream(device)}
    with torch.cuda.device(device), torch.cuda.graph(graph, **place, capture_error_mode="thread_local"):
        logits = run()
    return graph.replay, logits


_pools: dict[torch.device, Any] = {}


def _pool(device: torch.device) -> Any:
    if device not in _pools:
        _pools[device] = torch.cuda.graph_pool_handle()
    return _pools[device]


@cache
def _side_stream(device: torch.device) -> Any:
    """What graphs of a device are recorded on. torch's own choice is one stream for the process, of the device that was current first."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own


def capture_forward(call: ForwardCall, bucket: Bucket) -> CapturedForward | str:
    """A graph for calls like this one, or why there is none. Trusted only once its first replay has given the bits of plain launches."""
    batch = static_inputs(bucket, call.batch)
    stage(call.batch, batch)

    def run() -> dict[str, HeadOutput]:
        return call.run_ops(batch, call.O)

    plain = {name: each.value.clone() for name, each in run().items()}
    try:
        replay, logits = capture(run, batch.rows.input_ids.device)
    except RuntimeError as error:  # CUDA's own account of what a graph cannot hold; the stream is usable again
        return f"CUDA could not record the forward: {str(error).splitlines()[0]}"
    outputs = {name: CapturedOutput(each.value, each.cells, batch.fills.get(each.value.data_ptr(), 0.0)) for name, each in logits.items()}
    replay()
    for name, each in outputs.items():
        real = call.batch.rows.input_ids.shape[0] if each.cells else call.batch.batch
        if not torch.equal(bit_pattern(each.value[:real]), bit_pattern(plain[name][:real])):
            return f"the first replay gave other values for {name} than plain launches"
    return CapturedForward(batch, replay, outputs, stream_of(batch.rows.input_ids.device))


def bit_pattern(t: Tensor) -> Tensor:  # so that a NaN equals itself
    return t.contiguous().view(torch.int32 if t.element_size() == 4 else torch.int16)


class GraphCache:
    """The graphs of all models, the least recently used first to go."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # a graph, or why there is none

    def find(self, key: tuple[Any, ...]) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: tuple[Any, ...], graph: Any) -> None:
        self._kept[key] = graph
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)

    def drop(self, owner: int) -> None:
        for key in [key for key in self._kept if key[0] == owner]:
            del self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)


graph_cache = GraphCache(MAX_GRAPHS)
lock = threading.RLock()  # a finalizer may run while the lock is held
_done: dict[torch.device, Any] = {}  # the event after the last use of the shared memory
_owners = itertools.count()
_reasons: Counter[str] = Counter()


class GraphOwner:
    """One model's part of the shelf. Its guard drops it when the model goes, is rebuilt, or has a weight moved; the graphs go with it."""

    def __init__(self) -> None:
        self.number = next(_owners)
        self.idle_steps: Any = None  # of the last generation: see bertfast.generation.cuda_steps
        weakref.finalize(self, _forget, self.number)


def _forget(owner: int) -> None:
    with lock:
        graph_cache.drop(owner)


def run(call: ForwardCall) -> dict[str, HeadOutput]:
    """The outputs of a call on a GPU: replayed, recorded where it is the first of its kind, or by plain launches."""
    reason = why_eager(call)
    if reason is None:
        rows = call.batch.rows
        assert isinstance(rows.attention, VarlenAttention), "reason_against let nothing else through"
        bucket = bucket_of(rows.input_ids.shape[0], call.batch.batch, rows.attention.max_seqlen_k)
        with serialized(rows.input_ids.device):
            owner = owner_of(call.model)
            key = (owner.number, bucket, *graph_key(call))
            graph = graph_cache.find(key)
            if graph is None:
                graph = capture_forward(call, bucket)
                if isinstance(graph, str):
                    logger.warning("no CUDA graph for %s of %s: %s", type(call.model).__name__, bucket, graph)
                graph_cache.keep(key, graph)
            if isinstance(graph, CapturedForward):
                return graph.run(call)
            reason = graph
    return run_eagerly(call, reason)


def run_eagerly(call: ForwardCall, reason: str) -> dict[str, HeadOutput]:
    """The outputs of a call kernel by kernel, for a reason that is counted."""
    count_reason(reason)
    return call.run_ops(call.batch, call.O)


def why_eager_trial(model: Any) -> str | None:
    """Calls a model on a GPU with a small batch: None where that was replayed as a graph, or why it was launched kernel by kernel."""
    before = eager_reasons()
    base = model.base_model
    with torch.no_grad():
        base(torch.zeros(2, 8, dtype=torch.int64, device=base.device), use_cache=False)
    new = [reason for reason, count in eager_reasons().items() if count > before.get(reason, 0)]
    return "; ".join(new) or None


def count_reason(reason: str) -> None:
    _reasons[reason] += 1


def eager_reasons() -> dict[str, int]:
    """Why calls were launched kernel by kernel, and how often: what `bertfast info` shows."""
    return dict(_reasons)


def why_eager(call: ForwardCall) -> str | None:
    """Why this call runs as plain launches; None where a graph can hold it."""
    rows = call.batch.rows
    attention = rows.attention
    if (reason := why_model_eager(call.base)) is not None:
        return reason
    if type(attention) is not VarlenAttention or call.batch.pad_mask is not None:
        return "attention under a mask, or on a KV cache"
    if rows.cross_attention is not None:
        return "cross-attention"
    if attention.key_rows is not None:
        return "padding is kept"
    if rows.words is not None:
        return "inputs_embeds"
    if rows.input_ids.shape[0] == 0:
        return "an empty batch"
    if rows.input_ids.shape[0] > MAX_ROWS:
        return f"more than {MAX_ROWS} rows: their work hides the launches"
    return None


def why_model_eager(base: Any) -> str | None:
    """Why nothing of this BERT can be recorded now, whatever it is called with."""
    config, weight = base.config, base.embeddings.position_embeddings.weight
    if not ops.has_kernels(weight.device, weight.dtype):
        return f"{weight.dtype} runs on the plain definitions"
    if os.environ.get("BERTFAST_CUDA_GRAPHS") == "0":
        return "BERTFAST_CUDA_GRAPHS=0"
    if config.hidden_size > 8192 or config.hidden_size > 128 * config.num_attention_heads:
        return "a hidden size above 8192 or a head size above 128 runs on the plain definitions"
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return "the caller records a CUDA graph of its own"
    return None


def graph_key(call: ForwardCall) -> tuple[Any, ...]:
    """Everything but the sizes and the weights that the recorded kernels depend on."""
    rows = call.batch.rows
    assert isinstance(rows.attention, VarlenAttention), "reason_against let nothing else through"
    weight = call.base.embeddings.position_embeddings.weight
    return (
        weight.device,
        weight.dtype,
        call.only_first(),
        rows.token_type_ids is None,
        rows.attention.causal,
        call.head.pooled and call.base.pooler is not None,
        *kernel_settings(call.model),
    )


def kernel_settings(model: Any) -> tuple[Any, ...]:
    """What else decides which kernels run: torch's switches, and the model's own."""
    matmul = torch.backends.cuda.matmul
    return (
        getattr(matmul, "fp32_precision", None),
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
        model.batch_invariant,
    )


def owner_of(model: Any) -> GraphOwner:
    guard = guard_of(model)
    if guard.cuda_graphs is None:
        guard.cuda_graphs = GraphOwner()
    owner: GraphOwner = guard.cuda_graphs
    return owner


@contextmanager
def serialized(device: torch.device) -> Iterator[None]:
    """Work queued inside runs after whatever used the graphs' memory last, on whatever stream; one thread at a time."""
    with lock:
        if device.type != "cuda":
            yield
            return
        stream = stream_of(device)
        if device in _done:
            stream.wait_event(_done[device])
        try:
            yield
        finally:  # what was queued before an error runs all the same
            _done[device] = stream.record_event()
