"""A forward recorded once and replayed: on the CPU as a flat plan in the C++ host.

The graph stays the Python one. The first call of a kind runs it with a Recorder in the place of the ops, which computes every op as
ever and also writes it down. From then on a call of that kind is one crossing into C++ (csrc/plan). A plan holds for every batch, since
sizes are symbols; it holds as long as the weights lie where they lay, which the model's guard checks before each call.

A forward that does something no op does (an activation that linear cannot fuse, say) cannot be recorded and runs op by op.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import VarlenAttention
from bertfast.batch.packed import GraphInputs, PackedBatch
from bertfast.engine import cuda_graphs
from bertfast.engine.call import ForwardCall
from bertfast.engine.guard import guard_of
from bertfast.engine.recorder import ROWS, SLOTS, WORDS, CannotRecordError, RecordedPlan, Recorder
from bertfast.graph.heads import HeadOutput

PLAN_DTYPES = (torch.float32, torch.bfloat16)  # a plan's ops are all of one of these


def run(call: ForwardCall) -> dict[str, HeadOutput]:
    """The outputs of a call: replayed where it can be, recorded where it is the first of its kind, else op by op."""
    if call.batch.rows.input_ids.is_cuda:
        return cuda_graphs.run(call)
    key = plan_key(call)
    if key is None:
        return call.run_ops(call.batch, call.O)
    plans = plans_of(call.model)
    plan = plans.find(key)
    if plan is None:
        return record(call, plans, key)
    return replay(call, plan) if isinstance(plan, RecordedPlan) else call.run_ops(call.batch, call.O)


def run_eagerly(call: ForwardCall, reason: str) -> dict[str, HeadOutput]:
    """The outputs of a call that nothing could record: op by op, and on a GPU `bertfast info` says why."""
    if call.batch.first_rows.is_cuda:
        return cuda_graphs.run_eagerly(call, reason)
    return call.run_ops(call.batch, call.O)


def plans_of(model: Any) -> PlanCache:
    guard = guard_of(model)
    if guard.plans is None:
        guard.plans = PlanCache(guard.addresses())
    plans: PlanCache = guard.plans
    return plans


def plan_key(call: ForwardCall) -> tuple[Any, ...] | None:
    """What must be alike for two calls to share a plan; None where the call has no plan."""
    rows = call.batch.rows
    attention, cross = rows.attention, rows.cross_attention
    if (
        type(attention) is not VarlenAttention
        or (cross is not None and type(cross) is not VarlenAttention)
        or call.batch.pad_mask is not None
    ):
        return None
    weight = call.base.embeddings.position_embeddings.weight
    if weight.dtype not in PLAN_DTYPES or weight.device.type != "cpu":
        return None
    return (
        call.only_first(),
        call.batch.indices is None,
        rows.words is None,
        rows.token_type_ids is None,
        attention.causal,
        attention.key_rows is None,
        cross is None,
        call.head is not None and call.head.pooled and call.base.pooler is not None,
    )


def inputs_of(batch: PackedBatch) -> list[Tensor | None]:
    """The tensors behind SLOTS."""
    rows = batch.rows
    attention, cross = rows.attention, rows.cross_attention
    assert isinstance(attention, VarlenAttention), "kind_of let nothing else through"
    cross_q, cross_k = (cross.cu_seqlens_q, cross.cu_seqlens_k) if isinstance(cross, VarlenAttention) else (None, None)
    return [
        rows.input_ids, rows.position_ids, attention.cu_seqlens_q, attention.cu_seqlens_k, rows.token_type_ids, rows.words,
        attention.key_rows, batch.indices, batch.first_rows, attention.first_cu_seqlens(), rows.encoder_rows, cross_q, cross_k,
        None, None, None,
    ]  # fmt: skip


def batch_of(inputs: Sequence[Tensor | None], like: PackedBatch) -> PackedBatch:
    """`like`, reading these tensors."""
    copies: Sequence[Any] = inputs  # None only where `like` has None
    ids, positions, cu_q, cu_k, types, words, key_rows, indices, first_rows, first_cu, encoder, cross_q, cross_k, *_ = copies
    rows = like.rows
    attention, cross = rows.attention, rows.cross_attention
    assert isinstance(attention, VarlenAttention), "kind_of let nothing else through"
    return PackedBatch(
        GraphInputs(
            ids, words, types, positions,
            replace(attention, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, key_rows=key_rows, first_cu=first_cu),
            encoder,
            replace(cross, cu_seqlens_q=cross_q, cu_seqlens_k=cross_k) if isinstance(cross, VarlenAttention) else None,
        ),
        like.batch, like.columns, indices, None, first_rows,
    )  # fmt: skip


def counts_of(batch: PackedBatch) -> list[int]:
    rows = batch.rows
    key_rows = rows.attention.key_rows if isinstance(rows.attention, VarlenAttention) else None
    return [
        rows.input_ids.shape[0],
        batch.batch,
        batch.batch * batch.columns,
        0 if key_rows is None else key_rows.shape[0],
        0 if rows.encoder_rows is None else rows.encoder_rows.shape[0],
        0 if rows.words is None else rows.words.shape[0],
    ]


def record(call: ForwardCall, plans: PlanCache, key: tuple[Any, ...]) -> dict[str, HeadOutput]:
    if call.batch.rows.input_ids.numel() == 0:  # results without storage cannot be told apart
        return call.run_ops(call.batch, call.O)
    # On copies: two inputs that happen to be one tensor today must not become one slot.
    inputs = [None if t is None else t.clone() for t in inputs_of(call.batch)]
    recorder = Recorder(inputs, plans.weights)
    logits = call.run_ops(batch_of(inputs, call.batch), recorder)
    try:
        plans.keep(key, recorder.finish(logits))
    except CannotRecordError as reason:
        plans.keep(key, str(reason))
    return logits


def replay(call: ForwardCall, recorded: RecordedPlan) -> dict[str, HeadOutput]:
    inputs, counts = inputs_of(call.batch), counts_of(call.batch)
    dtype = recorded.dtype
    outputs = {o.name: HeadOutput(torch.empty(counts[o.rows], o.columns, dtype=dtype, device="cpu"), o.cells) for o in recorded.outputs}
    addresses = [0 if t is None else t.data_ptr() for t in inputs]
    addresses.extend(each.value.data_ptr() for each in outputs.values())
    recorded.plan.run(counts, addresses)
    return outputs


class DecodeStepPlan:
    """One step of a generation: one row a sequence, against buffers that stay where they are. The first step records it.

    run: the step as calls of ops, on tensors of the same kinds -> [A, V].
    """

    def __init__(self, model: Any, buffers: Sequence[Tensor], run: Callable[[Any], Tensor]) -> None:
        self.model, self.run = model, run
        self.buffers = frozenset(t.data_ptr() for t in buffers)
        weight = model.base_model.embeddings.position_embeddings.weight
        self.dtype = weight.dtype
        self.recordable = self.dtype in PLAN_DTYPES and weight.device.type == "cpu"
        self.plans: PlanCache | None = None  # those of the weights that were recorded
        self.recorded: RecordedPlan | None = None

    def __call__(self, given: dict[str, Tensor | None]) -> Tensor:
        """given: the step's inputs by the names of SLOTS, each [A]."""
        if not self.recordable:
            return self.run(ops)
        guard_of(self.model).reason()  # forgets its plans if a weight has moved
        plans = plans_of(self.model)
        inputs = [given.get(slot.name) for slot in SLOTS]
        if plans is not self.plans:
            recorder = Recorder(inputs, plans.weights | self.buffers)
            out = self.run(recorder)
            try:
                self.plans, self.recorded = plans, recorder.finish({"logits": HeadOutput(out)})
            except CannotRecordError:
                self.recordable = False
            return out
        ids = given["input_ids"]
        assert self.recorded is not None, "made together with self.plans"
        assert ids is not None, "a step reads tokens"
        out = torch.empty(len(ids), self.recorded.outputs[0].columns, dtype=self.dtype, device="cpu")
        counts = [len(out) if count == ROWS else 0 for count in range(WORDS + 1)]
        self.recorded.plan.run(counts, [*(0 if t is None else t.data_ptr() for t in inputs), out.data_ptr()])
        return out


class PlanCache:
    """The plans of one model. Its guard forgets them when one of its weights moves."""

    def __init__(self, weights: frozenset[int]) -> None:
        self.weights = weights  # the addresses of the parameters
        self._kept: dict[tuple[Any, ...], RecordedPlan | str] = {}
        self._repeats: dict[tuple[Any, ...], Any] = {}  # of bertfast.engine.shape_cache, by what calls have in common
        self._lock = threading.Lock()

    def find(self, key: tuple[Any, ...]) -> RecordedPlan | str | None:
        return self._kept.get(key)

    def keep(self, key: tuple[Any, ...], plan: RecordedPlan | str) -> None:
        with self._lock:
            self._kept = {**self._kept, key: plan}

    def find_repeat(self, key: tuple[Any, ...]) -> Any:
        return self._repeats.get(key)

    def keep_repeat(self, key: tuple[Any, ...], repeat: Any, at_most: int) -> None:
        with self._lock:
            newest = list(self._repeats.items())[-at_most + 1 :]
            self._repeats = {**dict(newest), key: repeat}

    def reasons(self) -> Iterator[str]:
        """Why some kinds of call run op by op."""
        return (plan for plan in self._kept.values() if isinstance(plan, str))
