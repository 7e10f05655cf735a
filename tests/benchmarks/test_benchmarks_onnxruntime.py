"""ONNX Runtime computes what transformers does. (Its optimizer would drop the causal part of a mask.)"""

import numpy as np
import pytest

from benchmarks.suite import checks, models
from benchmarks.suite.workloads import Workload

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from benchmarks.subjects import onnxruntime_based  # noqa: E402
from benchmarks.subjects.onnxruntime_based import OnnxRuntime  # noqa: E402
from benchmarks.subjects.torch_based import Transformers  # noqa: E402

INPUTS = Workload("tiny", "padded", (8, 5), 8).inputs()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def outputs(adapter, task, cache):
    where = (models.folder("tiny", task, cache), task, cache)
    adapter.convert(*where)
    adapter.load(*where)
    return adapter.outputs(adapter.prepare(INPUTS, 0)())


@pytest.mark.parametrize("task", ["encoder", "lm"])
def test_float32_agrees_with_transformers(task, cache):
    expected = outputs(Transformers("float32", 1), task, cache)
    expected = {name: expected[name] for name in models.HEADS[task][1]}
    assert checks.check(outputs(OnnxRuntime("float32", 1), task, cache), expected, INPUTS["attention_mask"], "float32").refused is None


def test_int8_of_a_causal_model_ignores_later_tokens(cache):
    """int8 passes every check, so the outputs before a changed token are compared with those without the change."""
    adapter = OnnxRuntime("int8", 1)
    before = outputs(adapter, "lm", cache)["logits"]
    inputs = {name: array.copy() for name, array in INPUTS.items()}
    inputs["input_ids"][0, 6] += 1
    changed = np.abs(adapter.outputs(adapter.prepare(inputs, 0)())["logits"] - before)[0].max(1)
    # With dynamic quantization one token's largest value may change a tensor's scale, and all outputs a little.
    assert changed[:6].max() < 0.1 * changed[6]


def test_a_fusion_that_changes_the_outputs_raises(cache, tmp_path):
    folder = models.folder("tiny", "lm", cache)
    OnnxRuntime("float32", 1).convert(folder, "lm", cache)
    plain, fused = (OnnxRuntime._file(folder, "lm", cache, kind) for kind in ("plain", "fused"))
    model = onnx.load(fused)
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.attribute[[a.name for a in node.attribute].index("unidirectional")]
    onnx.save(model, tmp_path / "bidirectional.onnx")
    onnxruntime_based._check_fusion(plain, fused, "lm")
    with pytest.raises(RuntimeError, match="changed what the model computes: differs by"):
        onnxruntime_based._check_fusion(plain, tmp_path / "bidirectional.onnx", "lm")
