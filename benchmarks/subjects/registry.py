"""The subjects on the CPU."""

from dataclasses import replace

from benchmarks.subjects.spec import HEAD_TASKS, Spec, options

_TORCH = (*HEAD_TASKS, "generate")
_TRANSFORMERS = "benchmarks.subjects.torch_based:Transformers"
_BERTFAST = "benchmarks.subjects.torch_based:Bertfast"
_ONNXRUNTIME = "benchmarks.subjects.onnxruntime_based:OnnxRuntime"
_OPENVINO = "benchmarks.subjects.openvino_based:OpenVino"
_CTRANSLATE2 = "benchmarks.subjects.ctranslate2_based:CTranslate2"
_EXPORTED = (*HEAD_TASKS, "embed")


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
            options(optimize="yes"),
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
            options(attention="eager"),
            left_out="sdpa is transformers' default",
        ),
        Spec(
            "compat",
            "benchmarks.subjects.compat_based:Compat",
            "float32",
            ("bertfast",),
            "bertfast.compat: the Flax classes, the TensorFlow ones for tokens and qa; NumPy in, NumPy out",
            kinds=("call",),
            left_out="bertfast with other signatures",
            ours=True,
        ),
        Spec(
            "flax437",
            "benchmarks.subjects.compat_based:Transformers437",
            "float32",
            (),
            "transformers 4.37: the Flax classes under jax.jit, the TensorFlow ones for tokens and qa under tf.function",
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
            options(attention="eager"),
            left_out="sdpa is transformers' default",
        ),
        Spec(
            "torch-int8",
            _TRANSFORMERS,
            "int8",
            ("torch", "transformers"),
            "torch.ao.quantization.quantize_dynamic of every Linear",
            _TORCH,
            options=options(quantize="dynamic"),
            left_out="measured for generation, which the other int8 libraries lack",
        ),
        Spec(
            "torch.compile",
            _TRANSFORMERS,
            "float32",
            ("torch", "transformers"),
            "sdpa, torch.compile, Inductor with frozen weights, one graph a shape",
            HEAD_TASKS,
            ("call",),
            options(compile="yes"),
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
            "nncf.quantize, static, transformer model type, 300 samples like the workloads; inference precision as the library chooses",
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
    """Those that match any pattern; without patterns the quick selection, or all. ValueError for a pattern that matches none."""
    if not patterns:
        return [s for s in SUBJECTS.values() if full or not s.left_out]
    for pattern in patterns:
        if not any(s.matches(pattern) for s in SUBJECTS.values()):
            raise ValueError(f"no subject matches {pattern!r}; expected one of: {', '.join(SUBJECTS)}")
    return [s for s in SUBJECTS.values() if any(s.matches(p) for p in patterns)]


def again(name: str) -> Spec:
    """The same subject in a second process: its ratio to itself differs from 1 by noise."""
    if name not in SUBJECTS:
        raise ValueError(f"no subject is called {name!r}; expected one of: {', '.join(SUBJECTS)}")
    return replace(SUBJECTS[name], name=f"{name} (again)", twin=name)
