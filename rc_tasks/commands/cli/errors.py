"""What goes wrong in any command, told in our words and without doit's own."""

import io
import os
import re
import sys
from typing import Any

from doit.cmd_base import Command
from doit.cmdparse import CmdParseError
from doit.exceptions import InvalidCommand

from rc_tasks.errors import RcError
from rc_tasks.state.disk.files import refused
from rc_tasks.util.text import printable_lines

# What a shell reports for a program that SIGPIPE ended, and one that Ctrl-C did.
_BROKEN_PIPE = 141
INTERRUPTED = 130
# doit adds a dump of all its options, which is longer than a screen.
_NOISE = re.compile(r"Error parsing (\w+): (.*?) \(parsing options: .*", re.DOTALL)
_WRONG_VALUE = re.compile(r"Error parsing parameter '(\w+)' <class '(\w+)'>.*('.*')", re.DOTALL)
_NO_CHOICE = re.compile(
    r"Error parsing parameter '(\w+)'. Provided (.*) but available choices are: (.*)\."
)


class Told(Command):
    """A command whose errors are all told without a traceback; the exit status is 3."""

    def parse_execute(self, in_args: list[str]) -> Any:
        """Parse the arguments and run the command."""
        try:
            status = super().parse_execute(in_args)
            sys.stdout.flush()
        except CmdParseError as error:
            raise InvalidCommand(self._option(str(error))) from None
        except RcError as error:
            raise InvalidCommand(printable_lines(str(error))) from None
        except BrokenPipeError:
            reader_left()
            return _BROKEN_PIPE
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            return INTERRUPTED
        except OSError as error:
            told = refused(error)
            if told is None:
                raise
            raise InvalidCommand(printable_lines(str(told))) from None
        return status

    def _option(self, text: str) -> str:
        wrong = _WRONG_VALUE.search(text)
        if wrong is not None:
            name, kind, value = wrong.groups()
            return (
                f"--{self._long(name)}: {value} is not of type {kind}\n  next: `doit help {self.name}`"
            )
        no_choice = _NO_CHOICE.fullmatch(text)
        if no_choice is not None:
            name, value, choices = no_choice.groups()
            return f"--{self._long(name)}: {value} is none of {choices}\n  next: `doit help {self.name}`"
        found = _NOISE.fullmatch(text)
        if found is None:
            return text
        where, what = found.groups()
        # What stands behind the name of a task would be an option of that task; ours have none.
        hint = (
            "options stand before names, as in `doit --continue build`; `doit help run` lists them"
            if where == "Task"
            else f"`doit help {self.name}` lists the options"
        )
        return f"{what}\n  next: {hint}"

    def _long(self, name: str) -> str:
        found: str = next(option.long for option in self.cmdparser.options if option.name == name)
        return found


def leave_closed_output() -> None:
    """Drop what cannot be written, as to a terminal that was closed: the exit status stays what it is.

    Python would try once more when it ends, and exit with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reader_left() -> None:
    """Stop writing: what reads our output, such as `head`, has seen enough."""
    # What is still in the buffer would otherwise fail again, loudly, when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
