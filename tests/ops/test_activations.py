"""The activation table: complete on every backend, and what `bertfast info` and the graph go by."""

import re
from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2CLS, ACT2FN

from bertfast import _C, ops
from bertfast.cli import info_model
from bertfast.ops import cpu
from bertfast.ops.activations import ACTIVATIONS, fused_config_name, fused_name

ROOT = Path(__file__).parents[2]
FUSED = {  # config.hidden_act -> the contract's name
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def test_config_names_of_the_table():
    assert {name: fused for name in ACT2CLS if (fused := fused_config_name(name)) is not None} == FUSED
    assert set(FUSED.values()) == set(ACTIVATIONS) == set(ops.ACTIVATIONS)
    assert fused_config_name("no such activation") is None


@pytest.mark.parametrize("hidden_act", sorted(set(ACT2CLS) - {"xielu"}))  # xielu logs that its CUDA package is missing
def test_the_graph_fuses_what_info_says(hidden_act):
    assert fused_name(ACT2FN[hidden_act]) == FUSED.get(hidden_act)
    rows = list(info_model.activation_rows(hidden_act))
    assert rows == [] if hidden_act in FUSED else [row[1] for row in rows] == [hidden_act]


@pytest.mark.parametrize("hidden_act", FUSED)
def test_a_fused_activation_is_what_transformers_computes(hidden_act):
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[FUSED[hidden_act]].reference(x), ACT2FN[hidden_act](x), rtol=1e-12, atol=1e-12)


def test_a_subclass_or_another_module_is_not_fused():
    class Mine(torch.nn.ReLU):
        pass

    assert fused_name(torch.nn.ReLU()) == "relu"
    assert fused_name(Mine()) is None
    assert fused_name(torch.relu) is None


def test_the_cpu_kernels_have_every_entry_and_no_other():
    assert set(_C.ACTIVATIONS) == {"none", *(row.cpp for row in ACTIVATIONS.values())}
    headers = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.h"))
    [enum] = re.findall(r"enum class Activation[^{]*\{([^}]*)\}", headers)
    *names, last = [name.strip() for name in enum.split(",") if name.strip()]
    assert last == "count"  # not an activation: how many there are
    assert set(_C.ACTIVATIONS.values()) == set(range(len(names))), "an enum value without an entry, or the reverse"
    assert {cpu.activation_code(name) for name in (None, *ACTIVATIONS)} == set(range(len(names)))


def test_the_triton_kernels_have_every_entry_and_no_other():
    kernels = pytest.importorskip("bertfast.kernels.math", reason="triton is published for Linux only")
    assert {row.triton for row in ACTIVATIONS.values()} == kernels.ACTIVATIONS
    assert {row.triton for row in ACTIVATIONS.values()} == set(ACTIVATIONS), "ops.cuda passes the contract's name on"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_cpu_kernel_and_the_reference_agree(activation):
    x = torch.linspace(-6, 6, 501)[:, None]
    got, want = (O.linear(x, torch.ones(1, 1), None, activation) for O in (ops, ops.reference))
    torch.testing.assert_close(got, want)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"linear: activation 'swish', expected one of \[.*'gelu'"):
        ops.linear(torch.ones(1, 1), torch.ones(1, 1), None, "swish")
