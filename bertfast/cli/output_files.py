"""The output of bertfast embed: .npy and JSON Lines files that an interrupted run can continue.

Rows are written to OUT.part, chunk by chunk; a complete file is renamed to OUT. OUT.part is valid after every chunk, so an interrupted
run (Ctrl-C, a full disk, a bad line) loses the current chunk only.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from bertfast.text.embedder import Embeddings  # importing it here would import torch before the arguments are checked


class OutputFile(Protocol):
    """An open result file."""

    rows: int  # written so far
    part: Path | None  # OUT.part; None for standard output

    def append(self, texts: Sequence[str], vectors: "Embeddings") -> None: ...
    def last(self) -> "Embeddings": ...  # the last row, [dim]; needs rows > 0
    def finish(self) -> None: ...  # rename OUT.part to OUT
    def close(self) -> None: ...


def check_output(path: str, *, resume: bool, restart: bool) -> None:
    """Raises ValueError where `path` cannot be written, or where OUT.part exists and neither flag says what to do with it."""
    if path == "-":
        return
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ValueError(f"--output: got {path!r}, expected a name that ends in {' or '.join(FORMATS)}, or - for JSON Lines")
    if target.is_dir():
        raise ValueError(f"--output: {path!r} is a folder")
    if not target.parent.is_dir():
        raise ValueError(f"--output: the folder {str(target.parent)!r} does not exist")
    if _part(target).exists() and not (resume or restart):
        raise ValueError(f"{_part(target)} holds rows of an interrupted run; add --resume to continue it, or --restart to start over")


def open_output(path: str, dim: int, *, resume: bool) -> OutputFile:
    """Start the result file `path` (.npy, .jsonl, or "-": JSON Lines on standard output), or reopen its OUT.part."""
    if path == "-":
        return JsonLinesFile(sys.stdout.buffer, None, dim)
    target = Path(path)
    reopen = resume and _part(target).exists()
    return FORMATS[target.suffix](open(_part(target), "r+b" if reopen else "w+b"), target, dim)


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


class _PartFile:
    """Common to both formats: the open file OUT.part, renamed when complete, removed when empty."""

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
        return ValueError(f"{self.part} holds {found}, expected float32 vectors of {self.dim}; --restart starts over")


class NpyFile(_PartFile):
    """A NumPy array [rows, dim]. NumPy pads the header so that the first dimension can grow: it is rewritten in place."""

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
        stream.truncate(self._end())  # drop rows that the header does not count

    def append(self, texts: Sequence[str], vectors: "Embeddings") -> None:
        self.stream.seek(self._end())
        self.stream.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
        self.stream.flush()  # rows before the header that counts them
        self.rows += len(vectors)
        self._write_header()
        self.stream.flush()

    def last(self) -> "Embeddings":
        self.stream.seek(self._end() - 4 * self.dim)
        return np.frombuffer(self.stream.read(4 * self.dim), dtype=np.float32)

    def _end(self) -> int:
        return self.start + 4 * self.dim * self.rows

    def _write_header(self) -> None:
        self.stream.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.dim)}
        np.lib.format.write_array_header_1_0(self.stream, header)


class JsonLinesFile(_PartFile):
    """One object per line: {"text": ..., "embedding": [...]}, with the 9 digits that float32 needs to round-trip."""

    def __init__(self, stream: IO[bytes], target: Path | None, dim: int) -> None:
        super().__init__(stream, target, dim)
        self._last: bytes | None = None
        if target is None:
            return
        end = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break  # the run stopped within this line
            self._last, self.rows, end = line, self.rows + 1, end + len(line)
        if self._last is not None and len(self.last()) != dim:
            raise self._mismatch(f"vectors of {len(self.last())}")
        stream.seek(end)
        stream.truncate()

    def append(self, texts: Sequence[str], vectors: "Embeddings") -> None:
        lines = [
            f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{", ".join(map("{:.9g}".format, vector))}]}}\n'
            for text, vector in zip(texts, vectors.tolist(), strict=True)
        ]
        self.stream.write("".join(lines).encode())
        self.stream.flush()
        self.rows += len(lines)

    def last(self) -> "Embeddings":
        assert self._last is not None, "rows > 0"
        try:
            return np.array(json.loads(self._last)["embedding"], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise self._mismatch("other lines than JSON objects with an embedding") from error


FORMATS: dict[str, type[NpyFile] | type[JsonLinesFile]] = {".npy": NpyFile, ".jsonl": JsonLinesFile}
