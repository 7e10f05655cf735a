"""The input of bertfast embed: one text per line, or a field of JSON Lines, or a column of CSV."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

FORMATS = ("text", "jsonl", "csv", "tsv")
ERRORS = ("strict", "replace", "ignore")
_BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_REFUSED = frozenset(
    (".json", ".parquet", ".arrow", ".feather", ".npy", ".npz", ".xlsx", ".xls", ".gz", ".bz2", ".xz", ".zst", ".zip", ".pdf", ".docx")
)
_MAX_FIELD = 1 << 27  # characters of a CSV field; csv's own limit is 131,072


@dataclass(frozen=True)
class InputTexts:
    """How texts are read: `format` is one of FORMATS; `field` is the JSON field or CSV column; `errors` one of ERRORS."""

    format: str = "text"
    field: str = "text"
    encoding: str = "utf-8"
    errors: str = "strict"

    @classmethod
    def of(cls, source: str, format: str | None, field: str | None, encoding: str, errors: str) -> "InputTexts":
        """For the options of the command line. Raises ValueError, naming the option."""
        suffix = "" if source == "-" else Path(source).suffix.lower()
        if format is None and suffix in _REFUSED:
            raise ValueError(
                f"input file {source!r}: {suffix} is not read; expected {', '.join(FORMATS)}. --input-format text reads its lines"
            )
        format = format or _BY_SUFFIX.get(suffix, "text")
        if format not in FORMATS:
            raise ValueError(f"--input-format: got {format!r}, expected {', '.join(FORMATS)}")
        if field is not None and format == "text":
            raise ValueError(f"--text-field: got {field!r}, but lines of text have no fields; add --input-format jsonl, csv or tsv")
        if errors not in ERRORS:
            raise ValueError(f"--errors: got {errors!r}, expected {', '.join(ERRORS)}")
        try:
            encoding = codecs.lookup(encoding).name
            "".encode(encoding)
        except LookupError as error:
            raise ValueError(f"--encoding: got {encoding!r}, expected the name of a text encoding, such as utf-8 or latin-1") from error
        return cls(format, field or "text", encoding, errors)

    def read(self, stream: IO[bytes], name: str) -> Iterator[str]:
        """The texts of a stream, in order. Raises ValueError, naming `name` and the line, for what cannot be read."""
        lines = self._lines(stream, name)
        if self.format == "text":
            return (line.removesuffix("\n").removesuffix("\r") for line in lines)
        return self._json_lines(lines, name) if self.format == "jsonl" else self._table(lines, name)

    def count(self, source: str) -> int | None:
        """The number of texts in a file; None for standard input and pipes. Raises ValueError for a file that cannot be read."""
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
            total = sum(1 for _ in self.read(stream, source))
        if total == 0:
            raise ValueError(f"{source} is empty: expected one text per line")
        return total

    def _lines(self, stream: IO[bytes], name: str) -> Iterator[str]:
        """Lines with their ends, which are \\n only."""
        if self.encoding == "utf-8":
            yield from self._utf8_lines(stream, name)
            return
        number = 0
        decoded = io.TextIOWrapper(stream, encoding=self.encoding, errors=self.errors, newline="\n")
        try:
            for number, line in enumerate(decoded, start=1):  # noqa: B007 (used below)
                yield line
        except UnicodeError as error:
            raise ValueError(f"{name}: after line {number} it is not {self.encoding} ({error}); --encoding names another") from error
        finally:
            decoded.detach()  # closing it would close the caller's stream

    def _utf8_lines(self, stream: IO[bytes], name: str) -> Iterator[str]:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", self.errors)
            except UnicodeDecodeError as error:
                utf16 = line.startswith((b"\xff\xfe", b"\xfe\xff"))
                hint = "it looks like UTF-16: add --encoding utf-16" if utf16 else "--encoding names another, --errors replace goes on"
                raise ValueError(f"{name}: line {number} is not UTF-8 ({error.reason} at byte {error.start}); {hint}") from error
            yield text

    def _json_lines(self, lines: Iterator[str], name: str) -> Iterator[str]:
        for number, line in enumerate(lines, start=1):
            try:
                value: Any = json.loads(line)
            except RecursionError as error:
                raise ValueError(f"{name}: line {number} is nested too deeply") from error
            except ValueError as error:
                raise ValueError(f"{name}: line {number} is not JSON ({error}); {_PLAIN}") from error
            if not isinstance(value, dict):
                raise ValueError(f"{name}: line {number} is a JSON {type(value).__name__}, expected an object; {_PLAIN}")
            yield self._checked(value.get(self.field), list(value), f"{name}: line {number}")

    def _table(self, lines: Iterator[str], name: str) -> Iterator[str]:
        csv.field_size_limit(_MAX_FIELD)
        rows = csv.reader(lines, delimiter="\t" if self.format == "tsv" else ",", strict=True)
        try:
            columns = next(rows, None)
            if columns is None:
                return
            if columns.count(self.field) != 1:
                raise ValueError(f"{name}: {self._no_field(columns)}")
            place = columns.index(self.field)
            for row in rows:
                if row:  # csv skips nothing; an empty line is no record
                    yield self._checked(row[place] if place < len(row) else None, columns, f"{name}: line {rows.line_num}")
        except csv.Error as error:
            raise ValueError(f"{name}: line {rows.line_num} is not {self.format.upper()} ({error}); {_PLAIN}") from error

    def _checked(self, text: Any, fields: list[str], where: str) -> str:
        if text is None:
            raise ValueError(f"{where}: {self._no_field(fields)}")
        if not isinstance(text, str):
            raise ValueError(f"{where}: {self.field!r} is a {type(text).__name__}, expected a text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{where}: {self.field!r} has half of a surrogate pair, which is no text")
        return text

    def _no_field(self, fields: list[str]) -> str:
        found = ", ".join(fields[:8]) or "none"
        return f"no field {self.field!r} (found: {found}); name one with --text-field. {_PLAIN}"


_PLAIN = "--input-format text reads the lines as they are"
