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
    assert called == set(ops.OPS)
