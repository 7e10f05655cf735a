"""Edits of a model that change no parameter: computed as transformers computes the same edited model, before and after a first call."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import builders
from bertfast.ops.activations import fused_name
from compare import assert_agree

pytestmark = pytest.mark.usefixtures("one_thread")


def attention(model: Any) -> Any:
    return model.base_model.encoder.layer[1].attention.self


def edit_positions(model: Any) -> None:
    model.base_model.embeddings.position_ids.copy_(model.base_model.embeddings.position_ids.flip(1))


def replace_positions(model: Any) -> None:
    embeddings = model.base_model.embeddings
    embeddings.position_ids = embeddings.position_ids.flip(1)


def edit_types(model: Any) -> None:
    model.base_model.embeddings.token_type_ids.fill_(1)


def replace_types(model: Any) -> None:
    model.base_model.embeddings.token_type_ids = torch.ones_like(model.base_model.embeddings.token_type_ids)


def halve_heads(model: Any) -> None:
    for layer in model.base_model.encoder.layer:
        layer.attention.self.attention_head_size *= 2
        layer.attention.self.num_attention_heads //= 2


EDITS: dict[str, Callable[[Any], object]] = {
    "scaling": lambda model: setattr(attention(model), "scaling", 1.0),
    "num_attention_heads": lambda model: setattr(attention(model), "num_attention_heads", 1),
    "attention_head_size": halve_heads,
    "LayerNorm.eps": lambda model: setattr(model.base_model.encoder.layer[0].output.LayerNorm, "eps", 0.5),
    "embedding LayerNorm.eps": lambda model: setattr(model.base_model.embeddings.LayerNorm, "eps", 0.5),
    "position_ids in place": edit_positions,
    "position_ids replaced": replace_positions,
    "token_type_ids in place": edit_types,
    "token_type_ids replaced": replace_types,
    "spectral_norm": lambda model: nn.utils.spectral_norm(model.base_model.encoder.layer[0].output.dense),
    "parametrized spectral_norm": lambda model: nn.utils.parametrizations.spectral_norm(model.base_model.encoder.layer[0].output.dense),
}


@pytest.mark.parametrize(
    ("head", "decoder"),
    [
        *((head, {}) for head in builders.HEADS),
        *((head, {"is_decoder": True, "add_cross_attention": True}) for head in builders.DECODERS),
    ],
    ids=[*builders.HEADS, *(f"{head}-decoder" for head in builders.DECODERS)],
)
def test_modules_names_what_the_graph_computes_in_place_of(head: str, decoder: dict[str, bool]) -> None:
    """Another module in the place of one that MODULES lacks would not be noticed."""
    model = builders.small_model(head, **decoder)
    for name, module in model.named_modules():
        left_out = module in (model, model.base_model) or isinstance(module, nn.Dropout) or fused_name(module) is not None
        last = name.rpartition(".")[2]
        assert left_out or ("<index>" if last.isdecimal() else last) in model.family.modules, name


REPLACED: dict[str, tuple[str, Callable[[Any], object]]] = {
    "cls": ("BertForMaskedLM", lambda model: setattr(model, "cls", nn.Identity())),
    "output": ("BertModel", lambda model: setattr(model.encoder.layer[1], "output", nn.Bilinear(61, 36, 36))),
    "attention.output": ("BertModel", lambda model: setattr(model.encoder.layer[1].attention, "output", nn.Bilinear(36, 36, 36))),
}


@pytest.mark.parametrize("called", [False, True], ids=["before the first call", "after it"])
@pytest.mark.parametrize("name", REPLACED)
def test_a_module_of_torch_in_the_place_of_a_part_is_run(name: str, called: bool) -> None:
    head, replace = REPLACED[name]
    original, fast = builders.pair(head)
    arguments = builders.batch(head, fast, 3, 11, "right")
    with torch.no_grad():
        if called:
            fast(**arguments)
        for model in (original, fast):
            torch.manual_seed(2)
            replace(model)
        assert_agree(fast(**arguments), original(**arguments), arguments["attention_mask"])


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("called", [False, True], ids=["before the first call", "after it"])
@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM"])
def test_edit(head: str, called: bool, edit: Callable[[Any], object]) -> None:
    original, fast = builders.pair(head, num_attention_heads=2)
    arguments = builders.batch(head, fast, 3, 11, "right")
    del arguments["token_type_ids"]
    with torch.no_grad():
        before = original(**arguments)
        if called:
            fast(**arguments), fast(**arguments)
        for model in (original, fast):
            torch.manual_seed(0)  # spectral_norm draws a vector
            edit(model)
        expected = original(**arguments)
        for kind in ("right", "none"):  # another kind of call, of which nothing is recorded
            for _ in range(2):
                given = {"input_ids": arguments["input_ids"], **({} if kind == "none" else arguments)}
                assert_agree(fast(**given), original(**given), given.get("attention_mask"))
    changes = edit is not EDITS["num_attention_heads"]  # which no forward reads
    assert changes == (not torch.equal(next(iter(before.values())), next(iter(expected.values()))))


def test_an_edit_taken_back_is_fast_again() -> None:
    from bertfast.engine import eligibility

    _, fast = builders.pair("BertModel")
    arguments = builders.batch("BertModel", fast, 3, 11, "right")
    fast(**arguments)
    scaling = attention(fast).scaling
    attention(fast).scaling = 1.0
    assert "scaling" in (eligibility.why_reference(fast, arguments) or "")
    attention(fast).scaling = scaling
    assert eligibility.why_reference(fast, arguments) is None


@contextmanager
def patched(kind: type, name: str, value: object) -> Iterator[None]:
    before = vars(kind)[name]
    setattr(kind, name, value)
    try:
        yield
    finally:
        setattr(kind, name, before)


def doubled(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return 2 * forward(self, x)

    run.__module__ = forward.__module__  # as functools.wraps leaves it
    return run


@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm, nn.Embedding], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("called", [False, True], ids=["before the first call", "after it"])
def test_torchs_own_class_patched(kind: type, called: bool) -> None:
    original, fast = builders.pair("BertModel")
    arguments = builders.batch("BertModel", fast, 3, 11, "right")
    with torch.no_grad():
        if called:
            fast(**arguments)
        plain = original(**arguments)
        with patched(kind, "forward", doubled(kind.forward)):  # type: ignore[attr-defined]  # a module's
            expected = original(**arguments)
            assert_agree(fast(**arguments), expected, arguments["attention_mask"])
            assert_agree(copy.deepcopy(fast)(**arguments), expected, arguments["attention_mask"])
        assert_agree(fast(**arguments), plain, arguments["attention_mask"])


class Negated(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return -out if func is nn.functional.layer_norm else out


def test_a_torch_function_mode_sees_every_op() -> None:
    original, fast = builders.pair("BertModel")
    arguments = builders.batch("BertModel", fast, 3, 11, "none")
    with torch.no_grad():
        fast(**arguments)
        with Negated():
            assert_agree(fast(**arguments), original(**arguments))


def test_a_default_device_is_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    from bertfast.engine import eligibility

    _, fast = builders.pair("BertModel")
    with torch.device("cpu"):
        assert eligibility.why_reference(fast, {}) is None


def set_is_causal(model: Any) -> None:
    attention(model).is_causal = not attention(model).is_causal


def set_is_decoder(model: Any) -> None:
    model.config.is_decoder = not model.config.is_decoder


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("edit", [set_is_causal, set_is_decoder])
@pytest.mark.parametrize("called", [False, True], ids=["before the first call", "after it"])
@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
def test_causality_edited_after_the_model_was_built(decoder: bool, called: bool, edit: Callable[[Any], None], implementation: str) -> None:
    """The attention modules and the config may then disagree: transformers' sdpa asks the one without a mask, and the other with one."""
    original, fast = builders.pair("BertForMaskedLM", is_decoder=decoder, attn_implementation=implementation)
    with torch.no_grad():
        for kind in ("none", "right", "left"):
            arguments = builders.batch("BertForMaskedLM", fast, 3, 11, kind)
            if called:
                fast(**arguments)
        for model in (original, fast):
            edit(model)
        for kind in ("none", "right", "left"):
            arguments = builders.batch("BertForMaskedLM", fast, 3, 11, kind)
            for _ in range(2):
                assert_agree(fast(**arguments), original(**arguments))
