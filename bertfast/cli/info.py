"""bertfast info: what this machine has, which kernels run on it, and why."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bertfast import ops
from bertfast.quantization import fp8_layers
from bertfast.runtime.native import _C
from bertfast.runtime.threads import get_num_threads

Row = tuple[str, str, str]  # what, its value, why or what follows from it

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIBRARIES = ("bertfast", "torch", "transformers", "triton")


def run(model: str | None) -> None:
    """Print the tables; with a model folder also how that model would run. ValueError where the folder cannot be read."""
    console = Console()
    console.print(_table("versions", versions()), _table("CPU", cpu()), _table("GPU", gpu()), _table("kernels", kernels()))
    if model is not None:
        with console.status(f"loading {model}"):
            rows = list(model_rows(model))
        console.print(_table("model", rows))


def _table(title: str, rows: Iterator[Row] | list[Row]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, min_width=60)
    for row in rows:
        table.add_row(*row)
    return table


def versions() -> Iterator[Row]:
    yield "Python", platform.python_version(), f"{platform.system()} {platform.machine()}"
    for name in LIBRARIES:
        yield name, installed(name) or "not installed", "used on NVIDIA GPUs only" if name == "triton" else ""


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> Iterator[Row]:
    asked = os.environ.get("BERTFAST_ISA")
    chosen = _C.isa()
    yield "processor", cpu_name(), f"{os.cpu_count()} logical cores"
    yield "instruction set", chosen, "BERTFAST_ISA asks for it" if asked else "the widest that both this CPU and this build have"
    for name, in_build, on_cpu in _C.isas():
        lacks = [who for who, has in (("this build lacks it", in_build), ("this CPU lacks it", on_cpu)) if not has]
        yield "", name, "in use" if name == chosen else " and ".join(lacks) or f"BERTFAST_ISA={name} selects it"
    yield "threads", str(get_num_threads()), f"bertfast.set_num_threads changes it; torch's own: {torch.get_num_threads()}"


def gpu() -> Iterator[Row]:
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield "none", "", f"torch.cuda.is_available() is False; this torch is {build}"
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}", properties.name, f"sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        reason = fp8_layers.why_device_unsupported(torch.device("cuda", i))
        yield "", "fp8", reason or "quantization='fp8' runs here; nobody has measured yet where it beats bfloat16"


def kernels() -> Iterator[Row]:
    for device, description in (("cpu", f"C++, {_C.isa()}"), ("cuda", "Triton; matrix products by cuBLAS")):
        for dtype in DTYPES:
            name = f"{device} {str(dtype).removeprefix('torch.')}"
            if not ops.has_kernels(torch.device(device), dtype):
                yield name, "plain torch", "no kernels for it in this build"
            elif device == "cuda" and not torch.cuda.is_available():
                yield name, "not in use", "no GPU"
            else:
                yield name, description, ""


def model_rows(folder: str) -> Iterator[Row]:
    import transformers

    import bertfast
    from bertfast.engine.cuda_graph_eligibility import why_eager_trial
    from bertfast.engine.eligibility import why_reference
    from bertfast.quantization.schemes import scheme_of
    from bertfast.text.sentence_transformers_folder import read_settings

    settings = read_settings(folder)
    transformers.logging.set_verbosity_error()  # which weights a head lacks is not asked here
    config = bertfast.BertConfig.from_pretrained(settings.model_dir)
    name = next((n for n in config.architectures or [] if n in bertfast.__all__), "BertModel")
    model: Any = getattr(bertfast, name).from_pretrained(settings.model_dir).eval()
    head_size = config.hidden_size // config.num_attention_heads
    shape = f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads of {head_size}"
    yield name, shape, f"{sum(p.numel() for p in model.parameters()) / 1e6:,.1f} million parameters"
    scheme = scheme_of(model)
    if scheme is not None:
        reason = why_reference(model, {})
        yield f"cpu {scheme}", "bertfast's graph, kernels" if reason is None else "transformers' own forward", reason or "in eval mode"
    for device in () if scheme is not None else ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for dtype in DTYPES:
            where = f"{device} {str(dtype).removeprefix('torch.')}"
            if (reason := why_reference(model, {})) is not None:
                yield where, "transformers' own forward", reason
            elif ops.has_kernels(torch.device(device), dtype):
                yield where, "bertfast's graph, kernels", "in eval mode"
            else:
                yield where, "bertfast's graph, plain torch", "no kernels for it in this build"
    if torch.cuda.is_available() and scheme is None:
        reason = why_eager_trial(model.to("cuda", torch.float16))
        yield "CUDA graphs", "not used" if reason else "recorded and replayed", reason or "one for each bucket of shapes"
    if config.hidden_act not in ops.ACTIVATIONS:
        yield "activation", config.hidden_act, "not one that the kernels fuse; applied by transformers' function"
    yield (
        "leaves the kernels",
        "training mode, autocast, torch.compile",
        "and hooks or adapters inside the model: transformers' own forward",
    )
    yield "padding", "comes back as zeros", "keep_padding=True computes it, as transformers does"


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
