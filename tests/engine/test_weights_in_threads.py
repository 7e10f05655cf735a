"""What another thread does to the weights while a call computes without the GIL: the call reads the memory that it was checked for."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bertfast import _C
from bertfast.engine.model_state import current_state
from tests import builders


class Memory(np.ndarray):
    """Memory of a weight, whose end can be watched."""


def own_memory(model: nn.Module) -> list["weakref.ref[Memory]"]:
    """Moves every weight to memory of its own; returns what tells whether it lives."""
    alive = []
    for parameter in model.parameters():
        memory = parameter.detach().numpy().copy().view(Memory)
        alive.append(weakref.ref(memory))
        parameter.data = torch.from_numpy(memory)
    return alive


def replace_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, 3.0)


def assign(model: nn.Module) -> None:
    model.load_state_dict({name: torch.full_like(value, 3.0) for name, value in model.state_dict().items()}, assign=True)


def convert(model: nn.Module) -> None:
    model.to(torch.float64).to(torch.float32)
    replace_data(model)


class Interrupted:
    """A plan that is replayed after another thread has changed the model, called it and collected garbage."""

    def __init__(self, plan: _C.Plan, between: Any) -> None:
        self.plan, self.between = plan, between

    def run(self, counts: list[int], slots: list[int]) -> None:
        between, self.between = self.between, lambda: None
        between()
        self.plan.run(counts, slots)


@pytest.mark.parametrize("change", [replace_data, assign, convert])
@pytest.mark.parametrize("cached_layout", [True, False])
def test_weights_replaced_during_a_replay(monkeypatch: pytest.MonkeyPatch, change: Any, cached_layout: bool) -> None:
    _, fast = builders.pair("BertModel")
    arguments = builders.batch("BertModel", fast, 2, 9, "none" if cached_layout else "right")
    alive = own_memory(fast)
    held: list[list[bool]] = []

    def between() -> None:
        change(fast)
        with torch.no_grad():
            fast(**arguments)  # the new weights have a state of their own now
        gc.collect()
        held.append([memory() is not None for memory in alive])

    with torch.no_grad():
        expected: Tensor = fast(**arguments).last_hidden_state
        assert torch.equal(fast(**arguments).last_hidden_state, expected)
        state = current_state(fast)
        interrupt_plans(monkeypatch, state, between)
        del state
        assert torch.equal(fast(**arguments).last_hidden_state, expected), "the weights that the call was checked for"
        assert held, "a plan was replayed"
        assert all(held[0])
        changed = fast(**arguments).last_hidden_state
        assert not torch.equal(changed, expected)
    gc.collect()
    assert not any(memory() is not None for memory in alive), "freed once nothing reads it"


def interrupt_plans(monkeypatch: pytest.MonkeyPatch, state: Any, between: Any) -> None:
    """Replaces the plans of a state by interrupted ones."""
    from dataclasses import replace

    def interrupted(entry: Any) -> Any:
        return replace(entry, plan=Interrupted(entry.plan, between))

    state.plans.entries = {key: interrupted(entry) for key, entry in state.plans.entries.items()}
    state.layouts.entries = {key: interrupted(entry) for key, entry in state.layouts.entries.items()}


def test_a_model_that_moves_frees_its_weights_at_once() -> None:
    _, fast = builders.pair("BertModel")
    alive = own_memory(fast)
    with torch.no_grad():
        fast(**builders.batch("BertModel", fast, 2, 9, "right"))
    nn.Sequential(fast).to(torch.bfloat16)
    gc.collect()
    assert not any(memory() is not None for memory in alive)
