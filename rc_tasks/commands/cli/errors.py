"""Error messages and exit status of all commands, and output that nobody reads any more."""

import contextlib
import io
import os
import sys
from collections.abc import Callable

from rc_tasks.errors import RcError, missing_package
from rc_tasks.tools.interrupt import recognized
from rc_tasks.util.text import printable_lines

# The exit status that a shell reports for a program killed by SIGPIPE, and by Ctrl-C.
_BROKEN_PIPE = 141
INTERRUPTED = 130
# The command could not attempt anything.
_NOT_ATTEMPTED = 3


def report_errors(run: Callable[[], int]) -> int:
    """Run a command, print the error that it raises, and return the exit status."""
    problem: RcError | None
    try:
        with recognized():
            status = run()
        sys.stdout.flush()
    except RcError as error:
        problem = error
    except BrokenPipeError:
        discard_output()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except ModuleNotFoundError as error:
        problem = missing_package(error)
        if problem is None:
            raise
    except OSError as error:
        from rc_tasks.state.disk.files import refused

        problem = refused(error)
        if problem is None:
            raise
    else:
        return status
    _say(f"ERROR: {printable_lines(str(problem))}")
    return _NOT_ATTEMPTED


def _say(text: str) -> None:
    # Its reader may be gone, as in `doit 2>&1 | head`.
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")


def leave_at_once() -> None:
    """End this process at a second Ctrl-C; its guard ends its commands, and the next run clears up."""
    # The terminal may be gone, and a lock of Python's streams be held.
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), b"interrupted again: not waiting for the steps to end\n")
    os._exit(INTERRUPTED)


def leave_closed_output() -> None:
    """Discard output that cannot be written, for example because the terminal was closed.

    Otherwise Python would write it again at exit, fail, and replace the exit status with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def discard_output() -> None:
    """Discard all further output, because its reader, such as `head`, has ended.

    Otherwise Python would write its buffer at exit and print a traceback.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
