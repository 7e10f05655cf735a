"""How fast a BERT can be on a GPU, counted: python -m benchmarks roofline bert-base 32x128 --gpu h100

A batch is ROWSxLENGTH, or lengths with commas; "decode 32x128" is one step of a generation, 32 sequences with 128 tokens cached each.

Counts for each kernel of the packed forward (or of the step) its floating-point operations, and its bytes if every operand is read and
every result written once. Divided by the chip's rates these are two times; the larger one is the kernel's floor.

    floor       matrix products and weights only (and a step's KV cache): max(all FLOPs / peak, those bytes / bandwidth). No forward is
                faster.
    kernels     the sum of the kernels' floors, each reading and writing device memory: the bound for unfused kernels. A kernel can be
                faster than its own floor if its operands stay in L2; a forward cannot be faster than the first floor.

With --results, a result file of benchmarks/gpu.sh, measured times are divided by both.

With dtype fp8 all matrix products but the one after attention are float8, as in bertfast.quantization.fp8_layers; the rest is bfloat16.

Shape letters: T real tokens, B sequences, H hidden, N heads, I intermediate, L layers, C cached tokens a sequence, V vocabulary.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import results
from benchmarks.suite.models import MODELS, Model

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}


@dataclass(frozen=True)
class Gpu:
    """Rates of one chip: floating-point operations per second, bytes per second."""

    name: str
    half: float  # dense float16 and bfloat16 products, accumulated in float32
    fp8: float | None
    float32: float  # IEEE products, without tensor cores
    bandwidth: float
    source: str

    def peak(self, dtype: str) -> float:
        peak = {"float32": self.float32, "fp8": self.fp8}.get(dtype, self.half)
        if peak is None:
            raise ValueError(f"dtype fp8: {self.name} has no fp8 units, expected one of float16, bfloat16, float32")
        return peak


_MEASURED = "half and bandwidth measured (8192-cubed product; device copy), fp8 twice half, float32 datasheet"
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 798e12, 1596e12, 67e12, 3.0e12, _MEASURED),
        Gpu("h200", 790e12, 1580e12, 67e12, 4.3e12, _MEASURED),
        Gpu("a100", 312e12, None, 19.5e12, 2.0e12, "datasheet, 80 GB SXM"),
        Gpu("l4", 121e12, 242e12, 30.3e12, 0.3e12, "datasheet"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """One kernel of the forward, all launches together."""

    name: str
    launches: int
    flops: float  # of matrix products; a multiply-add counts 2
    bytes: float  # operands read once, results written once
    weights: float = 0.0  # the part of `bytes` that fusion cannot save: weights, and a step's KV cache
    dtype: str | None = None  # of its products, if not the model's

    def arithmetic(self, gpu: Gpu, dtype: str) -> float:
        return self.flops / gpu.peak(self.dtype or dtype)

    def seconds(self, gpu: Gpu, dtype: str) -> float:
        return max(self.arithmetic(gpu, dtype), self.bytes / gpu.bandwidth)

    def bound(self, gpu: Gpu, dtype: str) -> str:
        return "arithmetic" if self.arithmetic(gpu, dtype) > self.bytes / gpu.bandwidth else "memory"


def forward(m: Model, lengths: list[int], dtype: str, pooled: bool = True) -> Iterator[Kernel]:
    """The kernels of one packed forward, embeddings to last hidden state (and the pooler), unpacked into [B, S, H]."""
    T, B, S = sum(lengths), len(lengths), max(lengths)
    pairs = sum(n * n for n in lengths)
    size = 2 if dtype == "fp8" else BYTES[dtype]
    row = T * m.H * size  # one [T, H] activation

    distinct = min(T, m.V)  # each row of the word table is read once
    yield Kernel("embeddings + LayerNorm", 1, 0.0, (distinct + min(S, m.P) + 2) * m.H * size + 3 * 8 * T + row)
    yield product("QKV product", T, m.H, 3 * m.H, m.L, dtype)
    yield Kernel("attention", m.L, m.L * 4.0 * m.H * pairs, m.L * 4 * row, dtype=_half(dtype))
    yield from _after_attention(m, T, dtype)
    if T < B * S:
        yield Kernel("unpack", 1, 0.0, row + B * S * m.H * size)
    if pooled:
        yield product("pooler", B, m.H, m.H, 1, _half(dtype))


def _after_attention(m: Model, T: int, dtype: str) -> Iterator[Kernel]:
    half = _half(dtype)
    size = BYTES[half]
    emitted = T * BYTES["fp8"] if dtype == "fp8" else 0  # bytes per column of the float8 copy
    yield product("output product", T, m.H, m.H, m.L, half)
    yield Kernel("residual + LayerNorm", 2 * m.L, 0.0, 2 * m.L * m.H * (3 * T * size + emitted))
    yield product("up product", T, m.H, m.I, m.L, dtype)
    yield Kernel("bias + GELU", m.L, 0.0, m.L * m.I * (T * size + (emitted or T * size)))
    yield product("down product", T, m.I, m.H, m.L, dtype)


def _half(dtype: str) -> str:
    return "bfloat16" if dtype == "fp8" else dtype


def product(name: str, rows: int, K: int, F: int, launches: int, dtype: str) -> Kernel:
    """x W^T + bias, [rows, K] -> [rows, F]. With fp8, x and W are float8, bias and result are not."""
    size, out = BYTES[dtype], BYTES[_half(dtype)]
    weights = launches * (K * F * size + F * out)
    return Kernel(name, launches, launches * 2.0 * rows * K * F, weights + launches * rows * (K * size + F * out), weights, dtype)


def decode(m: Model, B: int, cached: int, dtype: str) -> Iterator[Kernel]:
    """The kernels of one step of a generation to logits: a token for each of B sequences, `cached` tokens in each KV cache."""
    size = BYTES[_half(dtype)]
    row = B * m.H * size
    cache = m.L * 2 * B * cached * m.H * size
    yield Kernel("embeddings + LayerNorm", 1, 0.0, 4 * row + 3 * 8 * B)
    yield product("QKV product", B, m.H, 3 * m.H, m.L, dtype)
    yield Kernel("cache written", m.L, 0.0, m.L * 4 * row)
    yield Kernel("attention", m.L, m.L * 4.0 * m.H * B * cached, cache + m.L * 2 * row, cache, "float32")  # without tensor cores
    yield from _after_attention(m, B, dtype)
    yield product("transform", B, m.H, m.H, 1, _half(dtype))
    yield Kernel("GELU, LayerNorm", 2, 0.0, 4 * row)
    yield product("decoder", B, m.H, m.V, 1, _half(dtype))


def floor_seconds(kernels: list[Kernel], gpu: Gpu, dtype: str) -> float:
    """Matrix products and weights only, perfectly overlapped."""
    return max(sum(k.arithmetic(gpu, dtype) for k in kernels), sum(k.weights for k in kernels) / gpu.bandwidth)


def parse_batch(text: str) -> list[int]:
    """ "32x128", or lengths with commas: "128,45,7"."""
    try:
        if "x" in text:
            rows, length = text.split("x")
            lengths = [int(length)] * int(rows)
        else:
            lengths = [int(n) for n in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise ValueError(f"batch {text!r}: expected ROWSxLENGTH, as 32x128, or lengths with commas, as 128,45,7")
    return lengths


def read_model(name: str) -> Model:
    """A model of the suite by name, or the config.json of a folder."""
    if name in MODELS:
        return MODELS[name]
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise ValueError(f"model {name!r}: expected one of {', '.join(MODELS)}, or a folder that holds config.json")
    c = json.loads(path.read_text())
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings")
    return Model(path.parent.name, *(int(c[key]) for key in keys))


def table(kernels: list[Kernel], gpu: Gpu, dtype: str) -> str:
    lines = [f"{'kernel':24} {'launches':>8} {'GFLOP':>9} {'MB':>9} {'floor us':>9}  bound by"]
    for k in kernels:
        cells = f"{k.name:24} {k.launches:8} {k.flops / 1e9:9.2f} {k.bytes / 1e6:9.2f} {k.seconds(gpu, dtype) * 1e6:9.1f}"
        lines.append(f"{cells}  {k.bound(gpu, dtype)}")
    total = sum(k.seconds(gpu, dtype) for k in kernels)
    whole = f"{'kernels':24} {sum(k.launches for k in kernels):8} {sum(k.flops for k in kernels) / 1e9:9.2f}"
    lines.append(f"{whole} {sum(k.bytes for k in kernels) / 1e6:9.2f} {total * 1e6:9.1f}")
    lines.append(f"{'floor':24} {'':8} {'':9} {'':9} {floor_seconds(kernels, gpu, dtype) * 1e6:9.1f}")
    return "\n".join(lines)


BATCHES = ("1x16", "1x128", "8x128", "32x128", "128x128", "32x512")
STEPS = ("decode 1x128", "decode 32x128")


def kernels_of(m: Model, batch: str, dtype: str) -> list[Kernel]:
    """Those of a forward for "32x128", of a step of a generation for "decode 32x128"."""
    lengths = parse_batch(batch.removeprefix("decode "))
    return list(decode(m, len(lengths), max(lengths), dtype) if batch.startswith("decode ") else forward(m, lengths, dtype))


def page() -> str:
    """docs/roofline.md."""
    lines = [
        "# Floors on GPUs",
        "",
        "Counted, not measured, by `python -m benchmarks roofline --page`; a test compares this page with its output. In microseconds: the",
        "floor of a whole forward, which no implementation can beat, and in brackets the sum of its kernels' floors, each reading and",
        "writing device memory. `python -m benchmarks roofline --help` describes the count; `benchmarks/gpu.sh` measures times and divides",
        "them by these floors.",
    ]
    for gpu in GPUS.values():
        lines += ["", f"## {gpu.name}", "", f"Rates: {gpu.source}.", ""]
        lines += ["| | " + " | ".join((*BATCHES, *STEPS)) + " |", "|---" * (len(BATCHES) + len(STEPS) + 1) + "|"]
        for name in ("bert-base", "minilm"):
            for dtype in ("float32", "float16", *(["fp8"] if gpu.fp8 else [])):
                cells = []
                for batch in (*BATCHES, *STEPS):
                    kernels = kernels_of(MODELS[name], batch, dtype)
                    total = sum(k.seconds(gpu, dtype) for k in kernels)
                    cells.append(f"{floor_seconds(kernels, gpu, dtype) * 1e6:.0f} ({total * 1e6:.0f})")
                lines.append(f"| {name}, {dtype} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measured(path: Path, gpu: Gpu) -> Iterator[tuple[str, str, str, str, float, float, float]]:
    """(model, shape, dtype, subject, milliseconds, over the floor, over the kernels) of every timed row of a result file."""
    if not path.is_file():
        raise ValueError(f"--results {path}: there is no such file; benchmarks/gpu.sh time, decode or fp8 writes one")
    result = results.load(path)
    for workload in result["workloads"].values():
        model, lengths, cached = MODELS[workload["model"]], workload["lengths"], workload.get("cached")  # None but for a step
        for subject, row in workload["rows"].items():
            if row["status"] != "timed":
                continue
            dtype = "fp8" if result["subjects"][subject]["dtype"] == "fp8" else workload["dtype"]
            kernels = list(forward(model, lengths, dtype) if cached is None else decode(model, len(lengths), cached, dtype))
            seconds = row["seconds" if cached is None else "step"]["median"]
            total = sum(k.seconds(gpu, dtype) for k in kernels)
            over = seconds / floor_seconds(kernels, gpu, dtype)
            yield workload["model"], workload["shape"], dtype, subject, seconds * 1e3, over, seconds / total


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks roofline", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="bert-base", help=f"{', '.join(MODELS)}, or a folder with config.json.")
    parser.add_argument("batch", nargs="*", default=[], help='32x128, lengths with commas, or "decode 32x128".')
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--dtype", choices=[*BYTES], default="float16")
    parser.add_argument("--results", type=Path, help="Result file of benchmarks/gpu.sh; prints its times divided by the floors.")
    parser.add_argument("--page", action="store_true", help="Print docs/roofline.md: the floors of all chips as Markdown.")
    options = parser.parse_args(arguments)
    if options.page:
        print(page(), end="")
        return 0
    gpu = GPUS[options.gpu]
    print(f"{gpu.name}: {gpu.source}")
    try:
        if options.results:
            print(f"{'model':10} {'batch':12} {'dtype':9} {'subject':32} {'ms':>9} {'x floor':>8} {'x kernels':>9}")
            for model, batch, dtype, subject, ms, over, over_kernels in measured(options.results, gpu):
                print(f"{model:10} {batch:12} {dtype:9} {subject:32} {ms:9.3f} {over:8.2f} {over_kernels:9.2f}")
            return 0
        model = read_model(options.model)
        for batch in options.batch or (*BATCHES, *STEPS):
            print(f"\n{model.name} {batch} {options.dtype}")
            print(table(kernels_of(model, batch, options.dtype), gpu, options.dtype))
    except ValueError as error:
        parser.error(str(error))
    return 0
