"""The program `doit`: runs a command of ours, or doit for what doit does."""

import atexit
import gc
import getopt
import io
import os
import signal
import sys

from rc_tasks.commands.cli.errors import leave_closed_output, reported


def main() -> int:
    """Run the command line; returns the exit status."""
    # Thousands of tasks are made at once and none is thrown away: looking for garbage among them, and
    # once more at the end, takes a third of a run that has nothing to do.
    gc.set_threshold(500_000)
    atexit.register(gc.freeze)
    # Python has no stream where the descriptor was closed, as by `>&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    # File names are any bytes, and a locale may lack an arrow: neither may end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return reported(lambda: _interruptible(sys.argv[1:]))
    finally:
        leave_closed_output()


def _interruptible(words: list[str]) -> int:
    # `start` has turned this off until here, where a KeyboardInterrupt is reported.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return _run(words)


def _run(words: list[str]) -> int:
    if words[:2] == ["tabcompletion", "--names"]:
        from rc_tasks.commands.cli.names import print_names

        return print_names(words[2:])
    # Everything else takes longer to import than shell completion may take.
    from rc_tasks.commands.cli.command import execute
    from rc_tasks.commands.cli.table import COMMANDS
    from rc_tasks.state.disk.files import with_careful_umask

    with_careful_umask()
    if words[:1] == ["--version"]:
        from rc_tasks.commands.cli.version import version

        print(version())
        return 0
    if words and words[0] in {"-h", "--help"}:
        return execute("help", words[1:])
    before = _loader_options(words)
    entry = COMMANDS.get(words[len(before)]) if len(before) < len(words) else None
    if entry is not None and not entry.by_doit:
        return execute(entry.name, words[len(before) + 1 :], before)
    ours = words[: words.index("--")] if "--" in words else words
    if not {"-h", "--help"}.isdisjoint(ours):
        return execute("help", [entry.name if entry else "run"])
    from rc_tasks.commands.doit_main import doit

    return doit(words)


def _loader_options(words: list[str]) -> list[str]:
    """The options that doit allows before a command: `doit -f dodo.py list`."""
    try:
        _, rest = getopt.getopt(words, "f:d:k", ["file=", "dir=", "seek-file"])
    except getopt.GetoptError:
        return []  # options of a run, or doit reports what is wrong
    return words[: len(words) - len(rest)]
