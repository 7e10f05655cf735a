"""Recorded forwards: a replay gives the bits of the op-by-op forward, also for other sizes, and weights that move are noticed."""

import itertools
import threading

import pytest
import torch

from bertfast import _C, modeling, ops
from bertfast.engine import arena, cpu_plans, decode_plan, plan_builder, shape_cache
from bertfast.engine.model_state import state_of
from builders import small_model

HEADS = [cls.__name__ for cls in modeling.REFERENCE_CLASS]


def ids_and_mask(name, B, S, padded, seed=1, **more):
    rng = torch.Generator().manual_seed(seed)
    out = {"input_ids": torch.randint(0, 50, (B, S), generator=rng), **more}
    if padded:
        lengths = torch.randint(1, S + 1, (B, 1), generator=rng)
        lengths[0] = S
        out["attention_mask"] = (torch.arange(S) < lengths).long()
    if name == "BertForMultipleChoice":
        out = {key: value[:, None] for key, value in out.items()}
    return out


def plans(model):
    return state_of(model).plans.entries


@pytest.fixture
def op_by_op(monkeypatch):
    """Calls a model without plans."""

    def call(model, **arguments):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(cpu_plans, "plan_key", lambda call: None)
            patch.setattr(shape_cache, "lookup", lambda state, key: None)
            return model(**arguments)

    return call


@pytest.mark.parametrize("dtype", cpu_plans.PLAN_DTYPES, ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", HEADS)
def test_a_replay_has_the_bits_of_the_ops(name, padded, dtype, op_by_op):
    model = small_model(name).to(dtype)
    with torch.no_grad():
        model(**ids_and_mask(name, 1, 1, False))  # records the kind of batch without padding, from a single row
        model(**ids_and_mask(name, 3, 7, padded))
        assert {type(plan) for plan in plans(model).values()} == {plan_builder.RecordedPlan}
        assert len(plans(model)) == 1 + padded
        for B, S in [(3, 7), (1, 1), (5, 32), (2, 3)]:
            arguments = ids_and_mask(name, B, S, padded and S > 1, seed=S)
            for _ in range(2):
                got = model(**arguments)
                for key, value in op_by_op(model, **arguments).items():
                    assert got[key].dtype == value.dtype, key
                    assert torch.equal(got[key], value), (key, B, S)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = _C.get_num_threads()
    _C.set_num_threads(request.param)
    yield request.param
    _C.set_num_threads(before)


@pytest.mark.parametrize("dtype", cpu_plans.PLAN_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("BertModel", {}),
        ("BertForTokenClassification", {"token_type_ids": torch.arange(40 * 32).view(40, 32) % 2}),
        ("BertForSequenceClassification", {"position_ids": torch.arange(31, -1, -1)[None]}),
        ("BertLMHeadModel", {"input_ids": None, "inputs_embeds": torch.linspace(-1, 1, 40 * 32 * 24).view(40, 32, 24)}),
    ],
)
def test_full_batches_are_replayed_in_bands(name, more, dtype, threads, op_by_op):
    model = small_model(name, is_decoder=name == "BertLMHeadModel").to(dtype)
    for padded in (False, True):
        arguments = ids_and_mask(name, 40, 32, padded, **more)
        if arguments["input_ids"] is None:
            arguments["inputs_embeds"] = arguments["inputs_embeds"].to(dtype)
        lengths = arguments["attention_mask"].sum(1) if padded else torch.full((40,), 32)
        assert len(_C.cut_into_bands([0, *lengths.cumsum(0).tolist()], threads)) > 2
        with torch.no_grad():
            got = [model(**arguments) for _ in range(3)]
        assert {type(plan) for plan in plans(model).values()} == {plan_builder.RecordedPlan}
        for key, value in op_by_op(model, **arguments).items():
            assert all(torch.equal(each[key], value) for each in got), key


def test_a_bad_id_in_a_band_is_named(threads):
    model = small_model("BertModel")
    ids = torch.zeros(40, 32, dtype=torch.long)
    with torch.no_grad():
        good = model(ids).last_hidden_state
        ids[27, 3] = 50
        with pytest.raises(ValueError, match="input_ids: got 50, expected 0 <= input_ids < 50"):
            model(ids)
        ids[27, 3] = 0
        assert torch.equal(model(ids).last_hidden_state, good)


