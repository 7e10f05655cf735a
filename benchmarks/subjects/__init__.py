"""Who is measured: one adapter a library, each in a process of its own, set up for speed as its own documentation advises."""

import os
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec

_ALL = ("encoder", "pretraining", "lm", "tokens", "qa")


@dataclass(frozen=True)
class Spec:
    """`factory` is module:Class of the adapter, `options` its arguments. `modules` must be importable, or the subject is listed as
    absent. `left_out`: why it takes no part when nothing is asked for; said below the tables. `environment`: the variable that names the
    Python of another environment, for libraries that cannot live in this one."""

    name: str
    factory: str
    dtype: str
    modules: tuple[str, ...]
    setup: str
    tasks: tuple[str, ...] = _ALL
    kinds: tuple[str, ...] = ("call", "cold", "memory", "steps")
    options: tuple[tuple[str, str], ...] = ()
    left_out: str = ""
    ours: bool = False
    environment: str = ""
    twin: str = ""  # the subject that this one is once more
    arithmetic: str = ""  # what it computes in, where that is not `dtype`, which decides how exact it must be

    @property
    def rank(self) -> str:
        """Subjects of one rank compete."""
        return self.arithmetic or self.dtype

    @property
    def python(self) -> str:
        """The interpreter that its worker runs in."""
        return os.environ.get(self.environment) or sys.executable

    @property
    def missing(self) -> str | None:
        """What is not installed, or None."""
        if self.environment:
            named = os.environ.get(self.environment)
            if not named:
                return f"{self.environment} names no Python (benchmarks/README.md says how to make its environment)"
            return None if os.access(named, os.X_OK) else f"{self.environment}={named}: nothing there that can be run"
        absent = [module for module in self.modules if find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def matches(self, pattern: str) -> bool:
        """onnxruntime means both onnxruntime and onnxruntime-int8; transformers means all that start so."""
        return fnmatchcase(self.name, pattern) or self.name.startswith(f"{pattern}-")


REFERENCE = "transformers"  # what all ratios are to; sentence-transformers where text is embedded
EMBED_REFERENCE = "sentence-transformers"
_TORCH = (*_ALL, "generate")
_TRANSFORMERS = "benchmarks.subjects.torch_based:Transformers"
_BERTFAST = "benchmarks.subjects.torch_based:Bertfast"
_ONNXRUNTIME = "benchmarks.subjects.onnxruntime_based:OnnxRuntime"
_OPENVINO = "benchmarks.subjects.openvino_based:OpenVino"
_CTRANSLATE2 = "benchmarks.subjects.ctranslate2_based:CTranslate2"
_EXPORTED = (*_ALL, "embed")


def _options(**options: str) -> tuple[tuple[str, str], ...]:
    return tuple(options.items())


SUBJECTS = {
    spec.name: spec
    for spec in (
        Spec("transformers", _TRANSFORMERS, "float32", ("torch", "transformers"), "sdpa, inference mode", _TORCH),
        Spec(
            "sentence-transformers",
            "benchmarks.subjects.torch_based:SentenceTransformers",
            "float32",
            ("sentence_transformers",),
            "SentenceTransformer.encode, batches of 32 (it sorts by length itself)",
            ("embed",),
            ("call",),
        ),
        Spec(
            "bertfast",
            _BERTFAST,
            "float32",
            ("bertfast",),
            "inference mode, huge_pages of a copy.deepcopy; Embedder for text",
            (*_TORCH, "embed"),
            ours=True,
        ),
        Spec(
            "bertfast.optimize",
            "benchmarks.subjects.torch_based:SentenceTransformers",
            "float32",
            ("bertfast", "sentence_transformers"),
            "bertfast.optimize(SentenceTransformer), as sentence-transformers otherwise",
            ("embed",),
            ("call",),
            _options(optimize="yes"),
            ours=True,
        ),
        Spec("bertfast-bf16", _BERTFAST, "bfloat16", ("bertfast",), "dtype=torch.bfloat16, huge_pages", (*_TORCH, "embed"), ours=True),
        Spec("bertfast-int8", _BERTFAST, "int8", ("bertfast",), 'quantization="int8", huge_pages', (*_TORCH, "embed"), ours=True),
        Spec(
            "transformers-eager",
            _TRANSFORMERS,
            "float32",
            ("torch", "transformers"),
            "eager attention, inference mode",
            _TORCH,
            ("call",),
            _options(attention="eager"),
            left_out="sdpa is transformers' default",
        ),
        Spec(
            "faces",
            "benchmarks.subjects.faces_based:Face",
            "float32",
            ("bertfast",),
            "bertfast.compat: Flax's classes, TensorFlow's for tokens and qa; NumPy in, NumPy out",
            kinds=("call",),
            left_out="bertfast behind other signatures",
            ours=True,
        ),
        Spec(
            "flax437",
            "benchmarks.subjects.faces_based:Original",
            "float32",
            (),
            "transformers 4.37's Flax classes under jax.jit, TensorFlow's for tokens and qa under tf.function",
            kinds=("call",),
            left_out="needs an environment of its own",
            environment="BERTFAST_FLAX437_PYTHON",
        ),
        Spec(
            "transformers-bf16",
            _TRANSFORMERS,
            "bfloat16",
            ("torch", "transformers"),
            "sdpa, inference mode",
            _TORCH,
            ("call", "steps"),
        ),
        Spec(
            "transformers-eager-bf16",
            _TRANSFORMERS,
            "bfloat16",
            ("torch", "transformers"),
            "eager attention, inference mode",
            _TORCH,
            ("call",),
            _options(attention="eager"),
            left_out="sdpa is transformers' default",
        ),
        Spec(
            "torch-int8",
            _TRANSFORMERS,
            "int8",
            ("torch", "transformers"),
            "torch.ao.quantization.quantize_dynamic of every Linear",
            _TORCH,
            options=_options(quantize="dynamic"),
            left_out="it is there for generation, which the other int8 engines lack",
        ),
        Spec(
            "torch.compile",
            _TRANSFORMERS,
            "float32",
            ("torch", "transformers"),
            "sdpa, torch.compile, Inductor with frozen weights, one graph a shape",
            _ALL,
            ("call",),
            _options(compile="yes"),
            left_out="compiles for up to a minute a shape",
        ),
        Spec(
            "onnxruntime",
            _ONNXRUNTIME,
            "float32",
            ("onnx", "onnxruntime"),
            "onnxruntime.transformers.optimizer, model_type bert, without SkipLayerNormalization, which is slower",
            _EXPORTED,
        ),
        Spec(
            "onnxruntime-int8",
            _ONNXRUNTIME,
            "int8",
            ("onnx", "onnxruntime"),
            "the same, without Attention, then quantize_dynamic with int8 weights (7 bits where the CPU has no VNNI)",
            _EXPORTED,
        ),
        Spec("openvino", _OPENVINO, "float32", ("openvino",), "latency hint, one stream, dynamic shapes", _EXPORTED),
        Spec("openvino-bf16", _OPENVINO, "bfloat16", ("openvino",), "the same, inference precision bf16", _EXPORTED),
        Spec(
            "openvino-int8",
            _OPENVINO,
            "int8",
            ("openvino", "nncf"),
            "nncf.quantize, static, transformer model type, 300 samples of the workload's kind; inference precision as the library chooses",
            ("encoder", "embed"),
        ),
        Spec(
            "ctranslate2",
            _CTRANSLATE2,
            "float32",
            ("ctranslate2",),
            "Encoder.forward_batch on lists of ids",
            ("encoder", "embed"),
        ),
        Spec("ctranslate2-int8", _CTRANSLATE2, "int8", ("ctranslate2",), "the same, compute type int8", ("encoder", "embed")),
        Spec(
            "fasttextembed",
            "benchmarks.subjects.fasttextembed_based:FastTextEmbed",
            "float16",
            ("fasttextembed",),
            "weights in float16, arithmetic in float32; models of bge-small's shape only",
            ("embed",),
            ("call",),
            arithmetic="float32",
        ),
    )
}


def select(patterns: list[str], full: bool) -> list[Spec]:
    """Those that match any pattern; without patterns the quick ones, or all. ValueError for a pattern that matches none."""
    if not patterns:
        return [s for s in SUBJECTS.values() if full or not s.left_out]
    for pattern in patterns:
        if not any(s.matches(pattern) for s in SUBJECTS.values()):
            raise ValueError(f"no subject matches {pattern!r}; there are: {', '.join(SUBJECTS)}")
    return [s for s in SUBJECTS.values() if any(s.matches(p) for p in patterns)]


def again(name: str) -> Spec:
    """The same subject once more, in a process of its own: what its ratio to itself differs from 1 by is noise."""
    if name not in SUBJECTS:
        raise ValueError(f"no subject is called {name!r}; there are: {', '.join(SUBJECTS)}")
    return replace(SUBJECTS[name], name=f"{name} (again)", twin=name)
