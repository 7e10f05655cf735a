"""When a model goes: at once where transformers' goes at once, with the garbage collector where it refers to itself."""

import copy
import functools
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import bertfast
from bertfast.compat import flax
from bertfast.engine.model_state import STATE, current_state
from bertfast.optimize import report
from tests import builders


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def in_a_list(m: Any) -> None:
    m.me = [m]


def in_a_submodule(m: Any) -> None:
    m.base_model.encoder.__dict__["owner"] = m


def in_a_closure(m: Any) -> None:
    m.base_model.encoder.layer[0].describe = lambda: m


def on_a_parameter(m: Any) -> None:
    m.base_model.embeddings.word_embeddings.weight.owner = m


def on_a_buffer(m: Any) -> None:
    m.base_model.embeddings.position_ids.owner = m


def in_the_config(m: Any) -> None:
    m.config.owner = m


def check(m: Any) -> None:
    assert m is not None


def in_a_hook(m: Any) -> None:
    m.register_forward_hook(lambda *_: check(m))


def in_a_hook_inside(m: Any) -> None:
    m.base_model.encoder.register_forward_hook(lambda *_: check(m))


def in_a_patched_forward(m: Any) -> None:
    layer = m.base_model.encoder.layer[0]
    layer.forward = functools.partial(lambda _, *args, **kwargs: type(layer).forward(layer, *args, **kwargs), m)


LINKS = (
    in_a_list,
    in_a_submodule,
    in_a_closure,
    on_a_parameter,
    on_a_buffer,
    in_the_config,
    in_a_hook,
    in_a_hook_inside,
    in_a_patched_forward,
)


def ids(m: Any, B: int = 2, S: int = 7) -> Any:
    return torch.arange(B * S).view(B, S) % m.config.vocab_size


def forward(m: Any) -> None:
    with torch.no_grad():
        m(ids(m))
        m(ids(m))  # replayed


def padded(m: Any) -> None:
    with torch.no_grad():
        m(ids(m), attention_mask=builders.mask("right", 2, 7))


def under_grad_mode(m: Any) -> None:
    m(ids(m)).logits.sum().backward()


def output_kept(m: Any) -> None:
    with torch.no_grad():
        m.last = m(ids(m), output_hidden_states=True)


def gradient_kept(m: Any) -> None:  # a cycle: the gradient of a fast call is recomputed on the model
    m.last = m(ids(m))
    assert m.last.logits.requires_grad


def inner_model(m: Any) -> None:
    with torch.no_grad():
        m(ids(m))
        m.base_model(ids(m))


def greedy(m: Any) -> None:
    m.generate(ids(m), max_new_tokens=3, do_sample=False)


def beams(m: Any) -> None:
    m.generate(ids(m), max_new_tokens=3, num_beams=2, do_sample=False)


def cache_kept(m: Any) -> None:
    with torch.no_grad():
        m.last = m(ids(m), use_cache=True)
        m(ids(m)[:, :1], past_key_values=m.last.past_key_values, use_cache=True)


def training(m: Any) -> None:
    m.train()(ids(m)).logits.sum().backward()


CALLS = (forward, padded, under_grad_mode, output_kept, gradient_kept, inner_model, greedy, beams, cache_kept, training)


def stock() -> Any:
    return builders.pair("BertLMHeadModel", is_decoder=True, use_cache=True, **builders.SMALL)[0]


def ours() -> Any:
    return builders.pair("BertLMHeadModel", is_decoder=True, use_cache=True, **builders.SMALL)[1]


def optimized() -> Any:
    m = bertfast.optimize(stock())
    assert report(m).replaced
    return m


def int8() -> Any:
    return bertfast.optimize(stock(), quantization="int8")


def name_of(each: Callable[..., Any]) -> str:
    return each.__name__


def alive_after(make: Callable[[], Any], call: Callable[[Any], None], link: Callable[[Any], None] | None = None) -> "weakref.ref[Any]":
    m = make()
    if link is not None:
        link(m)
    call(m)
    return weakref.ref(m.base_model)


