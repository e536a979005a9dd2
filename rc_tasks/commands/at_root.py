"""doit's own commands, made to work from any folder of the checkout and to speak clearly."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doit.cmd_base import DoitCmdBase, opt_dodo
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_forget import Forget as DoitForget
from doit.cmd_ignore import Ignore as DoitIgnore
from doit.cmd_info import Info as DoitInfo
from doit.cmd_list import List as DoitList
from doit.cmdparse import CmdParseError
from doit.exceptions import InvalidCommand
from doit.task import Task

from rc_tasks.commands.cli.command import execute
from rc_tasks.commands.cli.errors import reported
from rc_tasks.commands.cli.parser import UsageError, option_strings, parser_of, unknown_argument
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.engine.session import TASK_KINDS, session
from rc_tasks.model.reference import near
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import find_root
from rc_tasks.util.text import printable_lines

# doit adds a dump of all its options, which is longer than a screen.
_NOISE = re.compile(r"Error parsing (\w+): (.*?) \(parsing options: .*", re.DOTALL)
_NOT_KNOWN = re.compile(r"option (\S+) not recognized")
_WRONG_VALUE = re.compile(r"Error parsing parameter '(\w+)' <class '(\w+)'>.*('.*')", re.DOTALL)
_NO_CHOICE = re.compile(
    r"Error parsing parameter '(\w+)'. Provided (.*) but available choices are: (.*)\."
)


class AtRoot(DoitCmdBase):
    """A command that finds the dodo.py in a folder above, and whose errors are reported in our form."""

    def parse_execute(self, in_args: list[str]) -> int:
        """Parse the arguments and run the command; the exit status is 3 for what was not tried."""
        return reported(lambda: self._parse_execute(in_args))

    def _parse_execute(self, in_args: list[str]) -> int:
        try:
            status: int = super().parse_execute(in_args)
        except CmdParseError as error:
            raise self._usage(str(error)) from None
        return status

    def _usage(self, text: str) -> UsageError:
        hint = f"`doit help {self.name}`"
        if wrong := _WRONG_VALUE.search(text):
            name, kind, value = wrong.groups()
            return UsageError(f"--{self._long(name)}: {value} is not of type {kind}", hint=hint)
        if no_choice := _NO_CHOICE.fullmatch(text):
            name, value, choices = no_choice.groups()
            return UsageError(f"--{self._long(name)}: must be one of {choices}, not {value}", hint=hint)
        found = _NOISE.fullmatch(text)
        if found is None:
            return UsageError(text)
        where, what = found.groups()
        if where == "Task":
            # What stands behind the name of a task would be an option of that task; ours have none.
            return UsageError(
                what,
                hint="options stand before names, as in `doit --continue build`; `doit help run` lists"
                " them",
            )
        if unknown_option := _NOT_KNOWN.fullmatch(what):
            return unknown_argument(self.name, unknown_option[1], option_strings(parser_of(self.name)))
        return UsageError(what, hint=f"`doit help {self.name}` lists the options")

    def _long(self, name: str) -> str:
        found: str = next(option.long for option in self.cmdparser.options if option.name == name)
        return found

    def execute(self, params: Any, args: list[str]) -> int:
        """Run the command with the checkout as its working directory."""
        # What `-k` does, without having to type it or set DOIT_SEEK_FILE.
        params["seek_file"] = True
        if params["dodoFile"] == opt_dodo["default"]:
            find_root(Path.cwd())  # raises, in our words
        status: int = super().execute(params, args)
        return status


def unknown(name: str, known: list[str], commands: Sequence[str] = ()) -> InvalidCommand:
    """The error for a task that does not exist, with the nearest names."""
    if name in COMMANDS:
        # Options of a run stood before it, or doit's own script has replaced ours in an old environment.
        return InvalidCommand(
            f"`{name}` is a command: it comes first, and has options of its own\n"
            f"  next: doit help {name}; if nothing stood before it, ./bootstrap.sh setup updates .venv"
        )
    step, colon, bare = name.partition(":")
    if not colon or step not in TASK_KINDS:
        step, bare = "build", name
    # The step before the colon would make any two names look alike.
    names = [task.partition(":")[2] for task in known if task.startswith(f"{step}:")]
    close = [f"{step}:{each}" for each in ((bare,) if bare in names else near(bare, names))]
    close = [*(f"`doit {each}`" for each in near(name, commands, 1)), *close][:3]
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else "`doit list` shows all images, `doit help` all commands"
    )
    return InvalidCommand(f"there is no task or command named {name!r}\n  next: {hint}")


def checked(command: DoitCmdBase, names: list[str] | None) -> None:
    """Raise InvalidCommand for the first name that is no task."""
    known = dict.fromkeys(task.name for task in command.task_list)
    for name in names or ():
        if name not in known and "*" not in name:
            raise unknown(name, list(known))


def steps_of(command: DoitCmdBase, names: list[str] | None, everything: str) -> list[str]:
    """The tasks that names mean, an alias or a group of versions being all that it stands for.

    Raises InvalidCommand when there is no name: all images at once are only meant by who says so, with
    the option `everything`.
    """
    if not names:
        raise InvalidCommand(
            f"which image?\n  next: `doit {command.name} build:NAME`,"
            f" or `doit {command.name} {everything}` for all of them"
        )
    checked(command, names)
    tasks = {task.name: task for task in command.task_list}
    found: dict[str, None] = {}
    todo = list(names)
    while todo:
        name = todo.pop(0)
        task = tasks.get(name)
        if task is None or task.actions or task.has_subtask:
            found[name] = None
        else:
            todo += task.task_dep
    return list(found)


class List(AtRoot, DoitList):
    """`doit list` with options of doit's."""

    def execute(self, params: Any, args: list[str]) -> int:
        """Show our table where none of doit's options is given, as from doit's own script."""
        doits = {option["name"] for option in DoitList.cmd_options}
        if doits & set(params._non_default_keys):
            return super().execute(params, args)
        return execute("list", args)

    def _execute(
        self,
        subtasks: bool = False,
        quiet: bool = True,
        status: bool = False,
        private: bool = False,
        list_deps: bool = False,
        template: str | None = None,
        sort: str = "name",
        pos_args: Any = None,
    ) -> Any:
        if not subtasks:
            checked(self, pos_args)
        try:
            return super()._execute(
                subtasks, quiet, status, private, list_deps, template, sort, pos_args
            )
        except (KeyError, ValueError, IndexError) as error:
            if template is None:
                raise
            raise UsageError(
                f"--template: {template!r} cannot be filled in: {error}",
                hint="doit list --template '{status} {name} {doc}'",
            ) from None

    @staticmethod
    def _list_filtered(
        tasks: Mapping[str, Task], names: list[str], include_subtasks: bool
    ) -> list[Task]:
        """With `--all`, a name stands for all tasks below it."""
        if not include_subtasks:
            found: list[Task] = DoitList._list_filtered(tasks, names, include_subtasks)
            return found
        below = {name: [key for key in tasks if f"{key}:".startswith(f"{name}:")] for name in names}
        for name, keys in below.items():
            if not keys:
                raise unknown(name, list(tasks))
        return [tasks[key] for key in dict.fromkeys(key for keys in below.values() for key in keys)]


