"""Manual pages, generated from the parsers: `python -m rc_tasks.commands.cli.man DIRECTORY`."""

import argparse
import sys
from pathlib import Path

from rc_tasks.commands.cli.parser import parser_of
from rc_tasks.commands.cli.table import COMMANDS

_NAME = "build HPC container images from Dockerfiles"


def write(directory: Path) -> None:
    """Write doit.1, and doit-COMMAND.1 for each command, into `directory`/man1."""
    pages = directory / "man1"
    pages.mkdir(parents=True, exist_ok=True)
    (pages / "doit.1").write_text(overview(), encoding="utf-8")
    for name in COMMANDS:
        (pages / f"doit-{name}.1").write_text(page(name), encoding="utf-8")


def overview() -> str:
    """Return the manual page of the program, which lists all commands."""
    lines = [_heading("doit"), ".SH NAME", rf"doit \- {_NAME}", ".SH SYNOPSIS"]
    lines += [r".B doit", "[OPTION ...] [TASK ...]", ".br", r".B doit", "COMMAND [ARGUMENT ...]"]
    group = ""
    for entry in COMMANDS.values():
        if entry.group != group:
            group = entry.group
            lines.append(f".SH {group.upper()}")
        lines += [".TP", rf".BR doit\-{_escaped(entry.name)} (1)", _text(entry.purpose)]
    return "\n".join([*lines, ""])


def page(name: str) -> str:
    """Return the manual page of a command."""
    entry, parser = COMMANDS[name], parser_of(name)
    usage = parser.format_usage().removeprefix("usage: ").split()
    lines = [_heading(f"doit-{name}"), ".SH NAME", rf"doit\-{_escaped(name)} \- {_text(entry.purpose)}"]
    lines += [".SH SYNOPSIS", _text(" ".join(usage)), ".SH DESCRIPTION"]
    lines += [_text(" ".join((parser.description or "").split())), ".SH OPTIONS"]
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            lines += [".TP", rf"\fB{_escaped(_invocation(action))}\fR", _text(action.help or "")]
    return "\n".join([*lines, ".SH EXAMPLE", _text(entry.example), ".SH SEE ALSO", ".BR doit (1)", ""])


def _heading(title: str) -> str:
    return f'.TH "{title.upper()}" 1 "" "rc_tasks" "User Commands"'


def _invocation(action: argparse.Action) -> str:
    """Return the options of an action with their value, such as `-n, --limit N`."""
    value = str(action.metavar or "")
    if action.choices:
        value = "|".join(map(str, action.choices))
    return " ".join(part for part in (", ".join(action.option_strings), value) if part)


def _text(text: str) -> str:
    # roff would run a line that begins with a dot or a quote as a request.
    return ("\\&" if text[:1] in {".", "'"} else "") + _escaped(text)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
