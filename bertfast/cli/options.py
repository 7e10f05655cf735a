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
