"""Entry point of the program `doit`: Ctrl-C during its imports ends it without a traceback.

Importing this module changes how the process handles SIGINT, so only the program imports it.
"""

import signal

# Under nohup or in a shell's background, SIGINT may be ignored, and stays so.
_ENDS = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _ENDS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from rc_tasks.commands import main as doit  # noqa: E402 - it takes most of the time


def main() -> int:
    """Run the command line; return the exit status."""
    try:
        return doit.main()
    finally:
        # Python would report a Ctrl-C at its own end with a traceback, too.
        if _ENDS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
