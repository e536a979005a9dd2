"""Questions at a terminal."""

import sys
from collections.abc import Sequence

from rc_tasks.commands.cli.parser import UsageError
from rc_tasks.util.text import printable


def confirm(question: str, *, yes: bool, command: str) -> bool:
    """Return whether the user agrees; `yes` is the option --yes, which answers the question.

    Raise UsageError without a terminal and without --yes. `command` is the line to type with --yes.
    """
    if yes:
        return True
    if not at_terminal():
        raise UsageError("nothing was changed: there is no terminal to ask at", hint=f"{command} --yes")
    return ask(question)


def at_terminal() -> bool:
    """Return whether standard input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: str) -> bool:
    """Ask on standard error, and return whether the answer is yes."""
    return _answer(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def choose(heading: str, choices: Sequence[str], question: str) -> str:
    """Show a numbered list and return the choice of the user, or nothing for an empty answer.

    Raise UsageError at the end of the input.
    """
    sys.stderr.write(f"{heading}\n")
    for number, choice in enumerate(choices, 1):
        sys.stderr.write(f"{number:4}  {printable(choice)}\n")
    numbers = {str(number): choice for number, choice in enumerate(choices, 1)}
    while (answer := entered(question)) and answer not in numbers:
        sys.stderr.write(f"expected a number from 1 to {len(choices)}, found {answer}\n")
    return numbers.get(answer, "")


def entered(question: str) -> str:
    """Ask on standard error and return the answer. Raise UsageError at the end of the input."""
    answer = _answer(f"{question}: ")
    if not answer:
        sys.stderr.write("\n")
        raise UsageError("nothing was changed: the input ended", hint="run the same command again")
    return answer.strip()


def _answer(question: str) -> str:
    """Return the line that the user enters; empty at the end of the input."""
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline()
