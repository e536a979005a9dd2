"""Arguments of commands: argparse, with messages in the form of our errors."""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from typing import NoReturn

from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.errors import RcError
from rc_tasks.model.reference import near

# Of argparse's messages, which name the option first.
_WRONG_TYPE = re.compile(r"argument (\S+): invalid (\w+) value: (.*)", re.DOTALL)
_NO_CHOICE = re.compile(r"argument (\S+): invalid choice: (.*) \(choose from .*\)", re.DOTALL)


class UsageError(RcError):
    """The command line must be written differently."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        name = self.prog.rpartition(" ")[2]
        if wrong := _WRONG_TYPE.fullmatch(message):
            option, kind, value = wrong.groups()
            message = f"{_long(option)}: {value} is not of type {kind}"
        elif no_choice := _NO_CHOICE.fullmatch(message):
            option, value = no_choice.groups()
            # argparse joins both ways to write an option.
            choices = next(
                action.choices for action in self._actions if option in "/".join(action.option_strings)
            )
            known = ", ".join(map(repr, choices or ()))
            message = f"{_long(option)}: must be one of {known}, not {value}"
        raise UsageError(message.removeprefix("argument "), hint=f"`doit help {name}`")


def _long(option: str) -> str:
    return option.rpartition("/")[2]


def parser_of(name: str) -> ArgumentParser:
    """The parser of a command, which imports its module."""
    entry = COMMANDS[name]
    parser = _Parser(prog=f"doit {name}", epilog=f"example: {entry.example}")
    entry.load().arguments(parser)
    parser.description = f"{entry.purpose[0].upper()}{entry.purpose[1:]}. {parser.description or ''}"
    return parser


def parsed(name: str, words: Sequence[str]) -> Namespace:
    """Arguments of a command; options may follow names. Raises UsageError.

    What stands behind `--` is `command` for a command that runs another program, else names.
    """
    parser = parser_of(name)
    at = words.index("--") if "--" in words else len(words)
    args, rest = parser.parse_known_intermixed_args(list(words[:at]))
    behind = list(words[at + 1 :])
    if hasattr(args, "command"):
        args.command = tuple(behind)
    elif hasattr(args, "names"):
        args.names += behind
    else:
        rest += behind
    if rest:
        raise unknown_argument(name, rest[0], option_strings(parser))
    return args


def option_strings(parser: ArgumentParser) -> list[str]:
    """The options of a parser that its help shows, as they are written."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [option for action in shown for option in action.option_strings]


def unknown_argument(name: str, word: str, options: Iterable[str]) -> UsageError:
    """The error for an option or word that a command does not know."""
    if not word.startswith("-"):
        return UsageError(f"doit {name} takes no {word!r}", hint=f"`doit help {name}`")
    option = word.partition("=")[0]
    # The dashes would make any two options look alike.
    bare = {each.lstrip("-"): each for each in options}
    close = [bare[each] for each in near(option.lstrip("-"), bare)]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return UsageError(
        f"option {option} not recognized", hint=f"{meant}`doit help {name}` lists the options"
    )


def add_names(
    parser: ArgumentParser, usage: str = "[NAME ...]", help: str = "an image, alias, group or task"
) -> None:
    """Declare names of images, groups of versions, aliases and tasks; `usage` says how many."""
    parser.usage = f"%(prog)s [OPTION ...] {usage}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=help)


def add_flag(parser: ArgumentParser, *options: str, help: str) -> None:
    """Declare an option without a value."""
    parser.add_argument(*options, action="store_true", help=help)


def add_json(parser: ArgumentParser) -> None:
    """Declare --json."""
    add_flag(parser, "--json", help="print JSON for programs")


def one_name(args: Namespace, usage: str) -> str:
    """The only name among the arguments. Raises UsageError when there is none, or more."""
    names: list[str] = args.names
    if len(names) == 1:
        return names[0]
    what = (
        f"one name is wanted, and these are {len(names)}: {' '.join(names)}" if names else "which one?"
    )
    raise UsageError(what, hint=f"doit {usage}")
