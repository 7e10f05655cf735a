"""What is remembered of one model between calls.

Everything here holds for the module tree as it was last walked: when the guard sees a change, the whole state is replaced.
"""

from __future__ import annotations

import weakref

from torch import nn

from bertfast.engine.cached_layout import LayoutCache
from bertfast.engine.cuda_graph_cache import GraphOwner
from bertfast.engine.guard import Guard
from bertfast.engine.plan_cache import PlanCache
from bertfast.runtime.locks import make_rlock

STATE = "_bertfast_state"  # where a model's __dict__ has its state
# In a global mapping, weak keys or not, the state would keep a model alive whose submodules refer to it.


class ModelState:
    """Holds no strong reference to the model, but owns the memory of its weights: a call holds its state until it is done."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self.guard = Guard(model)
        self.plans = PlanCache(self.guard.addresses())
        self.layouts = LayoutCache()
        self.cuda_graphs = GraphOwner()
        self.idle_decoder: object | None = None  # the CudaDecoder of the last generation on a GPU, for the next one

    def holds(self, model: nn.Module) -> bool:
        """Whether this is the state of `model`, not of one whose __dict__ it copied, and the model is as it was."""
        return self._model() is model and self.guard.holds(model)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copies and pickles of a model's __dict__ have None in its place."""
        return type(None), ()


_lock = make_rlock()


def state_of(model: nn.Module) -> ModelState:
    """The state as of the last `current_state`, unchecked."""
    state: ModelState | None = model.__dict__.get(STATE)
    return current_state(model) if state is None else state


def drop_state(model: nn.Module) -> None:
    model.__dict__.pop(STATE, None)


def forget_moved_weights(model: nn.Module) -> None:
    """Frees the memory in which the weights were, instead of at the next call. For a model that may have moved or converted them."""
    state: ModelState | None = model.__dict__.get(STATE)
    if state is not None and not state.holds(model):
        drop_state(model)


def current_state(model: nn.Module) -> ModelState:
    """The state of the model as it is now: a new one where its module tree or the address of a weight has changed."""
    state: ModelState | None = model.__dict__.get(STATE)
    if state is not None and state.holds(model):
        return state
    with _lock:
        known: ModelState | None = model.__dict__.get(STATE)  # dropped after the lock is released: its CUDA graphs have a lock of their own
        if known is not None and known.holds(model):
            return known
        state = model.__dict__[STATE] = ModelState(model)
        return state
