"""The subjects on a GPU. All but fp8 compute in the workload's dtype."""

from benchmarks.subjects.spec import Spec, options

_ADAPTERS = "benchmarks.gpu.adapters:"
_BOTH = ("encoder", "generate")
_ENCODER = ("encoder",)

# name: adapter, setup, tasks, options
_SUBJECTS: dict[str, tuple[str, str, tuple[str, ...], dict[str, str]]] = {
    "transformers": ("Transformers", "sdpa; dynamic cache", _BOTH, {}),
    "transformers-eager": ("Transformers", "eager attention", _ENCODER, {"attention": "eager"}),
    "transformers-cuda-graph": ("TransformersCudaGraph", "sdpa under a CUDA graph", _ENCODER, {}),
    "transformers-compiled": ("Transformers", "sdpa, torch.compile, max-autotune", _ENCODER, {"compile": "max-autotune"}),
    "transformers-static-cache": ("Transformers", "static cache, step compiled by generate()", ("generate",), {"static_cache": "yes"}),
    "bertfast": ("Bertfast", "bertfast.optimize, CUDA graphs", _BOTH, {}),
    "bertfast-eager": ("Bertfast", "without CUDA graphs", _BOTH, {"eager": "yes"}),
    "bertfast-invariant": ("Bertfast", "batch_invariant=True", _ENCODER, {"batch_invariant": "yes"}),
    "bertfast-fp8": ("Bertfast", 'quantization="fp8"', _ENCODER, {"quantization": "fp8"}),
    "varlen": ("Varlen", "unpadded torch, flash attention, CUDA graph", _ENCODER, {}),
    "varlen-compiled": ("Varlen", "the same, torch.compile, max-autotune", _ENCODER, {"compile": "max-autotune-no-cudagraphs"}),
}
NAMES = tuple(_SUBJECTS)
TIMED = tuple(name for name, (_, _, tasks, _) in _SUBJECTS.items() if "encoder" in tasks and name != "bertfast-fp8")
DECODED = tuple(name for name, (_, _, tasks, _) in _SUBJECTS.items() if "generate" in tasks)


def spec(name: str, dtype: str, device: str) -> Spec:
    adapter, setup, tasks, given = _SUBJECTS[name]
    ours = name.startswith("bertfast")
    own = "fp8" if name == "bertfast-fp8" else dtype
    return Spec(name, _ADAPTERS + adapter, own, (), setup, tasks, options=options(device=device, **given), ours=ours)


def exact(device: str) -> Spec:
    """transformers in float32, which computes what the others are checked against."""
    return Spec("transformers in float32", f"{_ADAPTERS}Transformers", "float32", (), "sdpa", _BOTH, options=options(device=device))
