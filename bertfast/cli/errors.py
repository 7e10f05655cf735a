"""How a command ends: an exit code, and for a failure one line on standard error."""

import os
import sys
from collections.abc import Callable

import typer

debug = False  # set by --debug: let the exception through, with its traceback

USER_ERRORS = (ValueError, TypeError, OSError, MemoryError, ImportError)  # their messages stand alone


def exit_code(command: Callable[[], object]) -> int:
    """Run `command`. Returns 0; 2 for a wrong command line; 130 for Ctrl-C; 1 for any other failure."""
    try:
        result = command()
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of standard output is gone (bertfast embed ... -o - | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # click's usage errors; newer versions of typer have their own copy of the class
            message = error.format_message()  # empty where only the help was shown
            context = getattr(error, "ctx", None)  # of the command that was called
            return _fail(f"{message} (see {getattr(context, 'command_path', 'bertfast')} --help)", 2) if message else 2
        if isinstance(error, USER_ERRORS):
            return _fail(str(error) or type(error).__name__, 1)
        return _fail(f"{type(error).__name__}: {error} (--debug shows the traceback)", 1)
    if result == 130:  # click turned Ctrl-C into its exit code
        return _fail("interrupted", 130)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    if sys.stderr is not None:  # None where the caller closed it; print would write to standard output
        print("bertfast: error: " + " ".join(message.split()), file=sys.stderr)
    return code
