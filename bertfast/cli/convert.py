"""bertfast convert: a TF or Flax checkpoint, or any other BERT folder, as a plain transformers folder."""

from rich.console import Console

from bertfast.convert import convert


def run(source: str, destination: str, architecture: str | None, quantization: str | None = None) -> None:
    """Convert and say what came of it. ValueError and OSError as bertfast.convert raises them."""
    console = Console()
    with console.status(f"reading {source}"):
        done = convert(source, destination, architecture, quantization)
    outputs = (
        "the same outputs as the source" if quantization is None else f"in {quantization}, worst cosine to the source {done.cosine:.4f}"
    )
    console.print(
        f"{destination}: {done.architecture}, {done.parameters:,} parameters, from {done.format}; {outputs}.",
        highlight=False,
    )
    if done.copied:
        console.print(f"Copied beside the weights: {', '.join(done.copied)}.", highlight=False)
    if done.unexpected:
        console.print(f"Left out, {done.architecture} has no such weights: {', '.join(done.unexpected)}.", highlight=False)
