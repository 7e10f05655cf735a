"""`pytorch_model.bin`: pickled state dicts, checked before torch reads them.

torch.save writes a zip archive of uncompressed records: data.pkl, and one for each storage. A compressed record, or more records and
opcodes than any BERT has, would let a small file take any amount of memory. torch before 2.6 runs code of a hostile file in spite of
weights_only (CVE-2025-32434), so nothing is read there.
"""

import pickletools
import struct
import zipfile
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from bertfast.checkpoints.errors import DamagedCheckpoint, damaged

SAFE_TORCH = "2.6"
_ARCHIVE = b"PK\x03\x04"  # how a file starts
_MAX_DIRECTORY = 1 << 22  # bytes of the archive's list of records; BERT-large's has 30 KB
_MAX_OPCODES = 500_000  # of data.pkl; BERT-large's has 12,000
_TAIL = 1 << 16  # bytes from the end within which the archive's end record lies: a comment has at most 65,535
_ALLOCATORS = ("builtins bytearray", "__builtin__ bytearray")  # a size, and no bytes in the file


def require_safe_torch() -> None:
    """ValueError where this torch may run code of a pickled file."""
    if torch.torch_version.TorchVersion(torch.__version__) < SAFE_TORCH:
        raise ValueError(
            f"torch {torch.__version__} may run code of a pickled file (CVE-2025-32434), so none is read: install torch {SAFE_TORCH} or "
            "newer, or use safetensors"
        )


def check(path: Path) -> None:
    """ValueError, naming the file, where torch would need far more memory than the file has bytes.

    Reads the list of records and data.pkl.
    """
    with path.open("rb") as f:
        if f.read(4) != _ARCHIVE:  # before torch 1.6: one pickle stream
            f.seek(0)
            for _ in range(4):  # magic number, version, system, state dict
                _check_opcodes(f, path)
            return
        _check_directory(f, path)
        try:
            with zipfile.ZipFile(f) as archive:
                if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                    raise damaged(path, "its records overlap")
                for record in archive.infolist():
                    if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                        raise damaged(path, f"its record {record.filename!r} is compressed, which torch.save never does")
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        with archive.open(name) as record_file:
                            _check_opcodes(record_file, path)
        except DamagedCheckpoint:
            raise
        except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:  # ValueError: names that are no UTF-8
            raise damaged(path, f"its archive is damaged: {error}") from error


def read(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name; views of the mapped file if `mapped` and its format allows.

    Raises ValueError, naming the file, where it is damaged.
    """
    require_safe_torch()
    check(path)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and _is_archive(path))
    except Exception as error:  # the unpickler raises any type
        raise damaged(path, str(error).partition("\n")[0]) from error
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in weights.items()):
        raise damaged(path, "its content is not a dict of tensors by name")
    return weights


def _is_archive(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(4) == _ARCHIVE


def _check_directory(f: IO[bytes], path: Path) -> None:
    """The size of the list of records, from the end record (APPNOTE.TXT of PKWARE, 4.3.16)."""
    size = path.stat().st_size
    f.seek(max(0, size - _TAIL - 22))
    tail = f.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise damaged(path, "its archive has no end record")
    (length,) = struct.unpack_from("<I", tail, at + 12)
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if length == 0xFFFFFFFF and wide >= 0 and wide + 56 <= len(tail):
        (length,) = struct.unpack_from("<Q", tail, wide + 40)
    if length > _MAX_DIRECTORY:
        raise damaged(path, f"its archive has a list of records of {length:,} bytes")
    f.seek(0)


class _Clamped:
    """A stream that is asked for no more bytes than the file has: Python allocates what a length in a pickle claims before it reads."""

    def __init__(self, f: IO[bytes], size: int) -> None:
        self._f, self._size = f, size
        self.readline, self.tell = f.readline, f.tell

    def read(self, count: int) -> bytes:
        return self._f.read(min(count, self._size))


def _check_opcodes(f: IO[bytes], path: Path) -> None:
    stream = cast("IO[bytes]", _Clamped(f, path.stat().st_size))
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_OPCODES:
                raise damaged(path, f"its pickle has more than {_MAX_OPCODES:,} opcodes")
            if opcode.name == "GLOBAL" and argument in _ALLOCATORS:
                raise damaged(path, f"its pickle calls {argument}")
    except DamagedCheckpoint:
        raise
    except (ValueError, OverflowError) as error:
        raise damaged(path, f"its pickle is damaged: {error}") from error