@pytest.mark.parametrize(
    "lengths", [[128] * 8, [45, 90, 3, 128, 17, 30, 60, 22] * 4, [512] * 4, [1] * 5000, [0, 200, 0, 200, 0, 0, 200, 200, 0]]
)
def test_bands_are_even(lengths, threads):
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cuts = _C.cut_into_bands(bounds, threads)
    if not cuts:  # too few sequences for them all
        assert len([n for n in lengths if n]) % threads
        return
    assert (cuts[0], cuts[-1]) == (0, len(lengths))
    assert cuts == sorted(set(cuts))
    sizes = [bounds[b] - bounds[a] for a, b in itertools.pairwise(cuts)]
    assert min(sizes) > 0
    assert max(sizes) <= 256 + max(lengths)


def test_what_is_not_cut_into_bands():
    for lengths in ([], [0], [1000], [120, 120], [500, 3, 3]):
        assert _C.cut_into_bands([0, *torch.tensor(lengths).cumsum(0).tolist()], 2) == []
    for bounds, threads in (([], 1), ([0, 1], 0)):
        with pytest.raises(ValueError, match="cut_into_bands"):
            _C.cut_into_bands(bounds, threads)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"token_type_ids": torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}, id="token-types"),
        pytest.param({"position_ids": torch.tensor([[4, 3, 2, 1, 0]])}, id="positions"),
        pytest.param({"input_ids": None, "inputs_embeds": torch.linspace(-1, 1, 240).view(2, 5, 24)}, id="embeddings"),
        pytest.param({"encoder_hidden_states": torch.linspace(-1, 1, 288).view(2, 6, 24)}, id="cross-attention"),
        pytest.param(
            {
                "encoder_hidden_states": torch.linspace(-1, 1, 240).view(2, 5, 24),
                "encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 1, 1]]),
            },
            id="cross-attention-of-the-same-length-padded",
        ),
    ],
)
def test_each_input_is_read_anew(more, op_by_op):
    """A plan must not keep an input of the call that recorded it."""
    decoder = "encoder_hidden_states" in more
    model = small_model("BertModel", is_decoder=decoder, add_cross_attention=decoder)
    first = ids_and_mask("BertModel", 2, 5, False, **more)
    with torch.no_grad():
        model(**first)
        second = {k: v if k == "encoder_attention_mask" or v is None else v.flip(1) for k, v in first.items()}
        got, expected = model(**second), op_by_op(model, **second)
        assert plans(model), "nothing was recorded"
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


def test_one_tensor_for_two_arguments_is_two_inputs(op_by_op):
    model = small_model("BertModel")
    ids = torch.tensor([[0, 1, 1, 0]])
    with torch.no_grad():
        model(input_ids=ids, token_type_ids=ids, position_ids=ids)
        other = {"input_ids": ids + 7, "token_type_ids": ids, "position_ids": ids + 2}
        assert torch.equal(model(**other).last_hidden_state, op_by_op(model, **other).last_hidden_state)


EMPTY = {
    "no attended token": ("BertModel", {"attention_mask": torch.zeros(2, 5, dtype=torch.long)}),
    "no attended token, logits": ("BertForTokenClassification", {"attention_mask": torch.zeros(2, 5, dtype=torch.long)}),
    "an encoder of length 0": ("BertLMHeadModel", {"encoder_hidden_states": torch.zeros(2, 0, 24)}),
    "an encoder without attended states": (
        "BertLMHeadModel",
        {"encoder_hidden_states": torch.ones(2, 3, 24), "encoder_attention_mask": torch.zeros(2, 3, dtype=torch.long)},
    ),
}


@pytest.mark.parametrize(("name", "empty"), EMPTY.values(), ids=EMPTY)
def test_a_first_call_with_an_empty_input_leaves_no_plan_that_confuses_it_with_a_result(name, empty, op_by_op):
    """Empty tensors all lie at address 0."""
    model = small_model(name, **({"is_decoder": True, "add_cross_attention": True} if name == "BertLMHeadModel" else {}))
    ids = ids_and_mask(name, 2, 5, False)
    later = {key: torch.ones(2, 3, 24) if value.dim() == 3 else value.clone() for key, value in empty.items()}
    for value in later.values():
        if value.dim() == 2:
            value[0, :2] = 1  # the other row is still masked whole
    with torch.no_grad():
        model(**ids, **empty)
        for arguments in (later, {**empty}, later):
            got, expected = model(**ids, **arguments), op_by_op(model, **ids, **arguments)
            for key, value in expected.items():
                assert torch.equal(got[key], value), key


