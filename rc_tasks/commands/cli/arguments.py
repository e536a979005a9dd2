"""Arguments of commands that are about one project."""

import getopt

from doit import doit_cmd
from doit.cmd_base import Command
from doit.cmdparse import CmdParse
from doit.exceptions import InvalidCommand


def options_first(parser: CmdParse, words: list[str]) -> list[str]:
    """The words with their options in front, where doit looks for them."""
    try:
        options, names = getopt.gnu_getopt(words, parser.get_short(), parser.get_long())
    except getopt.GetoptError:
        # doit says what is wrong.
        return sorted(words, key=lambda word: not word.startswith("-"))
    return [*(_joined(key, value) for key, value in options), *names]


def _joined(key: str, value: str) -> str:
    return f"{key}={value}" if value and key.startswith("--") else f"{key}{value}"


def one_name(command: Command, names: list[str]) -> str:
    """The only name among the arguments; raises InvalidCommand when there is none, or more."""
    # doit takes NAME=VALUE for a variable, and leaves it out.
    names = [*names, *(f"{key}={value}" for key, value in doit_cmd._CMDLINE_VARS.items())]
    if len(names) == 1:
        return names[0]
    what = (
        f"one name is wanted, and these are {len(names)}: {' '.join(names)}" if names else "which one?"
    )
    raise InvalidCommand(f"{what}\n  next: doit {command.name} {command.doc_usage}")
