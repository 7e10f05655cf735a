"""The CPU plans of one model, by kind of call."""

from collections.abc import Iterator
from typing import NamedTuple

from bertfast.engine.plan_builder import RecordedPlan
from bertfast.runtime.locks import make_lock


class PlanKey(NamedTuple):
    """What two calls must have in common to share a plan. Sizes are not part of it."""

    first_rows_only: bool
    unpacked: bool  # no indices: rows are those of the padded batch
    embedded: bool  # inputs_embeds
    typed: bool  # token_type_ids
    causal: bool
    padding_computed: bool  # padded rows are queries, never keys
    cross_attention: bool
    pooled: bool


class PlanCache:
    """Plans, and the reasons of calls that have none. Dropped with the model's state when a weight moves."""

    def __init__(self, weights: frozenset[int]) -> None:
        self.weights = weights  # addresses of the parameters and of quantized buffers
        self.entries: dict[PlanKey, RecordedPlan | str] = {}
        self._lock = make_lock()

    def find(self, key: PlanKey) -> RecordedPlan | str | None:
        return self.entries.get(key)

    def put(self, key: PlanKey, entry: RecordedPlan | str) -> None:
        with self._lock:
            self.entries = {**self.entries, key: entry}

    def reasons(self) -> Iterator[str]:
        """Why some kinds of call run op by op."""
        return (entry for entry in self.entries.values() if isinstance(entry, str))
