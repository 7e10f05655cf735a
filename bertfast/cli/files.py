"""Text files that come in and result files that grow.

A result is written to OUT.part, chunk by chunk, and takes its name OUT when it is complete. OUT.part is a valid file after every
chunk, so whatever ends a run (Ctrl-C, a full disk, a bad line) costs the chunk at hand and nothing before it.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def read_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a UTF-8 stream without their ends; only \\n and \\r\\n end one. ValueError names the line that is not UTF-8."""
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            hint = "; it looks like UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
            raise ValueError(f"{name}: line {number} is not UTF-8 ({error.reason} at byte {error.start}){hint}") from error
        yield text.removesuffix("\n").removesuffix("\r")


class OutputFile(Protocol):
    """Rows that have been written so far, and how to write more."""

    rows: int
    part: Path | None  # where they lie until finish(); None for standard output

    def append(self, texts: Sequence[str], vectors: Vectors) -> None: ...
    def last(self) -> Vectors: ...  # the newest row, [dim]; rows must not be 0
    def finish(self) -> None: ...  # give the file its name
    def close(self) -> None: ...


def check_output(path: str, *, resume: bool, restart: bool) -> None:
    """ValueError where `path` cannot be written, or an unfinished result of that name waits and neither flag says what to do with it."""
    if path == "-":
        return
    target = Path(path)
    if target.suffix not in OUTPUTS:
        raise ValueError(f"--output: got {path!r}, expected a name that ends in {' or '.join(OUTPUTS)}, or - for JSON Lines")
    if target.is_dir():
        raise ValueError(f"--output: {path!r} is a folder")
    if not target.parent.is_dir():
        raise ValueError(f"--output: the folder {str(target.parent)!r} does not exist")
    if _part(target).exists() and not (resume or restart):
        raise ValueError(f"{_part(target)} holds rows of a run that was cut short; add --resume to go on from them, or --restart")


def open_output(path: str, dim: int, *, resume: bool) -> OutputFile:
    """Begin the result file `path`, or go on with its unfinished one: .npy, .jsonl, or "-" for JSON Lines on standard output."""
    if path == "-":
        return JsonLines(sys.stdout.buffer, None, dim)
    target = Path(path)
    go_on = resume and _part(target).exists()
    return OUTPUTS[target.suffix](open(_part(target), "r+b" if go_on else "w+b"), target, dim)


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


class _File:
    """What both formats share: the open file OUT.part, and its renaming."""

    def __init__(self, stream: IO[bytes], target: Path | None, dim: int) -> None:
        self.stream, self.target, self.dim, self.rows = stream, target, dim, 0
        self.part = None if target is None else _part(target)

    def finish(self) -> None:
        self.close()
        if self.part is not None and self.target is not None:
            os.replace(self.part, self.target)

    def close(self) -> None:
        if self.part is None or self.stream.closed:
            return
        self.stream.close()
        if self.rows == 0:
            self.part.unlink()

    def _mismatch(self, found: object) -> ValueError:
        return ValueError(f"{self.part} holds {found}, expected float32 vectors of {self.dim}; --restart begins anew")


class Npy(_File):
    """A NumPy array [rows, dim]. NumPy leaves room in the header for the first dimension to grow, so the header is rewritten in place."""

    def __init__(self, stream: IO[bytes], target: Path | None, dim: int) -> None:
        super().__init__(stream, target, dim)
        if stream.seek(0, os.SEEK_END) == 0:
            self._write_header()
            self.start = stream.tell()
            return
        stream.seek(0)
        try:
            np.lib.format.read_magic(stream)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        except ValueError as error:
            raise self._mismatch("no NumPy array") from error
        if len(shape) != 2 or shape[1] != dim or fortran or dtype != np.float32:
            raise self._mismatch(f"{dtype} {list(shape)}")
        self.start, self.rows = stream.tell(), shape[0]
        stream.truncate(self._end())  # rows that were written when the run stopped, but not yet counted

    def append(self, texts: Sequence[str], vectors: Vectors) -> None:
        self.stream.seek(self._end())
        self.stream.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
        self.stream.flush()  # first the rows, then the header that counts them
        self.rows += len(vectors)
        self._write_header()
        self.stream.flush()

    def last(self) -> Vectors:
        self.stream.seek(self._end() - 4 * self.dim)
        return np.frombuffer(self.stream.read(4 * self.dim), dtype=np.float32)

    def _end(self) -> int:
        return self.start + 4 * self.dim * self.rows

    def _write_header(self) -> None:
        self.stream.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.dim)}
        np.lib.format.write_array_header_1_0(self.stream, header)


class JsonLines(_File):
    """One object a line: {"text": ..., "embedding": [...]}, with as many digits as float32 needs to come back unchanged."""

    def __init__(self, stream: IO[bytes], target: Path | None, dim: int) -> None:
        super().__init__(stream, target, dim)
        self._last: Any = None
        if target is None:
            return
        end = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break  # half a line: the run stopped while it was written
            self._last, self.rows, end = line, self.rows + 1, end + len(line)
        if self._last is not None and len(self.last()) != dim:
            raise self._mismatch(f"vectors of {len(self.last())}")
        stream.seek(end)
        stream.truncate()

    def append(self, texts: Sequence[str], vectors: Vectors) -> None:
        lines = [
            f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{", ".join(map("{:.9g}".format, vector))}]}}\n'
            for text, vector in zip(texts, vectors.tolist(), strict=True)
        ]
        self.stream.write("".join(lines).encode())
        self.stream.flush()
        self.rows += len(lines)

    def last(self) -> Vectors:
        try:
            return np.array(json.loads(self._last)["embedding"], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise self._mismatch("lines of another kind") from error


OUTPUTS: dict[str, type[Npy] | type[JsonLines]] = {".npy": Npy, ".jsonl": JsonLines}