class Info(AtRoot, DoitInfo):
    """`doit info TASK`."""

    outstream: Any

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> Any:
        if len(pos_args) != 1:
            raise InvalidCommand("which task?\n  next: doit info podman:NAME, or enroot, env or build")
        checked(self, pos_args)
        out, self.outstream = self.outstream, io.StringIO()
        try:
            return super()._execute(pos_args, hide_status)
        finally:
            # It has names of files in it.
            out.write(printable_lines(self.outstream.getvalue()))
            self.outstream = out


class Forget(AtRoot, DoitForget):
    """`doit forget TASK`."""

    sel_tasks: Any

    def _execute(self, forget_sub: bool, forget_disable_default: bool, forget_all: bool) -> Any:
        require_own(session().checkout)
        if not forget_all:
            names = None if self.sel_default_tasks else self.sel_tasks
            self.sel_tasks = steps_of(self, names, "--all")
        return super()._execute(forget_sub, forget_disable_default, forget_all)


class Ignore(AtRoot, DoitIgnore):
    """`doit ignore TASK`."""

    def _execute(self, pos_args: list[str]) -> Any:
        if not pos_args:
            raise InvalidCommand("which task?\n  next: doit ignore build:NAME, or podman, enroot or env")
        return super()._execute(steps_of(self, pos_args, ""))


class Clean(AtRoot, DoitClean):
    """`doit clean TASK`."""

    def _execute(
        self, dryrun: bool, cleandep: bool, cleanall: bool, cleanforget: bool, pos_args: Any = None
    ) -> Any:
        require_own(session().checkout)
        if not cleanall:
            pos_args = steps_of(self, pos_args, "--clean-all")
        return super()._execute(dryrun, cleandep, cleanall, cleanforget, pos_args)
