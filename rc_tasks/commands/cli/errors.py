"""Errors of commands, reported in our form and without doit's own."""

import contextlib
import io
import os
import sys
from collections.abc import Callable

from rc_tasks.errors import RcError
from rc_tasks.util.text import printable_lines

# What a shell reports for a program that SIGPIPE ended, and one that Ctrl-C did.
_BROKEN_PIPE = 141
INTERRUPTED = 130
# Nothing was tried.
WRONG = 3


def reported(run: Callable[[], int]) -> int:
    """Run a command and report what goes wrong; returns the exit status."""
    problem: RcError | None
    try:
        status = run()
        sys.stdout.flush()
    except RcError as error:
        problem = error
    except BrokenPipeError:
        reader_left()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except OSError as error:
        from rc_tasks.state.disk.files import refused

        problem = refused(error)
        if problem is None:
            raise
    else:
        return status
    _say(f"ERROR: {printable_lines(str(problem))}")
    return WRONG


def _say(text: str) -> None:
    # Its reader may be gone, as in `doit 2>&1 | head`.
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")


def leave_closed_output() -> None:
    """Drop what cannot be written, as to a terminal that was closed: the exit status stays what it is.

    Python would try once more when it ends, and exit with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reader_left() -> None:
    """Stop writing: what reads our output, such as `head`, has seen enough."""
    # What is still in the buffer would otherwise fail again, loudly, when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
