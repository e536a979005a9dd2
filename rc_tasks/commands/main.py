"""Entry point of the program `doit`: run one of our commands, or pass the command line to doit."""

import atexit
import gc
import getopt
import io
import os
import signal
import sys

from rc_tasks.commands.cli.errors import leave_closed_output, report_errors
from rc_tasks.tools import interrupt


def main() -> int:
    """Run the command line and return the exit status."""
    # A run makes thousands of tasks and keeps them all. Collecting garbage among them, and again at
    # exit, would take a third of a run that has nothing to do.
    gc.set_threshold(500_000)
    atexit.register(gc.freeze)
    # Python sets a stream to None when its descriptor is closed, as by `>&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until exit
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    # A file name may be any bytes, and a locale may lack an arrow. Without this, printing them fails.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return report_errors(lambda: _interruptible(sys.argv[1:]))
    finally:
        leave_closed_output()


def _interruptible(words: list[str]) -> int:
    # `start` has turned this off until here, where a KeyboardInterrupt is reported.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, interrupt.raise_each)
    return _run(words)


def _run(words: list[str]) -> int:
    if words[:2] == ["tabcompletion", "--names"]:
        from rc_tasks.commands.cli.names import print_names

        return print_names(words[2:])
    # These imports take longer than a user waits for shell completion.
    from rc_tasks.commands.cli.command import enter, execute
    from rc_tasks.commands.cli.table import COMMANDS
    from rc_tasks.state.disk.files import with_careful_umask

    with_careful_umask()
    if words in (["--version"], ["-V"], ["version"]):
        from rc_tasks.commands.cli.version import version

        print(version())
        return 0
    if words and words[0] in {"-h", "--help"}:
        return execute("help", words[1:])
    options, rest = _split_options(words)
    entry = COMMANDS.get(rest[0]) if rest else None
    if entry is not None and not entry.by_doit:
        enter(*(options.get(f"-{name[0]}", options.get(f"--{name}")) for name in ("dir", "file")))
        return execute(entry.name, rest[1:])
    own_words = words[: words.index("--")] if "--" in words else words
    if not {"-h", "--help"}.isdisjoint(own_words):
        return execute("help", [entry.name if entry else "run"])
    from rc_tasks.commands.doit_main import doit

    return doit(words)


def _split_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options before a command, as in `doit -f dodo.py list`, and the words after them."""
    try:
        options, rest = getopt.getopt(words, "f:d:k", ["file=", "dir=", "seek-file"])
    except getopt.GetoptError:
        return {}, words  # They are options of `doit run`, or doit reports the mistake.
    return dict(options), rest
