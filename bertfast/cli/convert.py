"""bertfast convert: a TensorFlow, Flax or PyTorch BERT folder to a transformers folder."""

from rich.console import Console

from bertfast.convert import convert


def run(source: str, destination: str, architecture: str | None, quantization: str | None = None) -> None:
    """Convert and print a summary. Raises the errors of bertfast.convert.convert."""
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
        console.print(f"Other files copied: {', '.join(done.copied)}.", highlight=False)
    if done.unexpected:
        console.print(f"Not written, {done.architecture} has no such weights: {', '.join(done.unexpected)}.", highlight=False)
