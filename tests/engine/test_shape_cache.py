"""Calls of a cached layout: not laid out again, with the same bits; and all that must disable the cached layout."""

from dataclasses import replace

import pytest
import torch
from transformers.utils import ModelOutput

from bertfast import modeling
from bertfast.batch import layout
from bertfast.batch.masks import MASK_KINDS
from bertfast.engine import cached_layout, call, cpu_plans, outputs, shape_cache
from bertfast.engine.model_state import state_of
from bertfast.graph.family import BERT
from bertfast.graph.heads import HEADS
from builders import SMALL, small_model

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [cls.__name__ for cls in modeling.REFERENCE_CLASS]
B, S, V = 2, 6, SMALL["vocab_size"]


def every_input(name, seed=1, shape=(B, S), **more):
    rng = torch.Generator().manual_seed(seed)
    out = {
        "input_ids": torch.randint(0, V, shape, generator=rng),
        "token_type_ids": torch.randint(0, 2, shape, generator=rng),
        "position_ids": torch.randint(0, 32, shape, generator=rng),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        **more,
    }
    return {k: v[:, None] if name == "BertForMultipleChoice" else v for k, v in out.items() if v is not None}


@pytest.fixture
def laid_out(monkeypatch):
    """One entry for each call that was laid out."""
    made = []
    real = layout.make_batch
    monkeypatch.setattr(call, "make_batch", lambda *args: made.append(None) or real(*args))
    return made


