"""OUT.part: the file that one run of bertfast embed writes, locked, never through a link, and never over rows that are to be kept."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is opened at once, and refused


def open_part(part: Path, holds_rows: Callable[[IO[bytes]], bool], *, resume: bool, restart: bool) -> tuple[IO[bytes], bool]:
    """The locked file, and whether it was there with rows to resume.

    holds_rows: tells from an open file whether it does. Raises ValueError, before anything is changed, where another run holds the lock,
    where rows are there and neither flag says what to do with them, and for a link or what is no file; OSError where the folder cannot be
    written.
    """
    if not os.path.lexists(part):
        return _create(part), False
    stream = _open(part, _FLAGS)
    try:
        _lock(stream, part)
        if holds_rows(stream) and not restart:
            if not resume:
                raise ValueError(f"{part} holds rows of an interrupted run; add --resume to continue it, or --restart to start over")
            return stream, True
        os.unlink(part)  # written anew rather than over: another name of the file keeps its content
    except BaseException:
        stream.close()
        raise
    made = _create(part)
    stream.close()
    return made, False


def _create(part: Path) -> IO[bytes]:
    stream = _open(part, _FLAGS | os.O_CREAT | os.O_EXCL)
    _lock(stream, part)
    return stream


def _open(part: Path, flags: int) -> IO[bytes]:
    try:
        descriptor = os.open(part, flags, 0o666)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise _busy(part) from error
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ValueError(f"{part} is a symbolic link; remove it") from error
        if error.errno == errno.EISDIR:
            raise ValueError(f"{part} is a folder; remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{part} is not a regular file; remove it")
    return os.fdopen(descriptor, "r+b")


def _lock(stream: IO[bytes], part: Path) -> None:
    """Locks the file for this process's life. Raises ValueError where another has the lock or has just renamed the file."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise _busy(part) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # a file system without locks: O_EXCL still holds
            raise
    own = os.fstat(stream.fileno())
    try:
        named = os.lstat(part)
    except FileNotFoundError:
        named = None
    if named is None or (named.st_dev, named.st_ino) != (own.st_dev, own.st_ino):
        stream.close()
        raise _busy(part)


def _busy(part: Path) -> ValueError:
    return ValueError(f"{part} is being written by another run; wait for it, or name another output")