@pytest.mark.parametrize(
    ("make", "link", "call"),
    [
        *((ours, link, forward) for link in LINKS),
        *((ours, in_a_submodule, call) for call in CALLS if call is not forward),
        *((make, in_a_list, call) for make in (optimized, int8) for call in (inner_model, greedy)),
    ],
    ids=name_of,
)
def test_a_model_that_refers_to_itself_goes_with_the_collector(make: Any, link: Any, call: Any) -> None:
    alive = alive_after(make, call, link)
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("make", "call"),
    [
        *((ours, call) for call in CALLS if call is not gradient_kept),
        *((make, call) for make in (optimized, int8) for call in (forward, greedy)),
    ],
    ids=name_of,
)
def test_any_other_model_goes_at_once(make: Any, call: Any) -> None:
    assert alive_after(stock, call)() is None, "as transformers' does"
    assert alive_after(make, call)() is None


@pytest.mark.parametrize("kept", ["the model", "its weights"])
def test_a_compat_model_that_refers_to_itself_goes(kept: str) -> None:
    m: Any = flax.FlaxBertModel(builders.bert_config(builders.SMALL))
    m.last = m(np.arange(14).reshape(2, 7))
    if kept == "its weights":
        m.leaves = m.params
    m.me = [m]
    alive = weakref.ref(m)
    del m
    gc.collect()
    assert alive() is None


class WithItsOwnState(bertfast.BertLMHeadModel):
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def copied_dict(m: Any) -> Any:  # as nn.DataParallel does
    copied = type(m).__new__(type(m))
    copied.__dict__ = m.__dict__.copy()
    return copied


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "__dict__": copied_dict}


@pytest.mark.parametrize("own_state", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_a_state_of_its_own(how: str, own_state: bool) -> None:
    m = ours()
    if own_state:
        m.__class__ = WithItsOwnState
    with torch.no_grad():
        expected = m(ids(m)).logits
        copied = COPIES[how](m)
        assert torch.equal(copied(ids(m)).logits, expected)
        assert current_state(copied) is not current_state(m)
        assert torch.equal(m(ids(m)).logits, expected)
        copied.base_model.encoder.layer[0] = copy.deepcopy(copied.base_model.encoder.layer[1])
        changed = copied(ids(m)).logits
        assert not torch.equal(changed, expected)
        shared = how in ("copy", "__dict__")  # the submodules are
        assert torch.equal(m(ids(m)).logits, changed if shared else expected)


def test_a_copy_of_a_model_that_went_is_not_taken_for_it() -> None:
    """The address of a model may be another's later; its state must not be."""
    m = ours()
    with torch.no_grad():
        m(ids(m))
        copied = copied_dict(m)
        state, owner = current_state(m), weakref.ref(m)
        del m
        assert owner() is None
        assert copied.__dict__[STATE] is state
        assert current_state(copied) is not state


def test_a_call_leaves_nothing_in_pickles() -> None:
    m = ours()
    before = pickle.dumps(m)
    forward(m)
    assert pickle.dumps(m) == before
    assert vars(copy.deepcopy(m)).keys() == vars(m).keys() - {STATE}
    file = io.BytesIO()
    torch.save(vars(m), file)  # a reader of __dict__
    assert b"model_state" not in file.getvalue()


def test_restore_leaves_nothing() -> None:
    m = stock()
    before = vars(m).copy()
    forward(bertfast.optimize(m))
    bertfast.restore(m)
    assert vars(m).keys() == before.keys()


def test_the_collector_sees_through_the_guard() -> None:
    m = ours()
    guard = current_state(m).guard
    for native in (guard._watch, guard._pointers):
        seen = gc.get_referents(native)
        assert gc.is_tracked(native)
        assert sum(each is m.base_model.embeddings.word_embeddings._parameters for each in seen) >= 1
        assert not any(each is m or each is m.__dict__ for each in seen)
