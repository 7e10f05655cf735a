"""A forward captured once as a CUDA graph and replayed.

A small BERT is dozens of kernels of a few microseconds, which Python launches more slowly than they run; a CUDA graph launches all at
once, at fixed addresses and sizes. So calls are sorted into buckets of sizes: inputs are copied into the bucket's static buffers, the
graph is replayed, the outputs are copied out. Kernels read the real lengths from cu_seqlens on the device, so padding of a bucket
reaches no output. Weights changed in place are seen; weights that move are captured anew. BERTFAST_CUDA_GRAPHS=0 turns graphs off.
"""

import logging
from copy import copy
from dataclasses import dataclass

import torch

from bertfast.engine import cuda_buffers, cuda_capture, cuda_graph_cache
from bertfast.engine.call import ForwardCall
from bertfast.engine.cuda_buffers import Bucket, CapturedOutput, Outputs, StaticBatch, bucket_of, copy_outputs, static_batch
from bertfast.engine.cuda_capture import Replay, bit_pattern
from bertfast.engine.cuda_graph_cache import GraphKey, serialized
from bertfast.engine.cuda_graph_eligibility import count_reason, kernel_settings, why_eager
from bertfast.graph.heads import HeadOutput

logger = logging.getLogger("bertfast")


@dataclass(slots=True)
class CapturedForward:
    """A CUDA graph with the buffers that it reads and writes."""

    batch: StaticBatch
    replay: Replay
    outputs: Outputs
    stream: torch.cuda.Stream | None  # where the buffers were allocated; None where there are no streams

    def run(self, call: ForwardCall) -> dict[str, HeadOutput]:
        from bertfast.ops import cuda  # imports triton, which a machine without a GPU may not have

        device = call.batch.rows.input_ids.device
        cuda.raise_out_of_range(device)  # of an earlier replay: a replayed op cannot raise
        if (stream := cuda_graph_cache.stream_of(device)) is not None and stream != self.stream:
            for buffer in self.batch.buffers():  # freed only once this stream is done with them
                buffer.record_stream(stream)
        cuda_buffers.stage(call.batch, self.batch)
        self.replay()
        return copy_outputs(self.outputs, call.batch)


def run(call: ForwardCall) -> dict[str, HeadOutput]:
    """The outputs of a call on a GPU: replayed, captured where it is the first of its kind, or eagerly."""
    reason = why_eager(call)
    if reason is None:
        rows = call.batch.rows
        bucket = bucket_of(rows.input_ids.shape[0], call.batch.batch, call.batch.rows.require_varlen().max_seqlen_k)
        state = call.owner()  # alive until the graph is in the cache: what it owns leaves the cache with it
        key: GraphKey = (state.cuda_graphs.number, bucket, *graph_key(call))
        with serialized(rows.input_ids.device):
            entry = cuda_graph_cache.cache.find(key)
            if entry is None:
                entry = capture_forward(call, bucket)
                if isinstance(entry, str):
                    logger.warning("no CUDA graph for %s of %s, which runs kernel by kernel: %s", type(call.model).__name__, bucket, entry)
                cuda_graph_cache.cache.put(key, entry)
            if isinstance(entry, CapturedForward):
                return entry.run(call)
            reason = str(entry)
    return run_eagerly(call, reason)


def run_eagerly(call: ForwardCall, reason: str) -> dict[str, HeadOutput]:
    """The outputs of a call kernel by kernel. reason: counted for `bertfast info`."""
    count_reason(reason)
    return call.run_ops(call.batch, call.O)


def capture_forward(call: ForwardCall, bucket: Bucket) -> CapturedForward | str:
    """A graph for calls like this one, or why there is none. Used only if its first replay gives the bits of the eager forward."""
    call = copy(call)
    call.state = None  # it owns the graph, which may keep what it captured
    batch = static_batch(bucket, call.batch)
    cuda_buffers.stage(call.batch, batch)

    def run_ops() -> dict[str, HeadOutput]:
        return call.run_ops(batch, call.O)

    eager = {name: each.value.clone() for name, each in run_ops().items()}
    device = batch.rows.input_ids.device
    try:
        replay, logits = cuda_capture.capture(run_ops, device)
    except RuntimeError as error:
        return f"CUDA could not capture the forward: {str(error).splitlines()[0]}"
    fills = batch.fills
    outputs = {name: CapturedOutput(each.value, each.padded_rows, fills.get(each.value.data_ptr(), 0.0)) for name, each in logits.items()}
    replay()
    for name, each in outputs.items():
        real = call.batch.rows.input_ids.shape[0] if each.padded_rows else call.batch.batch
        if not torch.equal(bit_pattern(each.value[:real]), bit_pattern(eager[name][:real])):
            return f"the first replay gave other values for {name} than the eager forward"
    return CapturedForward(batch, replay, outputs, cuda_graph_cache.stream_of(device))


def graph_key(call: ForwardCall) -> GraphKey:
    """All that the captured kernels depend on but sizes and weights."""
    rows = call.batch.rows
    weight = call.base.embeddings.position_embeddings.weight
    return (
        weight.device,
        weight.dtype,
        call.first_rows_only(),
        rows.token_type_ids is None,
        call.batch.rows.require_varlen().causal,
        call.head.pooled and call.base.pooler is not None,
        *kernel_settings(call.model),
    )