def anew(model, **arguments):
    """The output of the call without cached layouts."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(shape_cache, "lookup", lambda state, key: None)
        return model(**arguments)


def assert_same(got, expected):
    assert type(got) is type(expected)
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("dtype", cpu_plans.PLAN_DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_repeated_call_is_not_laid_out_and_has_the_same_bits(name, dtype, grad, laid_out):
    model = small_model(name).to(dtype)
    for missing in ((), ("token_type_ids",), ("position_ids", "attention_mask"), ("token_type_ids", "position_ids", "attention_mask")):
        without = dict.fromkeys(missing)
        with torch.set_grad_enabled(grad):
            model(**every_input(name, **without))
            model(**every_input(name, **without))
            before = len(laid_out)
            first, second = (model(**every_input(name, seed, **without)) for seed in (2, 3))
        assert len(laid_out) == before
        for got, seed in ((first, 2), (second, 3)):
            assert_same(got, anew(model, **every_input(name, seed, **without)))


@pytest.mark.parametrize("kind", MASK_KINDS, ids=str)
def test_a_mask_of_any_kind_is_read_in_every_call(kind, laid_out):
    model, whole = small_model("BertModel"), every_input("BertModel", attention_mask=torch.ones(B, S, dtype=kind))
    with torch.no_grad():
        model(**whole)
        model(**whole)
        assert len(laid_out) == 1
        padded = {**whole, "attention_mask": whole["attention_mask"].clone()}
        padded["attention_mask"][1, S - 1] = 0
        got = model(**padded)
    assert len(laid_out) == 2
    assert got.last_hidden_state[1, S - 1].eq(0).all()
    assert got.last_hidden_state[:, : S - 1].ne(0).all()


def causal(model, arguments):
    model.config.is_decoder = True


def moved(model, arguments):
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5


def in_place(model, arguments):
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def no_pooler(model, arguments):
    model.pooler = None


def columns(model, arguments):  # ids whose rows are not contiguous
    arguments["input_ids"] = arguments["input_ids"].t().contiguous().t()


def narrow(model, arguments):
    arguments["input_ids"] = arguments["input_ids"].int()


def one_row_of_positions(model, arguments):
    arguments["position_ids"] = torch.arange(S)[None].flip(1)


def hidden_by_config(model, arguments):
    model.config.output_hidden_states = True


def embedded(model, arguments):
    arguments["inputs_embeds"] = torch.linspace(-1, 1, B * S * 24).view(B, S, 24)
    del arguments["input_ids"]


def four_dimensions(model, arguments):
    arguments["attention_mask"] = torch.ones(S, S, dtype=torch.bool).tril().expand(B, 1, S, S)


def mask_with_gaps(model, arguments):
    mask = torch.ones(B, 2 * S, dtype=torch.long)
    mask[:, 1::2] = 0
    arguments["attention_mask"] = mask[:, ::2]


CHANGES = [
    causal, moved, in_place, no_pooler, columns, narrow, one_row_of_positions, hidden_by_config, embedded, four_dimensions, mask_with_gaps,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_calls_counts(change):
    model, arguments = small_model("BertModel"), every_input("BertModel")
    with torch.no_grad():
        model(**arguments)
        model(**arguments)
        change(model, arguments)
        got = model(**arguments)
    fresh = (
        small_model("BertModel") if change in (columns, narrow, one_row_of_positions, embedded, four_dimensions, mask_with_gaps) else model
    )
    expected = anew(fresh, **arguments)
    assert list(got) == list(expected)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    if change in (causal, moved, in_place, one_row_of_positions, embedded, four_dimensions):
        assert not torch.equal(got.last_hidden_state, anew(small_model("BertModel"), **every_input("BertModel")).last_hidden_state)


def test_wrong_input_is_refused_beside_a_cached_layout():
    model = small_model("BertModel")
    with torch.no_grad():
        for _ in range(3):
            model(**every_input("BertModel"))
        for wrong, message in (
            ({"token_type_ids": torch.zeros(B, S + 1, dtype=torch.long)}, "token_type_ids"),
            ({"attention_mask": torch.eye(B, S + 1)}, "attention_mask"),
            ({"input_ids": torch.full((B, S), V)}, "input_ids|token id"),
            ({"input_ids": torch.zeros(B, S, dtype=torch.float32)}, "input_ids"),
            (
                {"input_ids": torch.zeros(B, 33, dtype=torch.long), "token_type_ids": None, "position_ids": None, "attention_mask": None},
                "33",
            ),
        ):
            with pytest.raises((ValueError, IndexError), match=message):
                model(**{**every_input("BertModel"), **wrong})


def test_results_of_two_calls_share_no_memory():
    model = small_model("BertModel")
    with torch.no_grad():
        found = [model(**every_input("BertModel", seed)) for seed in (1, 2, 3, 4)]
    places = {tensor.data_ptr() for output in found for tensor in output.values()}
    assert len(places) == 8


def test_a_result_of_inference_mode_does_not_make_the_next_one_an_inference_tensor():
    model = small_model("BertModel")
    with torch.inference_mode():
        assert all(model(**every_input("BertModel")).last_hidden_state.is_inference() for _ in range(3))
    assert not model(**every_input("BertModel")).last_hidden_state.is_inference()
    assert not model.requires_grad_(False)(**every_input("BertModel")).last_hidden_state.is_inference()


def test_labels_are_read_beside_a_cached_layout(laid_out):
    model, arguments = small_model("BertForTokenClassification"), every_input("BertForTokenClassification")
    labels = torch.arange(B * S).view(B, S) % 2
    model(**arguments)
    model(**arguments)
    got = model(**arguments, labels=labels)
    assert len(laid_out) == 1
    assert torch.equal(got.loss, torch.nn.functional.cross_entropy(got.logits.view(-1, 2), labels.view(-1)))
    got.loss.backward()
    assert model.classifier.weight.grad is not None


def test_the_number_of_cached_layouts_is_limited():
    model = small_model("BertModel")
    with torch.no_grad():
        for width in range(1, 31):
            for rows in (1, 2, 3):
                model(**every_input("BertModel", shape=(rows, width), position_ids=None))
    keys = list(state_of(model).layouts.entries)
    assert len(keys) == cached_layout.MAX_ENTRIES
    assert keys[-1][:2] == (3, 30)


@pytest.mark.parametrize("exchange", [getattr(torch.Tensor, "__dlpack_c_exchange_api__", None), None], ids=["dlpack", "methods"])
def test_where_parameters_lie(exchange):
    from bertfast import _C

    linear = torch.nn.Linear(4, 4)
    members = linear._parameters
    pointers = _C.Pointers([(members, "weight"), (members, "bias")], exchange)
    assert pointers.exchanged() == (0 if exchange is None else 2)
    assert pointers.addresses() == [linear.weight.data_ptr(), linear.bias.data_ptr()]
    weight, data = linear.weight, linear.weight.data
    assert pointers.hold()
    for other in (data.t(), data[:3], data[:, :3], data.flatten(), data[None], data.as_strided((4, 4), (3, 1)), data.clone()):
        weight.data = other
        assert not pointers.hold()
        weight.data = data
        assert pointers.hold()
    members["weight"] = data.view(torch.int32)  # the same place, another dtype
    assert not pointers.hold()
    members["weight"] = None
    assert not pointers.hold()
    if exchange is not None:
        for stranger in (3, "weight", data.to("meta"), data.to_sparse()):
            members["weight"] = stranger
            assert not pointers.hold()
        members["weight"] = weight
        other = _C.Pointers([(members, "weight")], 3)  # no such thing: it is done without
        assert other.exchanged() == 0
        assert other.hold()


def test_parameters_are_asked_after_through_dlpack_where_torch_has_its_exchange_api():
    """Without it the guard holds as well, at ten times the cost, and nothing else would show it."""
    model = small_model("BertModel")
    model(**every_input("BertModel"))
    wanted = len(list(model.parameters())) if hasattr(torch.Tensor, "__dlpack_c_exchange_api__") else 0
    assert state_of(model).guard._pointers.exchanged() == wanted


@pytest.mark.parametrize("name", HEADS)
def test_an_output_is_what_its_class_makes(name):
    cls = HEADS[name].output
    names = outputs.FIELDS[cls]
    for present in ([names[0]], list(names), list(names[1:]), [names[0], names[-1]]):
        values = {field: torch.tensor([float(i)]) for i, field in enumerate(names) if field in present}
        ours, expected = outputs.fast_model_output(cls, values), cls(**values)
        assert isinstance(ours, ModelOutput)
        assert type(ours) is cls
        assert list(ours.items()) == list(expected.items())
        assert list(vars(ours).items()) == list(vars(expected).items())
        assert ours.to_tuple() == expected.to_tuple()
        assert ours[0] is expected[0]
        assert ours.__reduce__()[1] == expected.__reduce__()[1]
        flat, spec = torch.utils._pytree.tree_flatten(ours)
        assert flat == list(values.values())
        assert type(torch.utils._pytree.tree_unflatten(flat, spec)) is cls
        ours[present[0]] = flat[0] + 1
        assert getattr(ours, present[0]) is ours[present[0]]


def test_positions_that_depend_on_ids_are_laid_out_every_time(laid_out, monkeypatch):
    def after_zeros(model, inputs, dropped):  # counts the ids that are not 0, as RoBERTa's rule counts tokens that are not padding
        positions = inputs.ids.ne(0).cumsum(dim=1).reshape(-1)
        return positions if dropped is None else positions.index_select(0, dropped.indices)

    family = replace(BERT, positions=after_zeros, positions_from_shape=False)
    monkeypatch.setattr(modeling.FastBertMixin, "family", family)
    model = small_model("BertModel")
    for seed in range(3):
        given = every_input("BertModel", seed, position_ids=None)
        given["input_ids"][:, seed] = 0
        expected = anew(model, **{**given, "position_ids": given["input_ids"].ne(0).cumsum(dim=1)})
        with torch.no_grad():
            assert_same(model(**given), expected)
    assert len(laid_out) == 6
