"""One step of a generation on the CPU, recorded once and replayed.

Shape letters: A sequences in the step, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bertfast import ops
from bertfast.engine import cpu_plans
from bertfast.engine.model_state import ModelState, current_state
from bertfast.engine.plan_builder import CannotRecordError, RecordedPlan
from bertfast.engine.plan_cache import PlanCache
from bertfast.engine.plan_inputs import PlanInputs, RowCount
from bertfast.engine.recorder import Recorder
from bertfast.graph.heads import HeadOutput
from bertfast.ops import Ops
from bertfast.runtime.model_types import Model
from bertfast.runtime.threads import follow_torch


class DecodeStepPlan:
    """A step reads one token of each sequence against a KV cache that stays where it is."""

    def __init__(self, model: Model, cache: Sequence[Tensor], run_ops: Callable[[Ops], Tensor]) -> None:
        """cache: the buffers of keys and values. run_ops: the step by the ops it is given -> [A, V]."""
        self.model, self.run_ops = model, run_ops
        self.cache_addresses = frozenset(t.data_ptr() for t in cache)
        weight = model.base_model.embeddings.position_embeddings.weight
        self.dtype = weight.dtype
        recordable = self.dtype in cpu_plans.PLAN_DTYPES and weight.device.type == "cpu"
        self.why_eager = None if recordable else f"plans do not hold {self.dtype} on {weight.device}"
        self.plans: PlanCache | None = None  # of the weights that the step was recorded with
        self.recorded: RecordedPlan | None = None

    def __call__(self, inputs: PlanInputs) -> Tensor:
        """inputs: input_ids, position_ids, token_type_ids or None, cache_rows, cache_positions, cache_lengths, each [A]."""
        if self.why_eager is not None:
            return self.run_ops(ops)
        follow_torch()
        state = current_state(self.model)  # owns the weights until the replay is done
        plans = state.plans
        if plans is not self.plans:
            return self._record(inputs, state)
        assert self.recorded is not None, "set together with self.plans"
        assert inputs.input_ids is not None, "a step reads tokens"
        counts = [0] * len(RowCount)
        counts[RowCount.ROWS] = len(inputs.input_ids)
        out = torch.empty(counts[RowCount.ROWS], self.recorded.outputs[0].columns, dtype=self.dtype, device="cpu")
        self.recorded.plan.run(counts, [*inputs.addresses(), out.data_ptr()])
        return out

    def _record(self, inputs: PlanInputs, state: ModelState) -> Tensor:
        recorder = Recorder(inputs, state.plans.weights | self.cache_addresses)
        out = self.run_ops(recorder)
        if not state.guard.holds(self.model):  # another thread has moved a weight meanwhile: some ops read the new one
            return out
        try:
            self.plans, self.recorded = state.plans, recorder.finish({"logits": HeadOutput(out)})
        except CannotRecordError as reason:
            self.why_eager = str(reason)
        return out
