"""Every set of ops provides the op contract, and nothing in the package calls an op that the contract lacks."""

import ast
import inspect
from pathlib import Path

import pytest

import bertfast
from bertfast import ops
from bertfast.compat.dense import DroppingOps
from bertfast.engine.recorder import Recorder
from bertfast.ops import cpu, reference

PACKAGE = Path(bertfast.__file__).parent
ROOT = Path(__file__).parents[2]


def parameters(op: object) -> list[str]:
    return list(inspect.signature(op).parameters)


@pytest.mark.parametrize("name", ops.OPS)
def test_every_set_of_ops_has_it(name):
    for backend in (reference, cpu):
        given = parameters(getattr(backend, name))
        assert given[: len(parameters(getattr(ops, name)))] == parameters(getattr(ops, name))
    assert len(parameters(getattr(Recorder, name))) == 1 + len(parameters(getattr(ops, name)))
    assert callable(getattr(DroppingOps, name))


@pytest.mark.parametrize("name", ops.OPS)
def test_cuda_has_it(name):
    pytest.importorskip("triton", reason="triton is published for Linux only")
    from bertfast.ops import cuda

    assert parameters(getattr(cuda, name))[: len(parameters(getattr(ops, name)))] == parameters(getattr(ops, name))


def test_the_graph_calls_only_ops_of_the_contract():
    called = set()
    for folder in ("graph", "batch", "cache", "generation", "engine", "compat"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("O", "self.O"):
                    called.add(node.func.attr)
    assert sorted(called - set(ops.OPS)) == [], "called as O.<name>(...), and missing in bertfast/ops/protocol.py"
    assert sorted(set(ops.OPS) - called) == [], "in bertfast/ops/protocol.py, and called as O.<name>(...) nowhere in these folders"


OTHER_CPU_FILE = {"linear_concat": "linear", "int8_embed_layer_norm": "embed_layer_norm"}  # one kernel computes both
OTHER_GPU_FILE = {"linear_concat": "linear", "fp8_linear": "fp8_activation"}  # fp8_linear: torch's product, then this kernel


@pytest.mark.parametrize("name", ops.OPS)
def test_the_kernel_of_an_op_is_in_the_file_of_its_name(name):
    """An op whose name begins with fp8 has no CPU kernel, one whose name begins with int8 no GPU kernel."""
    cpu_file = ROOT / "csrc" / "cpu" / f"{OTHER_CPU_FILE.get(name, name)}.cpp"
    gpu_file = ROOT / "kernels" / "fused" / f"{OTHER_GPU_FILE.get(name, name)}.py"
    assert cpu_file.exists() != name.startswith("fp8"), f"{cpu_file}, or an entry of OTHER_CPU_FILE"
    assert gpu_file.exists() != name.startswith("int8"), f"{gpu_file}, or an entry of OTHER_GPU_FILE"
