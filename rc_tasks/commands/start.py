"""Entry point of the program `doit`: Ctrl-C during its imports ends it without a traceback.

Importing this module changes how the process handles SIGINT, so only the program imports it.
"""

import signal

# Under nohup or in a shell's background, SIGINT may be ignored, and stays so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from rc_tasks.commands import main as doit
from rc_tasks.tools import interrupt


def main() -> int:
    """Run the command line; return the exit status."""
    try:
        return doit.main()
    finally:
        interrupt.stop_handling(signal.SIG_DFL)
