"""The command line: options, help, and errors as one line. What the commands do is in bertfast/commands.

Nothing heavy is imported here, so --help answers at once; each command imports its own module when it runs.
"""

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="bertfast",
    help="Fast BERT: text in, vectors out, on this machine's own kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_debug = False


def _set_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error.")]
Quantization = Annotated[
    str | None, typer.Option(metavar="SCHEME", help="int8: weights a quarter as large, on CPUs; fp8: on GPUs that have it. Default: as is.")
]
Model = Annotated[str, typer.Option("--model", "-m", metavar="DIR", help="Model folder: sentence-transformers', or a plain BERT.")]


@app.command()
def embed(
    source: Annotated[str, typer.Argument(metavar="FILE", help="UTF-8 text, one text a line; - reads standard input.")],
    model: Model,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="OUT", help="OUT.npy: float32, a row a line; OUT.jsonl: an object a line; -: the same, printed."
        ),
    ],
    pooling: Annotated[
        str | None, typer.Option(help="mean, cls, max, ...; several joined by commas. Default: what the folder says, else mean.")
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Vectors of length 1. Default: what the folder says, else not.")
    ] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Tokens a text, the rest is cut off. Default: what the folder says.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text set before every text.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="One of the folder's own prompts, by name.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Token budget of one batch.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU where there is one.")] = None,
    quantization: Quantization = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the rows of a run that was cut short (OUT.part).")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw those rows away and begin anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no summary.")] = False,
    debug: Debug = False,
) -> None:
    """Turn every line of a text file into a vector."""
    from bertfast.cli import embed as command

    command.run(
        source,
        output,
        model=model,
        resume=resume,
        restart=restart,
        quiet=quiet,
        pooling=pooling.split(",") if pooling is not None else None,
        normalize=normalize,
        max_seq_length=max_seq_length,
        prompt=prompt,
        prompt_name=prompt_name,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
        quantization=quantization,
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to go on from; - reads standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="DIR", help="Folder of a BERT decoder with a language-model head.")],
    ids: Annotated[bool, typer.Option("--ids", help="PROMPT and what is printed are token ids.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Stop after so many.")] = 64,
    temperature: Annotated[float, typer.Option(help="0: the best token each time; above: sample.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k best; 0: among all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Sample among the best that hold this probability together.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens that were there lose.")] = 1.0,
    num_beams: Annotated[int, typer.Option(help="Beam search; printed at the end, not as it comes.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU where there is one.")] = None,
    quantization: Quantization = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The continuation only.")] = False,
    debug: Debug = False,
) -> None:
    """Continue a text, token by token."""
    from bertfast.cli import generate as command

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
def demo(quantization: Quantization = None, debug: Debug = False) -> None:
    """Run a real model on real sentences, beside transformers."""
    from bertfast.cli import demo as command

    command.run(quantization)


@app.command()
def info(
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="DIR", help="Say how this model would run, and why.")] = None,
    debug: Debug = False,
) -> None:
    """Show the device, the instruction set, and the kernels in use and why."""
    from bertfast.cli import info as command

    command.run(model)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder with tf_model.h5, flax_model.msgpack, or any BERT checkpoint.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="New folder: config.json, model.safetensors, and SRC's other files.")],
    architecture: Annotated[
        str | None, typer.Option(metavar="CLASS", help="transformers' class for it. Default: what the config or the weights say.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="SCHEME", help="int8: write it quantized, for bertfast on CPUs alone. Default: as it is.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a TensorFlow or Flax BERT as a plain transformers folder, or any BERT quantized, and check it."""
    from bertfast.cli import convert as command

    command.run(source, destination, architecture, quantization)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line. Exit code 0; 2 for a wrong command line; 130 for Ctrl-C; 1 for everything else that fails."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers shows one for a load that takes half a second
    sys.exit(_run(argv))


def _run(argv: list[str] | None) -> int:
    try:
        result: Any = app(argv, prog_name="bertfast", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone (bertfast embed ... -o - | head): nothing to say, and nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _debug:
            raise
        if hasattr(error, "format_message"):  # click's, which newer versions of typer carry under a name of their own
            message = error.format_message()  # empty where only the help was shown
            return _fail(f"{message} (bertfast --help shows what there is)", 2) if message else 2
        expected = isinstance(error, (ValueError, TypeError, OSError, MemoryError, ImportError))
        return _fail(str(error) or type(error).__name__ if expected else f"{type(error).__name__}: {error} (--debug shows where)", 1)
    return _fail("interrupted", 130) if result == 130 else result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print("bertfast: error: " + " ".join(message.split()), file=sys.stderr)
    return code
