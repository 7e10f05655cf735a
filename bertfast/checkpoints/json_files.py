"""JSON files of a model folder, read in bounded time and memory.

A parsed file takes up to 25 times its size, so the size is limited before it is parsed.
"""

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import TypeVar

MAX_BYTES = 1 << 22  # BERT-large's index has 40 KB, a config with 10,000 labels 1 MB
MAX_DEPTH = 100  # levels: Python's own functions (repr, copy) follow about ten times as many
MAX_LAYERS = 1000  # each is some milliseconds of building modules; BERT-large has 24
_READ_BY_TRANSFORMERS = ("config.json", "generation_config.json", "adapter_config.json")
T = TypeVar("T")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def read_json(path: Path, kind: type[T], max_bytes: int = MAX_BYTES) -> T | None:
    """The parsed file, None where it does not exist.

    Raises ValueError, naming the file, for invalid JSON, another type than `kind`, more than `max_bytes` bytes, nesting that the parser
    cannot follow, and for a path that is no regular file.
    """
    try:
        content = _parsed(path, max_bytes)
    except FileNotFoundError:
        return None
    except ValueError as error:
        if isinstance(error, (UnicodeDecodeError, json.JSONDecodeError)):
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        raise
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected a {kind.__name__}")
    return content


def shown(value: object) -> str:
    """repr of a value from a file, cut to a length that an error can have."""
    return _SHORT.repr(value)


def check_folder(folder: Path) -> None:
    """ValueError, naming the file, where JSON that transformers reads from a folder is too long or too deep, or no regular file, and
    where config.json asks for so many layers that building them does not end.

    Other damage is left to transformers, which names the file.
    """
    for name in _READ_BY_TRANSFORMERS:
        path = folder / name
        try:
            content = _parsed(path, MAX_BYTES)
        except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
            continue
        layers = content.get("num_hidden_layers") if isinstance(content, dict) else None
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise ValueError(f"{path}: num_hidden_layers is {shown(layers)}, expected at most {MAX_LAYERS:,}")


def _parsed(path: Path, max_bytes: int) -> object:
    text = read_text(path, max_bytes)
    try:
        parsed: object = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON of a model folder: it is nested too deeply") from error
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise ValueError(f"{path} is not valid JSON of a model folder: {error}") from error  # int() takes at most 4300 digits
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(parsed):
        raise ValueError(f"{path} is not valid JSON of a model folder: it is nested too deeply")
    return parsed


def _is_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level if isinstance(each, (list, dict)) for inner in (each.values() if isinstance(each, dict) else each)]
    return bool(level)


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file. Raises FileNotFoundError, and ValueError, naming it, above `max_bytes` and for what is no regular file."""
    with open(path, "rb", opener=_nonblocking) as f:  # opening a pipe would wait for its writer
        status = os.fstat(f.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"{path} has {status.st_size:,} bytes, expected at most {max_bytes:,}")
        return f.read(max_bytes + 1).decode("utf-8")


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
