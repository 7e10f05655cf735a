"""Cases that are files of a model folder, which a reader reads right or refuses by name in bounded time and memory."""

import base64
import tempfile
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.fuzz.bounds import bounded
from tests.fuzz.case import Case

PLAIN = 200  # bytes: longer content is printed compressed
REFUSALS = (ValueError, OSError)


def blob(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


def printed(content: bytes, blob: str = "blob({})") -> str:
    return repr(content) if len(content) <= PLAIN else blob.format(repr(base64.b85encode(zlib.compress(content, 9)).decode()))


@dataclass(frozen=True, repr=False)
class FolderCase(Case):
    """Files in one folder, by their path in it."""

    files: dict[str, bytes]

    seconds: ClassVar[float] = 10.0
    megabytes: ClassVar[float] = 100.0  # beyond 30 times the files
    code: ClassVar[str]  # what `read` does, as a program: `folder` is a Path

    @abstractmethod
    def read(self, folder: Path) -> Any: ...

    @abstractmethod
    def judge(self, folder: Path, result: Any) -> None:
        """AssertionError where a file was read wrong."""

    def judge_refusal(self, folder: Path, error: Exception) -> None:
        """AssertionError where a file was refused that should not be."""

    def prepare(self, folder: Path) -> None:
        """Puts files into the folder that are always valid."""

    def check(self) -> str:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            folder = Path(name) / "model"
            folder.mkdir()
            self.prepare(folder)
            for path, content in self.files.items():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(content)
            size = sum(map(len, self.files.values())) / 1e6
            try:
                with bounded(self.seconds + size, self.megabytes + 30 * size):
                    result = self.read(folder)
            except REFUSALS as error:
                assert str(folder) in str(error), f"the error names no file: {type(error).__name__}: {error}"
                self.judge_refusal(folder, error)
                return f"refused: {type(error).__name__}"
            self.judge(folder, result)
            return "accepted"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({{{', '.join(f'{name!r}: {printed(content)}' for name, content in self.files.items())}}})"

    def program(self) -> str:
        inline = "zlib.decompress(base64.b85decode({}))"
        writes = [
            f"(folder / {name!r}).parent.mkdir(exist_ok=True)\n(folder / {name!r}).write_bytes({printed(content, inline)})"
            for name, content in self.files.items()
        ]
        prepare = f"from {type(self).__module__} import {type(self).__name__}" if type(self).prepare is not FolderCase.prepare else ""
        call = f"{type(self).__name__}({{}}).prepare(folder)" if prepare else ""
        lines = [
            "import base64, tempfile, zlib",
            "from pathlib import Path",
            prepare,
            "folder = Path(tempfile.mkdtemp())",
            call,
            *writes,
            self.code,
        ]
        return "\n".join(line for line in lines if line)
