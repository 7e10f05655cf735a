"""What another thread does to the weights while a call computes without the GIL: the call reads the memory that it was checked for."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bertfast import _C
from bertfast.engine import guard, model_state
from bertfast.engine.call import ForwardCall
from bertfast.engine.model_state import current_state
from bertfast.engine.plan_builder import RecordedPlan
from bertfast.ops import cpu
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


class Between:
    """bertfast._C with something done before the first call of one of its functions, by name."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.actions = name, iter([action])

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            next(self.actions, lambda: None)()
        return getattr(_C, name)


def move(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def test_weights_moved_while_a_guard_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = builders.pair("BertModel")
    monkeypatch.setattr(guard, "_C", Between("Pointers", lambda: move(fast)))
    made = guard.Guard(fast)
    assert made.addresses() == {memory.data_ptr() for memory in made._storages}, "it owns the memory that it watches"
    assert made.holds(fast)


class MovingDuring:
    """bertfast._C that moves a model's weights in the middle of every op of one name, and counts those whose memory outlived that."""

    def __init__(self, model: nn.Module, op: str) -> None:
        self.model, self.op = model, op
        self.outlived: list[int] = []

    def move(self) -> None:
        self.memory = own_memory(self.model)

    def __getattr__(self, name: str) -> Any:
        function = getattr(_C, name)

        def interrupted(*arguments: Any) -> Any:
            before = self.memory
            self.move()
            gc.collect()
            self.outlived.append(sum(memory() is not None for memory in before))
            return function(*arguments)

        return interrupted if name == self.op else function


@pytest.mark.parametrize(("op", "operands"), [("embed_layer_norm", 5), ("linear", 2), ("add_layer_norm", 2)])
@pytest.mark.parametrize("hidden_states", [True, False])
def test_weights_moved_during_an_op(monkeypatch: pytest.MonkeyPatch, op: str, operands: int, hidden_states: bool) -> None:
    """Op by op, as the first call of a kind and one that returns hidden states are computed."""
    _, fast = builders.pair("BertModel")
    moving = MovingDuring(fast, op)
    run_ops = ForwardCall.run_ops

    def moved_before(*arguments: Any) -> Any:
        moving.move()  # else the state owns what the first op reads
        return run_ops(*arguments)

    monkeypatch.setattr(ForwardCall, "run_ops", moved_before)
    monkeypatch.setattr(cpu, "_C", moving)
    with torch.no_grad():
        fast(**builders.batch("BertModel", fast, 2, 9, "right"), output_hidden_states=hidden_states)
    assert moving.outlived
    assert min(moving.outlived) >= operands


def test_a_call_recorded_while_weights_moved_leaves_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = builders.pair("BertModel")
    arguments = builders.batch("BertModel", fast, 2, 9, "right")
    before = [parameter.data for parameter in fast.parameters()]
    state = current_state(fast)
    monkeypatch.setattr(cpu, "_C", Between("add_layer_norm", lambda: move(fast)))
    with torch.no_grad():
        expected = fast(**arguments).last_hidden_state
        for parameter, memory in zip(fast.parameters(), before, strict=True):
            parameter.data = memory
        assert current_state(fast) is state
        assert not state.plans.entries
        assert torch.equal(fast(**arguments).last_hidden_state, expected)
    assert isinstance(next(iter(state.plans.entries.values())), RecordedPlan)


def test_a_state_forgotten_while_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread calls .to() between the check of a state and its use."""
    _, fast = builders.pair("BertModel")
    state = current_state(fast)
    answers = iter([False])

    def holds(self: guard.Guard, model: nn.Module) -> bool:
        if next(answers, True):
            model_state.drop_state(model)
            return True
        return False

    monkeypatch.setattr(guard.Guard, "holds", holds)
    assert current_state(fast) is state
