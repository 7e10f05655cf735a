"""The errors of reading a checkpoint."""

from os import PathLike


class DamagedCheckpoint(ValueError):  # noqa: N818 (callers catch ValueError; the class is for this package)
    """A file whose content violates its format."""


def damaged(path: str | PathLike[str], what: str) -> DamagedCheckpoint:
    """The error to raise for `path`. what: a clause without a full stop."""
    return DamagedCheckpoint(f"{path}: {what}. The file is truncated, damaged or of another format: copy or download it again.")


def missing_reader(module: str, path: str | PathLike[str]) -> ImportError:
    """The error to raise where the optional `module` that reads `path` is not installed."""
    return ImportError(f"reading {path} needs {module}: pip install 'bertfast[compat]'")
