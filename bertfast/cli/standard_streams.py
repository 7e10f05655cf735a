"""Standard input and output, which the caller may have closed."""

import os
import sys
from typing import BinaryIO, TextIO


def reserve_descriptors() -> None:
    """Puts /dev/null where a standard stream is closed: the next file that is opened would get its number, and a library's output."""
    descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def standard_input() -> BinaryIO:
    """Its bytes. Raises ValueError where it is closed."""
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError("standard input is closed")
    return sys.stdin.buffer


def standard_output() -> TextIO:
    """Raises ValueError where it is closed."""
    if sys.stdout is None or sys.stdout.closed:
        raise ValueError("standard output is closed")
    return sys.stdout


def read_standard_input() -> str:
    """All its text. Raises ValueError where it is closed, or not UTF-8."""
    if sys.stdin is not None and not hasattr(sys.stdin, "buffer"):  # replaced by a program that calls main
        return sys.stdin.read()
    try:
        return standard_input().read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 ({error.reason} at byte {error.start})") from error
