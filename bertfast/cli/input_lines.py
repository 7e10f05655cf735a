"""The input of bertfast embed: one text per line."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO


def read_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a UTF-8 stream without their ends, which are \\n or \\r\\n only. Raises ValueError, naming a line that is not UTF-8."""
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            hint = "; it looks like UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
            raise ValueError(f"{name}: line {number} is not UTF-8 ({error.reason} at byte {error.start}){hint}") from error
        yield text.removesuffix("\n").removesuffix("\r")


def count_lines(source: str) -> int | None:
    """The number of texts in a file; None for standard input and pipes. Raises ValueError for a file that cannot be read as text."""
    path = Path(source)
    if source == "-":
        return None
    if not path.exists():
        raise ValueError(f"input file {source!r} does not exist")
    if path.is_dir():
        raise ValueError(f"input file {source!r} is a folder; expected a text file with one text per line, or - for standard input")
    if not path.is_file():
        return None  # a pipe can be read only once
    with path.open("rb") as stream:
        total = sum(1 for _ in read_lines(stream, source))
    if total == 0:
        raise ValueError(f"{source} is empty: expected one text per line")
    return total
