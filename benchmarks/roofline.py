"""How fast a BERT can be on a GPU, counted: python -m benchmarks.roofline bert-base 32x128 --gpu h100

For each kernel of the packed forward: the floating-point operations it must do, and the bytes it must move if every operand is read
once and every result written once. Over the chip's rates these give two times, and the larger is that kernel's floor.

    floor       nothing but the products and the weights: max(all FLOPs / peak, all weights / bandwidth). No forward is faster.
    kernels     the sum of the kernels' floors, each reading and writing device memory: what unfused kernels are held against.
                A result that stays in L2 can beat its own kernel's floor, never the first one.

With --results, the file that benchmarks/gpu.sh wrote, measured times are set against both.

Shape letters: T real tokens, B sequences, H hidden, N heads, I intermediate, L layers.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import MODELS, Model

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}


@dataclass(frozen=True)
class Gpu:
    """Rates of one chip. Floating-point operations a second, bytes a second."""

    name: str
    half: float  # dense products of float16 and bfloat16, summed in float32
    fp8: float | None
    float32: float  # on the ordinary units: IEEE products
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
    """One kernel of the forward, all its launches together."""

    name: str
    launches: int
    flops: float  # of products, a multiply-add counted 2
    bytes: float  # operands once, results once
    weights: float = 0.0  # the part of `bytes` that is weights

    def seconds(self, gpu: Gpu, dtype: str) -> float:
        return max(self.flops / gpu.peak(dtype), self.bytes / gpu.bandwidth)

    def bound(self, gpu: Gpu, dtype: str) -> str:
        return "arithmetic" if self.flops / gpu.peak(dtype) > self.bytes / gpu.bandwidth else "memory"


def forward(m: Model, lengths: list[int], dtype: str, pooled: bool = True) -> Iterator[Kernel]:
    """The kernels of one packed forward, embeddings to last hidden state (and the pooler), unpacked into [B, S, H]."""
    T, B, S = sum(lengths), len(lengths), max(lengths)
    pairs = sum(n * n for n in lengths)
    size = BYTES[dtype]
    row = T * m.H * size  # one [T, H] activation

    def linear(name: str, rows: int, K: int, F: int, launches: int) -> Kernel:
        weights = launches * (K * F + F) * size
        return Kernel(name, launches, launches * 2.0 * rows * K * F, weights + launches * rows * (K + F) * size, weights)

    distinct = min(T, m.V)  # a word's row is read once, however often it occurs
    yield Kernel("embeddings + LayerNorm", 1, 0.0, (distinct + min(S, m.P) + 2) * m.H * size + 3 * 8 * T + row)
    yield linear("QKV product", T, m.H, 3 * m.H, m.L)
    yield Kernel("attention", m.L, m.L * 4.0 * m.H * pairs, m.L * 4 * row)
    yield linear("output product", T, m.H, m.H, m.L)
    yield Kernel("residual + LayerNorm", 2 * m.L, 0.0, 2 * m.L * 3 * row)
    yield linear("up product", T, m.H, m.I, m.L)
    yield Kernel("bias + GELU", m.L, 0.0, m.L * 2 * T * m.I * size)
    yield linear("down product", T, m.I, m.H, m.L)
    if T < B * S:
        yield Kernel("unpack", 1, 0.0, row + B * S * m.H * size)
    if pooled:
        yield linear("pooler", B, m.H, m.H, 1)


def floor_seconds(kernels: list[Kernel], gpu: Gpu, dtype: str) -> float:
    """Nothing but the products and the weights, perfectly overlapped."""
    return max(sum(k.flops for k in kernels) / gpu.peak(dtype), sum(k.weights for k in kernels) / gpu.bandwidth)


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


def measured(path: Path, gpu: Gpu) -> Iterator[tuple[str, str, str, str, float, float, float]]:
    """(model, batch, dtype, subject, milliseconds, over the floor, over the kernels) of every row of a result file."""
    for row in json.loads(path.read_text())["rows"]:
        kernels = list(forward(read_model(row["model"]), row["lengths"], row["dtype"]))
        total = sum(k.seconds(gpu, row["dtype"]) for k in kernels)
        over = row["ms"] / 1e3 / floor_seconds(kernels, gpu, row["dtype"])
        yield row["model"], row["batch"], row["dtype"], row["subject"], row["ms"], over, row["ms"] / 1e3 / total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="bert-base", help=f"{', '.join(MODELS)}, or a folder with config.json")
    parser.add_argument("batch", nargs="*", default=[], help="32x128, or lengths with commas (default: 1x16 1x128 8x128 32x128 128x128)")
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--dtype", choices=[*BYTES], default="float16")
    parser.add_argument("--results", type=Path, help="a result file of benchmarks/gpu.sh: measured times over these floors")
    options = parser.parse_args()
    gpu = GPUS[options.gpu]
    print(f"{gpu.name}: {gpu.source}")
    try:
        if options.results:
            print(f"{'model':10} {'batch':12} {'dtype':9} {'subject':32} {'ms':>9} {'x floor':>8} {'x kernels':>9}")
            for model, batch, dtype, subject, ms, over, over_kernels in measured(options.results, gpu):
                print(f"{model:10} {batch:12} {dtype:9} {subject:32} {ms:9.3f} {over:8.2f} {over_kernels:9.2f}")
            return
        model = read_model(options.model)
        for batch in options.batch or ["1x16", "1x128", "8x128", "32x128", "128x128"]:
            print(f"\n{model.name} {batch} {options.dtype}")
            print(table(list(forward(model, parse_batch(batch), options.dtype)), gpu, options.dtype))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
