"""The output of bertfast embed: .npy and JSON Lines files that an interrupted run can continue.

Rows are written to OUT.part, chunk by chunk; a complete file is renamed to OUT. OUT.part is valid after every chunk, so an interrupted
run (Ctrl-C, a full disk, a bad line) loses the current chunk only. Its run file says what the rows were computed from.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

import numpy as np

from bertfast.cli import run_file
from bertfast.cli.part_file import open_part
from bertfast.cli.run_file import Digests, Facts, Run, digest_rest
from bertfast.cli.standard_streams import standard_output

if TYPE_CHECKING:
    from bertfast.text.embedder import Embeddings  # importing it here would import torch before the arguments are checked

_BLOCK = 1 << 20  # bytes
RESTART = "--restart starts over"


def check_output(path: str) -> None:
    """Raises ValueError where `path` is no name of a result file in a folder that exists."""
    if path == "-":
        return
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ValueError(f"--output: got {path!r}, expected a name that ends in {' or '.join(FORMATS)}, or - for JSON Lines")
    if target.is_dir():
        raise ValueError(f"--output: {path!r} is a folder")
    if not target.parent.is_dir():
        raise ValueError(f"--output: the folder {str(target.parent)!r} does not exist")


def open_output(path: str, *, resume: bool, restart: bool) -> "OutputFile":
    """The result file `path` (.npy, .jsonl, or "-": JSON Lines on standard output), new or reopened; see open_part for the errors."""
    if path == "-":
        return JsonLinesFile(standard_output().buffer, None, reopened=False)
    target = Path(path)
    kind = FORMATS[target.suffix]
    stream, reopened = open_part(part_of(target), kind.holds_rows, resume=resume, restart=restart)
    if not reopened:
        run_file.remove(part_of(target))
    return kind(stream, target, reopened=reopened)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def finished_run(target: Path, facts: Facts) -> Run:
    """The run that a complete result `target` came from, for a command that would repeat it.

    Raises ValueError where `target` was made by another command, or changed since.
    """
    with target.open("rb") as stream:
        vectors = FORMATS[target.suffix].digest_all(stream)
    candidates = (target, part_of(target))  # the second where a run was stopped between its last two renames
    matching = [name for name in candidates if (run := run_file.read(name)) is not None and run.complete and run.vectors == vectors]
    if not matching:
        raise ValueError(f"{target} exists, and nothing says that its rows are those of an earlier run; leave --resume out to replace it")
    if matching[-1] != target:
        os.replace(run_file.path_of(matching[-1]), run_file.path_of(target))
    found = run_file.read(target)
    assert found is not None, "matching"
    if differs := run_file.differences(found.facts, facts):
        raise ValueError(f"{target} is the result of another run ({differs}); leave --resume out to replace it")
    return found


class OutputFile(ABC):
    """The open result: OUT.part, renamed when complete, removed when empty; or standard output. Subclasses know the format."""

    suffix: ClassVar[str]

    def __init__(self, stream: IO[bytes], target: Path | None, *, reopened: bool) -> None:
        self.stream, self.target, self.reopened = stream, target, reopened
        self.part = None if target is None else part_of(target)
        self.facts: Facts = {}
        self.digests = Digests()

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self.digests.rows

    def begin(self, dim: int, facts: Facts) -> str | None:
        """Starts a new file of vectors of `dim`, or checks the rows of a reopened one, which are then `rows`.

        Returns the digest that the texts of those rows must have; None without rows. Raises ValueError, naming what differs.
        """
        self.dim, self.facts = dim, facts
        if not self.reopened or self.part is None:
            self._start()
            if self.part is not None:
                run_file.write(self.part, facts, self.digests)
            return None
        run = run_file.read(self.part)
        if run is None:
            raise ValueError(
                f"{self.part} holds rows, and no {run_file.path_of(self.part).name} says what they were computed from; {RESTART}"
            )
        if differs := run_file.differences(run.facts, facts):
            raise ValueError(f"{self.part} was begun by another run: {differs}; {RESTART}")
        self.digests.rows = run.rows
        self._check_rows(run)
        self.reopened = run.rows > 0
        if self.digests.vectors.hexdigest() != run.vectors:
            raise ValueError(f"the rows of {self.part} changed since they were written; {RESTART}")
        return run.texts

    def append(self, texts: Sequence[str], vectors: "Embeddings") -> None:
        content = self._encoded(texts, vectors)
        self._write(content, len(texts))
        self.digests.vectors.update(content)
        for text in texts:
            self.digests.add_text(text)
        if self.part is not None:
            run_file.write(self.part, self.facts, self.digests)

    def finish(self) -> None:
        """Renames OUT.part to OUT once all its rows are on the disk."""
        if self.part is not None and self.target is not None:
            os.fsync(self.stream.fileno())
            run_file.write(self.part, self.facts, self.digests, complete=True)
            os.replace(self.part, self.target)
            os.replace(run_file.path_of(self.part), run_file.path_of(self.target))
            _sync_folder(self.target.parent)
            self.stream.close()  # the lock goes with it

    def close(self) -> None:
        """Closes a file that is not finished; one that never had rows is removed."""
        if self.part is None or self.stream.closed:
            return
        if not self.reopened and self.rows == 0:
            self.part.unlink(missing_ok=True)
            run_file.remove_with_draft(self.part)
        with suppress(OSError):  # a full disk, reported by the write before
            self.stream.close()

    def _mismatch(self, found: object) -> ValueError:
        return ValueError(f"{self.part} holds {found}, expected float32 vectors of {self.dim}; {RESTART}")

    @classmethod
    def digest_all(cls, stream: IO[bytes]) -> str:
        """Of the rows of a complete file."""
        cls._skip_header(stream)
        digests = Digests()
        digest_rest(digests.vectors, stream)
        return str(digests.vectors.hexdigest())

    @staticmethod
    @abstractmethod
    def holds_rows(stream: IO[bytes]) -> bool: ...

    @staticmethod  # noqa: B027 (JSON Lines have none)
    def _skip_header(stream: IO[bytes]) -> None:
        """Reads what comes before the first row."""

    def _start(self) -> None:  # noqa: B027 (as above)
        """Writes what comes before the first row."""

    @abstractmethod
    def _check_rows(self, run: Run) -> None:
        """Digests the first run.rows rows and discards what follows. Raises ValueError where the file has fewer."""

    @abstractmethod
    def _encoded(self, texts: Sequence[str], vectors: "Embeddings") -> bytes: ...

    @abstractmethod
    def _write(self, content: bytes, rows: int) -> None: ...


class NpyFile(OutputFile):
    """A NumPy array [rows, dim]. NumPy pads the header so that the first dimension can grow: it is rewritten in place."""

    @staticmethod
    def holds_rows(stream: IO[bytes]) -> bool:
        stream.seek(0)
        try:
            return _read_npy_header(stream)[0][0] > 0
        except (ValueError, IndexError):
            return stream.seek(0, os.SEEK_END) > 0

    @staticmethod
    def _skip_header(stream: IO[bytes]) -> None:
        try:
            _read_npy_header(stream)
        except ValueError:
            stream.seek(0)

    def _start(self) -> None:
        self._write_header()
        self.start = self.stream.tell()

    def _check_rows(self, run: Run) -> None:
        self.stream.seek(0)
        try:
            shape, fortran, dtype = _read_npy_header(self.stream)
        except ValueError as error:
            raise self._mismatch("no NumPy array") from error
        if len(shape) != 2 or shape[1] != self.dim or fortran or dtype != np.float32:
            raise self._mismatch(f"{dtype} {list(shape)}")
        self.start = self.stream.tell()
        left = 4 * self.dim * run.rows
        if shape[0] < run.rows or os.fstat(self.stream.fileno()).st_size < self.start + left:
            raise ValueError(f"{self.part} has lost rows, its run file says {run.rows:,}; {RESTART}")
        while left:
            block = self.stream.read(min(_BLOCK, left))
            self.digests.vectors.update(block)
            left -= len(block)
        self.stream.truncate(self.stream.tell())  # rows that the run file does not count
        self._write_header()

    def _encoded(self, texts: Sequence[str], vectors: "Embeddings") -> bytes:
        return np.ascontiguousarray(vectors, dtype="<f4").tobytes()

    def _write(self, content: bytes, rows: int) -> None:
        self.stream.seek(self.start + 4 * self.dim * self.rows)
        self.stream.write(content)
        self.stream.flush()  # rows before the header that counts them
        self.digests.rows += rows
        self._write_header()
        self.stream.flush()

    def _write_header(self) -> None:
        self.stream.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.dim)}
        np.lib.format.write_array_header_1_0(self.stream, header)


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[np.float32]"]:
    """ValueError where there is none."""
    try:
        np.lib.format.read_magic(stream)
        header: tuple[tuple[int, ...], bool, np.dtype[np.float32]] = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # NumPy parses it as Python: TokenError, SyntaxError, RecursionError ...
        raise ValueError(f"no header of a NumPy array: {error or type(error).__name__}") from error
    return header


class JsonLinesFile(OutputFile):
    """One object per line: {"text": ..., "embedding": [...]}, with the 9 digits that float32 needs to round-trip."""

    @staticmethod
    def holds_rows(stream: IO[bytes]) -> bool:
        stream.seek(0)
        return any(b"\n" in block for block in iter(lambda: stream.read(_BLOCK), b""))

    def _check_rows(self, run: Run) -> None:
        self.stream.seek(0)
        for _ in range(run.rows):
            if not self._digest_line():
                raise ValueError(f"{self.part} has lost rows, its run file says {run.rows:,}; {RESTART}")
        self.stream.seek(self.stream.tell())
        self.stream.truncate()  # lines that the run file does not count

    def _digest_line(self) -> bool:
        while piece := self.stream.readline(_BLOCK):
            self.digests.vectors.update(piece)
            if piece.endswith(b"\n"):
                return True
        return False

    def _encoded(self, texts: Sequence[str], vectors: "Embeddings") -> bytes:
        lines: Iterable[str] = (
            f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{", ".join(map("{:.9g}".format, vector))}]}}\n'
            for text, vector in zip(texts, vectors.tolist(), strict=True)
        )
        return "".join(lines).encode("utf-8", "backslashreplace")  # a lone surrogate is written as its JSON escape

    def _write(self, content: bytes, rows: int) -> None:
        self.stream.write(content)
        self.stream.flush()
        self.digests.rows += rows


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # a file system that cannot
        os.fsync(descriptor)
    os.close(descriptor)


FORMATS: dict[str, type[NpyFile] | type[JsonLinesFile]] = {".npy": NpyFile, ".jsonl": JsonLinesFile}
