"""Question before a command changes what its user may not expect."""

import sys

from rc_tasks.commands.cli.parser import UsageError


def confirm(question: str, *, yes: bool, command: str) -> bool:
    """Return whether the user agrees; `yes` is the option --yes, which answers the question.

    Raise UsageError without a terminal and without --yes. `command` is the line to type with --yes.
    """
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("nothing was changed: there is no terminal to ask at", hint=f"{command} --yes")
    return ask(question)


def ask(question: str) -> bool:
    """Ask on standard error, and return whether the answer is yes."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
