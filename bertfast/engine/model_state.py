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


class ModelState:
    """Holds no strong reference to the model, but owns the memory of its weights: a call holds its state until it is done."""

    def __init__(self, model: nn.Module) -> None:
        self.guard = Guard(model)
        self.plans = PlanCache(self.guard.addresses())
        self.layouts = LayoutCache()
        self.cuda_graphs = GraphOwner()
        self.idle_decoder: object | None = None  # the CudaDecoder of the last generation on a GPU, for the next one


_states: weakref.WeakKeyDictionary[nn.Module, ModelState] = weakref.WeakKeyDictionary()
_lock = make_rlock()


def state_of(model: nn.Module) -> ModelState:
    """The state as of the last `current_state`, unchecked."""
    state = _states.get(model)
    return current_state(model) if state is None else state


def forget_moved_weights(model: nn.Module) -> None:
    """Frees the memory in which the weights were, instead of at the next call. For a model that may have moved or converted them."""
    state = _states.get(model)
    if state is not None and not state.guard.holds(model):
        _states.pop(model, None)


def current_state(model: nn.Module) -> ModelState:
    """The state of the model as it is now: a new one where its module tree or the address of a weight has changed."""
    state = _states.get(model)
    if state is not None and state.guard.holds(model):
        return state
    with _lock:
        known = _states.get(model)  # dropped after the lock is released: CUDA graphs go with it, under a lock of their own
        if known is None or not known.guard.holds(model):
            _states[model] = known = ModelState(model)
        return known
