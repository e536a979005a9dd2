"""Argument parsers of commands: argparse, with its errors raised as UsageError."""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from typing import NoReturn

from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.errors import RcError
from rc_tasks.model.reference import near

# Messages of argparse. The first group is the option.
_WRONG_TYPE = re.compile(r"argument (\S+): invalid (\w+) value: (.*)", re.DOTALL)
_NO_VALUE = re.compile(r"argument (\S+): expected one argument")
_KINDS = {"int": "a whole number"}
_WRONG_CHOICE = re.compile(r"argument (\S+): invalid choice: (.*) \(choose from .*\)", re.DOTALL)
# Options that show what make would do.
_DRY_RUN = frozenset({"-n", "--dry-run", "--just-print", "--recon"})


class UsageError(RcError):
    """The command line must be written differently."""


class _Parser(ArgumentParser):
    # The command line, for messages that name an option as it was written.
    words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        name = self.prog.rpartition(" ")[2]
        if wrong_type := _WRONG_TYPE.fullmatch(message):
            option, kind, value = wrong_type.groups()
            message = wrong_value(as_written(option.split("/"), self.words), kind, value)
        elif wrong_choice := _WRONG_CHOICE.fullmatch(message):
            option, value = wrong_choice.groups()
            # argparse joins the short and the long option with a slash.
            choices = next(
                action.choices for action in self._actions if option in "/".join(action.option_strings)
            )
            listed = ", ".join(map(repr, choices or ()))
            written = as_written(option.split("/"), self.words)
            message = f"{written}: must be one of {listed}, not {value}"
        elif no_value := _NO_VALUE.fullmatch(message):
            message = f"{as_written(no_value[1].split('/'), self.words)} needs a value"
        raise UsageError(message.removeprefix("argument "), hint=f"`doit help {name}`")


def as_written(spellings: Sequence[str], words: Sequence[str]) -> str:
    """Return the spelling of an option that stands in a command line, such as `-n` in `-n4`."""
    for spelling in spellings:
        for word in words:
            value = word.removeprefix(spelling)
            if value != word and (not value or value[0] == "=" or not spelling.startswith("--")):
                return spelling
    return spellings[-1]


def wrong_value(option: str, kind: str, value: str) -> str:
    """Return the message for a value that is not of the type that Python calls `kind`."""
    return f"{option}: must be {_KINDS.get(kind, kind)}, not {value}"


def parser_of(name: str) -> _Parser:
    """Return the parser of a command. Imports the module of the command."""
    entry = COMMANDS[name]
    parser = _Parser(prog=f"doit {name}", epilog=f"example: {entry.example}")
    entry.load().arguments(parser)
    parser.description = f"{entry.purpose[0].upper()}{entry.purpose[1:]}. {parser.description or ''}"
    return parser


def parsed(name: str, words: Sequence[str]) -> Namespace:
    """Return the arguments of a command; options may follow names. Raise UsageError.

    The words after `--` become `command` for a command that runs another program, else names.
    """
    parser = parser_of(name)
    parser.words = words
    at = words.index("--") if "--" in words else len(words)
    args, rest = parser.parse_known_intermixed_args(list(words[:at]))
    after = list(words[at + 1 :])
    if hasattr(args, "command"):
        args.command = tuple(after)
    elif hasattr(args, "names"):
        args.names += after
    else:
        rest += after
    if rest:
        raise unknown_argument(name, rest[0], option_strings(parser))
    return args


def option_strings(parser: ArgumentParser) -> list[str]:
    """Return the option strings that the help of a parser shows."""
    listed = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [option for action in listed for option in action.option_strings]


def unknown_argument(name: str, word: str, options: Iterable[str]) -> UsageError:
    """Return the error for an option or word that a command does not know."""
    if not word.startswith("-"):
        return UsageError(f"doit {name} takes no {word!r}", hint=f"`doit help {name}`")
    option = word.partition("=")[0]
    # Any two options are alike in their dashes, so compare them without.
    by_bare = {known.lstrip("-"): known for known in options}
    close = [by_bare[bare] for bare in near(option.lstrip("-"), by_bare)]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    hint = f"{meant}`doit help {name}` lists the options"
    return UsageError(f"option {option} not recognized", hint=hint_for(name, option, hint))


def hint_for(name: str, option: str, otherwise: str = "") -> str:
    """Return the hint for a mistaken option of a command, by what the option means to make."""
    if name == "run" and option in _DRY_RUN:
        return "`doit plan NAME` shows what a run would do; -n N runs at most N steps at a time"
    return otherwise or f"`doit help {name}`"


def add_names(
    parser: ArgumentParser,
    usage: str = "[NAME ...]",
    *,
    help: str = "an image, alias, group of versions or task",
) -> None:
    """Declare the argument `names`, a list of any length; `usage` shows how many names are needed."""
    parser.usage = f"%(prog)s [OPTION ...] {usage}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=help)


def add_flag(parser: ArgumentParser, *options: str, help: str) -> None:
    """Declare an option without a value."""
    parser.add_argument(*options, action="store_true", help=help)


def add_json(parser: ArgumentParser) -> None:
    """Declare --json."""
    add_flag(parser, "--json", help="print JSON for programs")


def one_name(args: Namespace, usage: str) -> str:
    """Return the only name among the arguments. Raise UsageError when there is not exactly one.

    `usage` is the command line without `doit`: the command, then a placeholder for the name.
    """
    names: list[str] = args.names
    if len(names) == 1:
        return names[0]
    noun = usage.split()[1]
    what = f"expected one {noun}, not {len(names)}: {' '.join(names)}" if names else f"{noun} is missing"
    raise UsageError(what, hint=f"doit {usage}")
