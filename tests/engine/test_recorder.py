"""The op contract and those who fulfil it; and forwards with an op that the Recorder lacks."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import bertfast
from bertfast import ops
from bertfast.engine import decode_plan
from bertfast.engine.model_state import state_of
from bertfast.engine.plan_builder import CannotRecordError, PlanBuilder, RecordedPlan
from bertfast.engine.plan_inputs import PlanInputs
from bertfast.engine.recorder import Recorder
from bertfast.ops import OPS
from builders import small_model

OPS_FOLDER = Path(inspect.getfile(ops)).parent


def functions_of(module: object) -> set[str]:
    return {name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")}


def test_the_contract_dispatches_exactly_its_ops():
    tree = ast.parse((OPS_FOLDER / "__init__.py").read_text(encoding="utf-8"))
    backends = ("_backend", "_int8_backend", "backend")
    dispatched = set()
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
            for node in ast.walk(function):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute) and any(name in ast.unparse(called.value).split("(")[0] for name in backends):
                    dispatched.add(called.attr)
    assert dispatched - {"batch_invariant"} == set(OPS)


def test_the_recorder_defines_exactly_the_ops_of_the_contract():
    assert functions_of(Recorder) == set(OPS)
    assert not functions_of(PlanBuilder) & set(OPS)


WIDE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}  # int8 has groups of 64 inputs


@pytest.mark.parametrize("op", OPS)
def test_an_op_the_recorder_lacks_is_computed_and_no_plan_is_made(op, monkeypatch):
    monkeypatch.delattr(Recorder, op)
    monkeypatch.setattr(ops, op, lambda *args, **kwargs: (args, kwargs))
    recorder = Recorder(PlanInputs(), frozenset())
    assert getattr(recorder, op)(1, scale=2) == ((1,), {"scale": 2})
    with pytest.raises(CannotRecordError, match=f"^the op {op}, which plans do not hold$"):
        recorder.finish({})


ENCODER = (  # what a forward of BertModel calls
    "embed_layer_norm", "int8_embed_layer_norm", "linear", "linear_concat", "int8_linear", "add_layer_norm", "varlen_attention", "pack",
    "unpack",
)  # fmt: skip
DECODER = ("write_cache", "cached_attention")  # what a generation calls besides


@pytest.mark.parametrize("op", ENCODER)
def test_a_forward_with_an_op_the_recorder_lacks_runs_op_by_op(op, monkeypatch):
    model = small_model("BertModel", **WIDE)
    if op.startswith("int8"):
        bertfast.optimize(model, quantization="int8")
    given = {"input_ids": torch.arange(18).view(3, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])}
    with torch.no_grad():
        recorded = [model(**given) for _ in range(2)]
        assert [type(entry) for entry in state_of(model).plans.entries.values()] == [RecordedPlan]
        state_of(model).plans.entries = {}
        monkeypatch.delattr(Recorder, op)
        lacking = [model(**given) for _ in range(2)]
    assert list(state_of(model).plans.reasons()) == [f"the op {op}, which plans do not hold"]
    for output in lacking:
        for name, value in recorded[0].items():
            assert torch.equal(output[name], value), name


@pytest.mark.parametrize("op", DECODER)
def test_a_generation_with_an_op_the_recorder_lacks_runs_op_by_op(op, monkeypatch):
    model = small_model("BertLMHeadModel", **WIDE, is_decoder=True, use_cache=True)
    plans = []
    init = decode_plan.DecodeStepPlan.__init__
    monkeypatch.setattr(decode_plan.DecodeStepPlan, "__init__", lambda self, *args: plans.append(self) or init(self, *args))
    ids = torch.arange(1, 11).view(2, 5)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    recorded = model.generate(ids, **options)
    assert plans[0].recorded is not None
    monkeypatch.delattr(Recorder, op)
    assert torch.equal(model.generate(ids, **options), recorded)
    assert plans[1].recorded is None
    assert plans[1].why_eager == f"the op {op}, which plans do not hold"


def test_what_is_no_op_is_an_attribute_error():
    recorder = Recorder(None, frozenset())
    with pytest.raises(AttributeError, match="'Recorder' object has no attribute 'convolve'"):
        recorder.convolve  # noqa: B018