def test_weights_that_change_in_place_are_seen_and_moved_ones_recorded_anew(op_by_op):
    model = small_model("BertForTokenClassification")
    arguments = ids_and_mask("BertForTokenClassification", 2, 6, True)
    with torch.no_grad():
        before = model(**arguments).logits
        model.bert.encoder.layer[0].output.dense.weight.data.mul_(2)
        changed = model(**arguments).logits
        assert not torch.equal(before, changed)
        assert torch.equal(changed, op_by_op(model, **arguments).logits)
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.5
        moved = model(**arguments).logits
        assert not torch.equal(moved, changed)
        assert torch.equal(moved, op_by_op(model, **arguments).logits)
        assert torch.equal(model(**arguments).logits, moved)


def test_what_no_op_does_is_not_recorded():
    model = small_model("BertModel", hidden_act="mish")
    arguments = ids_and_mask("BertModel", 2, 6, True)
    with torch.no_grad():
        first = model(**arguments).last_hidden_state
        [reason] = plans(model).values()
        assert "that no op made" in reason
        assert torch.equal(model(**arguments).last_hidden_state, first)


@pytest.mark.parametrize("dtype", cpu_plans.PLAN_DTYPES, ids=str)
def test_a_generation_replays_its_step(dtype, monkeypatch):
    model = small_model("BertLMHeadModel", is_decoder=True, use_cache=True).to(dtype)
    ids = ids_and_mask("BertLMHeadModel", 3, 5, False)["input_ids"]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made = []
    monkeypatch.setattr(
        plan_builder, "RecordedPlan", lambda *fields, kind=plan_builder.RecordedPlan: made.append(kind(*fields)) or made[-1]
    )
    replayed = model.generate(ids, **options)
    assert [recorded.dtype for recorded in made if recorded.outputs[0].name == "logits"] == [dtype]
    monkeypatch.setattr(decode_plan.DecodeStepPlan, "__call__", lambda self, inputs: self.run_ops(ops))
    assert torch.equal(replayed, model.generate(ids, **options))


@pytest.mark.parametrize(("name", "bad"), [("input_ids", 50), ("input_ids", -1), ("token_type_ids", 2), ("position_ids", 32)])
def test_an_id_out_of_range_is_refused_by_a_replay(name, bad):
    model = small_model("BertModel")
    arguments = {key: torch.zeros(2, 4, dtype=torch.long) for key in ("input_ids", "token_type_ids", "position_ids")}
    with torch.no_grad():
        good = model(**arguments).last_hidden_state
        arguments[name][1, 2] = bad
        with pytest.raises(ValueError, match=rf"{name}: got {bad}, expected 0 <= {name} < "):
            model(**arguments)
        arguments[name][1, 2] = 0
        assert torch.equal(model(**arguments).last_hidden_state, good)


def test_threads_share_a_plan(op_by_op):
    model = small_model("BertForSequenceClassification")
    batches = [ids_and_mask("BertForSequenceClassification", 1 + i, 5 + i, True, seed=i) for i in range(8)]
    expected = [op_by_op(model, **batch).logits for batch in batches]
    wrong = []

    def work(i):
        with torch.no_grad():
            wrong.extend(i for _ in range(30) if not torch.equal(model(**batches[i]).logits, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_alive_at_once_never_overlap():
    results = [arena.Buffer(rows=i % 2, columns=8 * (i % 5 + 1), first=i, last=i + i % 7) for i in range(60)]
    given = list(arena.assign_offsets(results))
    for i, (a, at) in enumerate(given):
        for b, bt in given[:i]:
            together = a.rows == b.rows and a.first <= b.last and b.first <= a.last
            assert not together or at + a.columns <= bt or bt + b.columns <= at


def test_a_first_call_without_a_real_token_leaves_no_plan(op_by_op):
    """Empty tensors have one address, 0: a plan took the indices of keys for the result of an op."""
    model = small_model("BertForMaskedLM")
    empty = {"input_ids": torch.arange(4)[None], "attention_mask": torch.zeros(1, 4, dtype=torch.long)}
    padded = {"input_ids": torch.arange(8).view(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    with torch.no_grad():
        model(**empty)
        assert not plans(model)
        for arguments in (padded, empty, padded):
            assert torch.equal(model(**arguments).logits, op_by_op(model, **arguments).logits)
    assert {type(plan) for plan in plans(model).values()} == {plan_builder.RecordedPlan}
