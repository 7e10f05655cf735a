"""OUT.run.json: what the rows of OUT were computed from, so that --resume continues the same run or says what differs.

While OUT.part is written its run file is OUT.part.run.json, replaced after every chunk: the number of rows, digests of their texts and of
their bytes, and the facts of the run (digests of weights and configuration, dtype, settings). Rows beyond that number are discarded.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bertfast.checkpoints.json_files import read_json

_FORMAT = 1
_BLOCK = 1 << 20  # bytes
Facts = dict[str, str]  # what a run was, by name


@dataclass
class Digests:
    """The rows of a run so far; texts and vectors are running SHA-256 digests."""

    rows: int = 0
    texts: Any = field(default_factory=hashlib.sha256)
    vectors: Any = field(default_factory=hashlib.sha256)

    def add_text(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self.texts.update(len(encoded).to_bytes(8, "little"))
        self.texts.update(encoded)


@dataclass(frozen=True)
class Run:
    """The content of a run file."""

    facts: Facts
    rows: int
    texts: str
    vectors: str
    complete: bool


def path_of(output: Path) -> Path:
    return output.with_name(output.name + ".run.json")


def _draft_of(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def write(output: Path, facts: Facts, digests: Digests, *, complete: bool = False) -> None:
    """Replaces the run file of `output` (OUT.part); it is on the disk if `complete`."""
    content = {
        "format": _FORMAT, "facts": facts, "rows": digests.rows, "complete": complete,
        "texts": digests.texts.hexdigest(), "vectors": digests.vectors.hexdigest(),
    }  # fmt: skip
    path = path_of(output)
    draft = _draft_of(path)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1)
        if complete:
            f.flush()
            os.fsync(f.fileno())
    os.replace(draft, path)


def read(output: Path) -> Run | None:
    """The run file of `output`; None where there is none. Raises ValueError, naming the file, where it is damaged."""
    path = path_of(output)
    content: dict[str, Any] | None = read_json(path, dict)
    if content is None:
        return None
    facts, rows = content.get("facts"), content.get("rows")
    digests = [content.get(name) for name in ("texts", "vectors")]
    if content.get("format") != _FORMAT or not isinstance(facts, dict) or type(rows) is not int or rows < 0 or not all(digests):
        raise ValueError(f"{path} is not a run file of this version; --restart starts over")
    return Run({str(k): str(v) for k, v in facts.items()}, rows, str(digests[0]), str(digests[1]), content.get("complete") is True)


def remove(output: Path) -> None:
    path_of(output).unlink(missing_ok=True)


def remove_with_draft(output: Path) -> None:
    """For a run that ends without rows, perhaps interrupted while it wrote its run file."""
    remove(output)
    _draft_of(path_of(output)).unlink(missing_ok=True)


def differences(before: Facts, now: Facts) -> str:
    """What differs between two runs, in words; empty where nothing does."""
    found = []
    for name in {**before, **now}:
        old, new = before.get(name, "none"), now.get(name, "none")
        if old != new:
            found.append(f"the {name} changed" if name in _DIGESTS else f"{name} was {old}, now {new}")
    return "; ".join(found)


_DIGESTS = ("model weights", "model configuration")


def digest_rest(digest: Any, stream: IO[bytes]) -> None:
    """Updates a hashlib digest with what is left of a stream."""
    while block := stream.read(_BLOCK):
        digest.update(block)


def digest_of_files(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 of the names, below `root`, and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        digest.update(f"{os.path.relpath(path, root)}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as f:
            digest_rest(digest, f)
    return digest.hexdigest()
