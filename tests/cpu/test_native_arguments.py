"""The native module refuses numbers that it cannot have been meant to get: activations, operands and sizes of a plan."""

import pytest
import torch

from bertfast.runtime.native import _C

NONE = (_C.REF_NONE, 0, 0)
BEYOND = max(_C.ACTIVATIONS.values()) + 1


def test_activations_are_numbered_without_gaps():
    assert sorted(set(_C.ACTIVATIONS.values())) == list(range(BEYOND))
    assert _C.ACTIVATIONS["gelu_new"] == _C.ACTIVATIONS["gelu_pytorch_tanh"] != _C.ACTIVATIONS["gelu"]


@pytest.mark.parametrize("activation", [-1, BEYOND])
def test_unknown_activation_is_refused(activation):
    expected = rf"linear: activation: got {activation}, expected 0 to {BEYOND - 1}"
    x = torch.zeros(64).data_ptr()
    with pytest.raises(ValueError, match=expected):
        _C.linear(x, [(x, 0, 1)], activation, x, 1, 1)
    with pytest.raises(ValueError, match=f"int8_{expected}"):
        _C.int8_linear(x, [(x, x, 0, 1)], activation, x, 1, 1)
    plan = _C.Plan()
    with pytest.raises(ValueError, match=expected):
        plan.linear(x=NONE, x_stride=1, parts=[(NONE, NONE, 1)], activation=activation, out=NONE, rows=0, inputs=1)
    with pytest.raises(ValueError, match=f"int8_{expected}"):
        plan.int8_linear(x=NONE, parts=[(NONE, NONE, NONE, 1)], activation=activation, out=NONE, quantized=NONE, rows=0, inputs=1)
    assert len(plan) == 0


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ((-1, 0, 0), "kind of an operand: got -1, expected 0 to 3"),
        ((4, 0, 0), "kind of an operand: got 4, expected 0 to 3"),
        ((_C.REF_BUFFER, 1, 0), "an operand is buffer 1, expected one of the 1 that add_buffer returned"),
        ((_C.REF_SLOT, -1, 0), "an operand is slot -1, expected 0 or more"),
    ],
)
def test_operand_that_a_plan_does_not_have_is_refused(ref, message):
    plan = _C.Plan()
    plan.add_buffer(0, 0, 8)
    with pytest.raises(ValueError, match=message):
        plan.pack(x=ref, indices=NONE, out=NONE, from_rows=0, rows=0, columns=8)
    assert len(plan) == 0


def test_replay_without_all_counts_and_slots_is_refused():
    x, indices, out = torch.arange(6.0).view(3, 2), torch.tensor([2, 0]), torch.zeros(2, 2)
    plan = _C.Plan()
    plan.pack(x=(_C.REF_SLOT, 0, 0), indices=(_C.REF_SLOT, 1, 0), out=(_C.REF_SLOT, 2, 0), from_rows=1, rows=0, columns=2)
    slots = [t.data_ptr() for t in (x, indices, out)]
    with pytest.raises(ValueError, match="plan: got 1 row counts, expected 2"):
        plan.run([2], slots)
    with pytest.raises(ValueError, match="plan: got 2 slots, expected 3"):
        plan.run([2, 3], slots[:2])
    plan.run([2, 3], slots)
    assert out.tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_int8_op_in_a_plan_of_bfloat16_is_refused():
    plan = _C.Plan(bfloat16=True)
    with pytest.raises(ValueError, match="an int8 op came, but the plan is of bfloat16"):
        plan.int8_quantize(x=NONE, x_stride=1, out=NONE, rows=0, inputs=1)
    with pytest.raises(ValueError, match="an int8 op came, but the plan is of bfloat16"):
        plan.add_layer_norm(
            x=NONE, residual=NONE, weight=NONE, bias=NONE, eps=1e-12, out=NONE, quantized=(_C.REF_SLOT, 0, 0), rows=0, hidden=1
        )


@pytest.mark.parametrize("inputs", [-1, -(2**63), 2**41])
def test_a_row_of_impossible_length_has_no_size(inputs):
    with pytest.raises(ValueError, match=f"int8_row_bytes: inputs: got {inputs}, expected 0 to "):
        _C.int8_row_bytes(inputs)
