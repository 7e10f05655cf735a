"""The two errors that reading a checkpoint can end in."""

from os import PathLike


class DamagedCheckpoint(ValueError):  # noqa: N818 (callers catch ValueError; this name is for ourselves)
    """A file whose content is not what its format promises."""


def damaged(path: str | PathLike[str], what: str) -> DamagedCheckpoint:
    """The error to raise for `path`; `what` is a clause without a full stop."""
    return DamagedCheckpoint(f"{path}: {what}. The file is truncated, damaged, or not what its name says: copy or download it again.")


def missing_reader(module: str, path: str | PathLike[str]) -> ImportError:
    """The error to raise where the optional module that reads `path` is not installed; it names the extra."""
    return ImportError(f"reading {path} needs {module}: pip install 'bertfast[compat]'")
