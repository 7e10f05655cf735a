"""ONNX Runtime: eager attention exported, fused by its BERT optimizer where that is faster on CPUs, int8 by dynamic quantization."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine.identity import this_machine
from benchmarks.subjects.adapter import Adapter, Arrays, converted, name_of, once
from benchmarks.subjects.export import example, named, quiet, write_onnx
from benchmarks.subjects.text import Batch, Embedder
from benchmarks.suite.checks import check
from benchmarks.suite.models import HEADS


class OnnxRuntime(Adapter):
    def convert(self, folder: Path, task: str, cache: Path) -> None:
        plain = once(self._file(folder, task, cache, "plain"), lambda path: write_onnx(folder, task, path))
        # The fused int8 Attention is slower: MiniLM takes 15% longer with it (version 1.32, 128 tokens).
        attention = self.dtype != "int8"
        kind = "fused" if attention else "fused-but-attention"
        fused = once(self._file(folder, task, cache, kind), lambda path: _fuse(plain, folder, task, path, attention))
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
        return converted(cache, __file__, "onnxruntime", "torch", "transformers") / f"{name_of(folder)}-{task}-{kind}.onnx"


def _fuse(plain: Path, folder: Path, task: str, target: Path, attention: bool) -> None:
    """Runs its BERT optimizer without the fusions that are slower on CPUs."""
    from onnx import helper
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions
    from transformers import BertConfig

    config = BertConfig.from_pretrained(folder)
    options = FusionOptions("bert")
    options.enable_attention = attention
    # With SkipLayerNormalization MiniLM takes 6 to 9% longer than with Add and LayerNormalization (version 1.32).
    # EmbedLayerNormalization is off too: it tells a loading session the shapes, which then fuses SkipLayerNormalization.
    options.enable_skip_layer_norm = False
    options.enable_embed_layer_norm = False
    with quiet():
        model = optimizer.optimize_model(
            str(plain),
            model_type="bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
            optimization_options=options,
            use_gpu=False,
        )
    fused = model.get_fused_operator_statistics()["Attention"]
    if attention and fused != config.num_hidden_layers:
        raise RuntimeError(f"ONNX Runtime's BERT optimizer fused {fused} of {config.num_hidden_layers} attentions, expected all")
    if config.is_decoder:
        # The fusion keeps attention_mask but drops the causal part of the mask; the attribute restores it.
        for node in model.get_nodes_by_op_type("Attention"):
            if not any(attribute.name == "unidirectional" for attribute in node.attribute):
                node.attribute.append(helper.make_attribute("unidirectional", 1))
    model.save_model_to_file(str(target))
    _check_fusion(plain, target, task)


def _check_fusion(plain: Path, fused: Path, task: str) -> None:
    """RuntimeError if the fusion changed the outputs. The check of int8, which is made from this file, would not notice."""
    import onnxruntime

    inputs = example()
    expected, found = (
        named(HEADS[task][1])(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs))
        for path in (plain, fused)
    )
    result = check(found, expected, inputs["attention_mask"], "float32")
    if result.refused:
        raise RuntimeError(f"ONNX Runtime's BERT optimizer changed what the model computes: {result.refused}")


def _quantize(fused: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            fused,
            target,
            weight_type=QuantType.QInt8,
            reduce_range=not {"AVX-512 VNNI", "AVX-VNNI"} & set(this_machine().isa),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # shape inference fails at the fused ops
        )
