"""The steps of a generation on the CPU: recorded once, replayed token after token.

Shape letters: A sequences in a step, V vocabulary.
"""

from torch import Tensor

from bertfast.batch.packed import GraphInputs
from bertfast.cache.attention import CachedRangeAttention
from bertfast.cache.decode import DecodeCache
from bertfast.engine.decode_plan import DecodeStepPlan
from bertfast.engine.plan_inputs import PlanInputs
from bertfast.graph.encoder import encode
from bertfast.ops import Ops
from bertfast.runtime.model_types import Model


class CpuDecoder:
    keeps_cache = False  # beyond the generation

    def __init__(self, model: Model, cache: DecodeCache) -> None:
        self.model, self.cache = model, cache
        self.plan = DecodeStepPlan(model, [*cache.keys, *cache.values], self.run_ops)

    def begin(self, positions: Tensor, token_types: Tensor | None, cache_rows: Tensor, lengths: Tensor) -> None:
        """The sequences as their prompts leave them, [A] int64 each. positions: of the last token; lengths: cached tokens."""
        self.positions, self.token_types, self.cache_rows, self.lengths = positions, token_types, cache_rows, lengths

    def size_for(self, count: int) -> int:
        """Sequences that a step has if `count` of them go on."""
        return count

    def reorder(self, parents: Tensor, cache_rows: Tensor) -> None:  # [A'] int64 each
        """Sequence i goes on from sequence parents[i], in a cache row of its own."""
        self.lengths, self.positions = self.lengths.index_select(0, parents), self.positions.index_select(0, parents)
        self.token_types = None if self.token_types is None else self.token_types.index_select(0, parents)
        self.cache_rows = cache_rows

    def __call__(self, tokens: Tensor) -> Tensor:  # [A] int64 -> [A, V]
        """Reads one token of each sequence."""
        self.positions = self.positions + 1
        written, self.lengths = self.lengths, self.lengths + 1
        attention = CachedRangeAttention(self.cache_rows, None, self.lengths, self.cache.store(self.cache_rows, written))
        self._inputs = GraphInputs(tokens, None, self.token_types, self.positions, attention)
        return self.plan(
            PlanInputs(
                input_ids=tokens,
                position_ids=self.positions,
                token_type_ids=self.token_types,
                cache_rows=self.cache_rows,
                cache_positions=written,
                cache_lengths=self.lengths,
            )
        )

    def run_ops(self, O: Ops) -> Tensor:  # [A, V]
        return self.model.family.lm_logits(self.model, encode(self.model.base_model, self._inputs, O), O)

    def release(self) -> None:
        """Nothing is kept for the next generation. The plan, which calls run_ops, would be a cycle that keeps the model."""
        del self.plan
