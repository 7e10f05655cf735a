"""ONNX Runtime: exported with eager attention, fused by its own BERT optimizer, quantized dynamically for int8."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import this_machine
from benchmarks.models import HEADS
from benchmarks.subjects.base import Adapter, Arrays, once
from benchmarks.subjects.export import named, quiet, write_onnx
from benchmarks.subjects.text import Batch, Embedder


class OnnxRuntime(Adapter):
    def convert(self, folder: Path, task: str, cache: Path) -> None:
        plain = once(self._file(folder, task, cache, "plain"), lambda path: write_onnx(folder, task, path))
        fused = once(self._file(folder, task, cache, "fused"), lambda path: _fuse(plain, folder, path))
        if self.dtype == "int8":
            once(self._file(folder, task, cache, "int8"), lambda path: _quantize(fused, path))

    def load(self, folder: Path, task: str, cache: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        path = self._file(folder, task, cache, "int8" if self.dtype == "int8" else "fused")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._folder, self._names = folder, HEADS[task][1]

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        session = self._session
        if "sentences" in inputs:
            embed = Embedder(self._folder, self._hidden)
            texts = inputs["sentences"].tolist()
            return lambda: embed(texts)
        return lambda: session.run(None, inputs)

    def outputs(self, result: Any) -> Arrays:
        return {"embeddings": result} if isinstance(result, np.ndarray) else named(self._names)(result)

    def _hidden(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        for batch in batches:
            yield self._session.run(None, batch.inputs)[0]

    @staticmethod
    def _file(folder: Path, task: str, cache: Path, kind: str) -> Path:
        from importlib.metadata import version

        name = folder.name if folder.parent.name == "models" else "minilm"
        made_by = f"onnxruntime-{version('onnxruntime')}-torch-{version('torch')}-transformers-{version('transformers')}"
        return cache / made_by / f"{name}-{task}-{kind}.onnx"


def _fuse(plain: Path, folder: Path, target: Path) -> None:
    from onnxruntime.transformers import optimizer
    from transformers import BertConfig

    config = BertConfig.from_pretrained(folder)
    with quiet():
        model = optimizer.optimize_model(
            str(plain), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, use_gpu=False
        )
    fused = model.get_fused_operator_statistics()
    if not config.is_decoder and fused["Attention"] != config.num_hidden_layers:
        raise RuntimeError(
            f"its BERT optimizer fused {fused['Attention']} attentions of {config.num_hidden_layers}: it would be timed below its speed"
        )
    model.save_model_to_file(str(target))


def _quantize(fused: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            fused,
            target,
            weight_type=QuantType.QInt8,
            reduce_range=not {"AVX-512 VNNI", "AVX-VNNI"} & set(this_machine().isa),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # shape inference does not know the fused ops
        )
