"""A forward recorded once and replayed on the CPU: one crossing into C++ (csrc/plan).

The first call of a kind runs the model graph with a Recorder in the place of the ops; later ones replay what it left. A plan serves every
batch size, and holds as long as the weights stay at their addresses, which the model's guard checks before each call. A forward that
does something no op does (an activation that linear cannot fuse) has no plan and runs op by op.
"""

import torch

from bertfast.engine import cuda_graphs
from bertfast.engine.call import ForwardCall
from bertfast.engine.plan_builder import CannotRecordError, RecordedPlan
from bertfast.engine.plan_cache import PlanCache, PlanKey
from bertfast.engine.plan_inputs import batch_reading, plan_inputs, row_counts
from bertfast.engine.recorder import Recorder
from bertfast.graph.heads import HeadOutput

PLAN_DTYPES = (torch.float32, torch.bfloat16)  # a plan's ops are all of one of these


def run(call: ForwardCall) -> dict[str, HeadOutput]:
    """The outputs of a call: replayed, recorded where it is the first of its kind, or op by op."""
    if call.batch.rows.input_ids.is_cuda:
        return cuda_graphs.run(call)
    key = plan_key(call)
    if key is None:
        return call.run_ops(call.batch, call.O)
    state = call.owner()
    plans = state.plans
    plan = plans.find(key)
    if plan is None:
        return record(call, plans, key)
    return replay(call, plan) if isinstance(plan, RecordedPlan) else call.run_ops(call.batch, call.O)


def run_eagerly(call: ForwardCall, reason: str) -> dict[str, HeadOutput]:
    """The outputs of a call op by op. reason: counted for `bertfast info` where the call is on a GPU."""
    if call.batch.first_rows.is_cuda:
        return cuda_graphs.run_eagerly(call, reason)
    return call.run_ops(call.batch, call.O)


def plan_key(call: ForwardCall) -> PlanKey | None:
    """The plan that serves this call; None where none can."""
    rows = call.batch.rows
    attention, cross = rows.varlen, rows.cross_attention
    if attention is None or (cross is not None and rows.cross_varlen is None) or call.batch.pad_mask is not None:
        return None
    weight = call.base.embeddings.position_embeddings.weight
    if weight.dtype not in PLAN_DTYPES or weight.device.type != "cpu":
        return None
    return PlanKey(
        first_rows_only=call.first_rows_only(),
        unpacked=call.batch.indices is None,
        embedded=rows.words is not None,
        typed=rows.token_type_ids is not None,
        causal=attention.causal,
        padding_computed=attention.key_rows is not None,
        cross_attention=cross is not None,
        pooled=call.head.pooled and call.base.pooler is not None,
    )


def record(call: ForwardCall, plans: PlanCache, key: PlanKey) -> dict[str, HeadOutput]:
    inputs = plan_inputs(call.batch).cloned()  # one tensor passed as two arguments must become two slots
    if any(t is not None and t.numel() == 0 for t in inputs.tensors()):  # empty tensors have no address to tell them apart by
        return call.run_ops(call.batch, call.O)
    recorder = Recorder(inputs, plans.weights)
    logits = call.run_ops(batch_reading(inputs, call.batch), recorder)
    if not call.owner().guard.holds(call.model):  # another thread has moved a weight meanwhile: some ops read the new one
        return logits
    try:
        plans.put(key, recorder.finish(logits))
    except CannotRecordError as reason:
        plans.put(key, str(reason))
    return logits


def replay(call: ForwardCall, recorded: RecordedPlan) -> dict[str, HeadOutput]:
    counts, dtype = row_counts(call.batch), recorded.dtype
    outputs = {
        o.name: HeadOutput(torch.empty(counts[o.rows], o.columns, dtype=dtype, device="cpu"), o.padded_rows) for o in recorded.outputs
    }
    inputs = plan_inputs(call.batch)  # alive until the replay is done
    addresses = inputs.addresses()
    addresses.extend(each.value.data_ptr() for each in outputs.values())
    recorded.plan.run(counts, addresses)
    return outputs
