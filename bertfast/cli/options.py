"""Options that several commands share."""

from typing import Annotated

import typer

from bertfast.cli import errors


def _set_debug(value: bool) -> None:
    errors.debug = errors.debug or value


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Quantization = Annotated[
    str | None,
    typer.Option(metavar="SCHEME", help="Quantize the weights: int8 (CPU) or fp8 (GPU with float8). Default: as in the folder."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of bertfast and torch on the CPU. Default: torch's, the cores.")]


def use_threads(count: int | None) -> None:
    """Sets the threads of bertfast and torch; None leaves them. Imports torch."""
    if count is not None:
        import torch

        from bertfast.runtime.threads import set_num_threads

        torch.set_num_threads(count)
        set_num_threads(count)
