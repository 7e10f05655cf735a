"""The two errors that reading a checkpoint can end in."""

from importlib import import_module
from os import PathLike
from typing import Any


class DamagedCheckpoint(ValueError):  # noqa: N818 (callers catch ValueError; this name is for ourselves)
    """A file whose content is not what its format promises."""


def damaged(path: str | PathLike[str], what: str) -> DamagedCheckpoint:
    """The error to raise for `path`; `what` is a clause without a full stop."""
    return DamagedCheckpoint(f"{path}: {what}. The file is truncated, damaged, or not what its name says: copy or download it again.")


def reader(module: str, path: str | PathLike[str]) -> Any:
    """The optional module that reads `path`, or an ImportError that names the extra."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"reading {path} needs {module}: pip install 'bertfast[compat]'") from error
