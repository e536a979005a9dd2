"""`doit help [COMMAND]`: all commands by purpose, or the help of one command."""

from argparse import ArgumentParser, Namespace

from rc_tasks.commands.cli.parser import UsageError, parser_of
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.engine.session import TASK_KINDS
from rc_tasks.model.reference import near

_HEAD = """\
usage: doit [OPTION ...] [TASK ...]     build what is stale, as `doit run` does
       doit COMMAND [ARGUMENT ...]

A TASK is build:NAME of an image, alias or group; without one, all images are built.
"""
_TAIL = """
`doit help COMMAND` or `doit COMMAND --help` shows the options of a command,
`doit --version` the version."""


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="the command to explain")


def run(args: Namespace) -> int:
    """Print the help of the named commands, or the overview of all."""
    if not args.commands:
        print(overview(), end="")
    for word in args.commands:
        # `doit build` and `doit podman:NAME` mean `doit run`.
        name = "run" if word in TASK_KINDS else word
        if name not in COMMANDS:
            close = near(name, COMMANDS)
            raise UsageError(
                f"there is no command named {name!r}",
                hint=f"did you mean {' or '.join(close)}?"
                if close
                else "`doit help` shows all commands",
            )
        print(parser_of(name).format_help(), end="")
    return 0


def overview() -> str:
    """Return the list of all commands by purpose, with an example of each."""
    lines = [_HEAD]
    group = ""
    for entry in COMMANDS.values():
        if entry.group != group:
            group = entry.group
            lines.append(f"{group}:")
        lines += [f"  {entry.name:14} {entry.purpose}", f"  {'':14}   {entry.example}"]
    return "\n".join([*lines, _TAIL, ""])
