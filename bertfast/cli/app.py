"""The commands, their options and help. What a command does is in the module of its name."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from bertfast.cli.errors import exit_code
from bertfast.cli.options import Debug, Device, Dtype, Quantization, Threads, use_threads
from bertfast.cli.standard_streams import reserve_descriptors

app = typer.Typer(
    name="bertfast",
    help="Fast BERT inference: embeddings, text generation, checkpoint conversion.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"bertfast {version('bertfast')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fast BERT inference: embeddings, text generation, checkpoint conversion."""


@app.command()
def embed(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Texts: a line each, or a field of .jsonl, .csv or .tsv; - reads standard input."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", metavar="DIR", help="Folder or Hub name: sentence-transformers or plain BERT.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="OUT.npy: float32 array, one row per text; OUT.jsonl: one JSON object per text; -: JSON Lines on standard output.",
        ),
    ],
    pooling: Annotated[
        str | None,
        typer.Option(help="mean, cls, max, ...; several, separated by commas, are concatenated. Default: the folder's, else mean."),
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Scale vectors to unit length. Default: the folder's, else not.")
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Maximum tokens per text; longer texts are truncated. Default: the folder's.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text prepended to every text.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="Name of a prompt that the folder defines.")] = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Keep the first values of a vector. Default: the folder's, else all.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per batch.")] = None,
    input_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="text, jsonl, csv or tsv. Default: by the name of FILE, else text.")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The JSON field or CSV column that holds the text. Default: text.")
    ] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of FILE.")] = "utf-8",
    decoding_errors: Annotated[str, typer.Option("--errors", help="Bytes that are not text: strict, replace or ignore.")] = "strict",
    dtype: Dtype = "float32",
    device: Device = None,
    quantization: Quantization = None,
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run from its finished rows (OUT.part).")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard those rows and start over.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar and no summary.")] = False,
    debug: Debug = False,
) -> None:
    """Compute the embedding of every text of a file."""
    from bertfast.cli import embed as command
    from bertfast.cli.input_texts import InputTexts

    use_threads(threads)
    command.run(
        source,
        output,
        reader=InputTexts.of(source, input_format, text_field, encoding, decoding_errors),
        model=model,
        resume=resume,
        restart=restart,
        quiet=quiet,
        pooling=pooling.split(",") if pooling is not None else None,
        normalize=normalize,
        max_seq_length=max_seq_length,
        prompt=prompt,
        prompt_name=prompt_name,
        truncate_dim=truncate_dim,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
        quantization=quantization,
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue; - reads standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="DIR", help="Folder or Hub name of a decoder with a language-model head.")],
    ids: Annotated[bool, typer.Option("--ids", help="Read the prompt as token ids, and print token ids.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Maximum number of new tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy decoding.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k most probable tokens; 0 samples from all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling: smallest set of tokens with cumulative probability p.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Penalty above 1 discourages tokens already generated.")] = 1.0,
    num_beams: Annotated[int, typer.Option(help="Number of beams for beam search; above 1 prints at the end only.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    dtype: Dtype = "float32",
    device: Device = None,
    quantization: Quantization = None,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the continuation only.")] = False,
    debug: Debug = False,
) -> None:
    """Continue a text, token by token."""
    from bertfast.cli import generate as command

    use_threads(threads)
    command.run(
        prompt,
        model=model,
        ids=ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
        seed=seed,
        dtype=dtype,
        device=device,
        quantization=quantization,
        quiet=quiet,
    )


@app.command()
def demo(quantization: Quantization = None, threads: Threads = None, debug: Debug = False) -> None:
    """Compare bertfast with transformers: embeddings of 60 sentences with all-MiniLM-L6-v2."""
    from bertfast.cli import demo as command

    use_threads(threads)
    command.run(quantization)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="DIR", help="Show whether this model takes the fast path, and why.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show versions, devices, instruction sets and the kernels in use."""
    from bertfast.cli import info as command

    command.run(model)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or Hub name: a TensorFlow, Flax or PyTorch BERT.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="New folder for config.json, model.safetensors and the other files of SRC.")
    ],
    architecture: Annotated[
        str | None, typer.Option(metavar="CLASS", help="transformers class of the model. Default: from the config or the weights.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="SCHEME", help="int8: write quantized weights, which only bertfast reads (on CPUs).")
    ] = None,
    debug: Debug = False,
) -> None:
    """Convert a TensorFlow, Flax or PyTorch BERT to a transformers folder, or quantize it, and verify the result."""
    from bertfast.cli import convert as command

    command.run(source, destination, architecture, quantization)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; exit codes: bertfast.cli.errors.exit_code."""
    reserve_descriptors()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers shows one even for a load of half a second
    sys.exit(exit_code(lambda: app(argv, prog_name="bertfast", standalone_mode=False)))
