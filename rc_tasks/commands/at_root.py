"""doit's commands list, info, forget, ignore, clean and help, adapted to this project.

A class named Doit… is doit's own command. The class without this prefix is our version, which also works
from folders below the checkout, suggests names, and reports errors as all our commands do.
"""

import io
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doit.cmd_base import DoitCmdBase, subtasks_iter
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_forget import Forget as DoitForget
from doit.cmd_help import Help as DoitHelp
from doit.cmd_ignore import Ignore as DoitIgnore
from doit.cmd_info import Info as DoitInfo
from doit.cmd_list import List as DoitList
from doit.cmdparse import CmdParseError
from doit.dependency import DependencyStatus
from doit.exceptions import InvalidCommand
from doit.task import Task

from rc_tasks.commands.cli import help as overview
from rc_tasks.commands.cli.command import enter, tasks
from rc_tasks.commands.cli.errors import report_errors
from rc_tasks.commands.cli.parser import (
    UsageError,
    as_written,
    hint_for,
    option_strings,
    parser_of,
    unknown_argument,
    wrong_value,
)
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.engine.doit.selection import reach
from rc_tasks.engine.session import TASK_KINDS, session
from rc_tasks.model.reference import near
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import DODO, find_root
from rc_tasks.util.text import printable_lines

# doit's message ends with all options of the command, which fill more than a screen.
_PARSE_ERROR = re.compile(r"Error parsing (\w+): (.*?) \(parsing options: .*", re.DOTALL)
_UNKNOWN_OPTION = re.compile(r"option (\S+) not recognized")
_NO_VALUE = re.compile(r"option (\S+) requires argument")
_WRONG_TYPE = re.compile(r"Error parsing parameter '(\w+)' <class '(\w+)'>.*('.*')", re.DOTALL)
_WRONG_CHOICE = re.compile(
    r"Error parsing parameter '(\w+)'. Provided (.*) but available choices are: (.*)\."
)


class AdaptedCommand(DoitCmdBase):
    """Base of our versions of doit's commands. `bare_names`: a TASK may also be the name of an image."""

    bare_names = True

    def parse_execute(self, in_args: list[str]) -> int:
        """Parse the arguments and run the command; returns 3 if it could not attempt anything."""
        return report_errors(lambda: self._parse_execute(in_args))

    def _parse_execute(self, in_args: list[str]) -> int:
        try:
            status: int = super().parse_execute(in_args)
        except CmdParseError as error:
            raise self._usage_error(str(error), in_args) from None
        return status

    def _usage_error(self, text: str, words: Sequence[str]) -> UsageError:
        """Return doit's error message about a command line as one of ours."""
        hint = f"`doit help {self.name}`"
        if wrong_type := _WRONG_TYPE.search(text):
            name, kind, value = wrong_type.groups()
            option = self._written(name, words)
            return UsageError(wrong_value(option, kind, value), hint=hint_for(self.name, option))
        if wrong_choice := _WRONG_CHOICE.fullmatch(text):
            name, value, choices = wrong_choice.groups()
            option = self._written(name, words)
            return UsageError(f"{option}: must be one of {choices}, not {value}", hint=hint)
        parse_error = _PARSE_ERROR.fullmatch(text)
        if parse_error is None:
            return UsageError(text)
        subject, what = parse_error.groups()
        if subject == "Task":
            # doit takes an option after the name of a task for an option of the task; ours have none.
            return UsageError(
                what,
                hint="write options before names: doit --continue build; `doit help run` lists them",
            )
        if unknown_option := _UNKNOWN_OPTION.fullmatch(what):
            return unknown_argument(self.name, unknown_option[1], option_strings(parser_of(self.name)))
        if no_value := _NO_VALUE.fullmatch(what):
            return UsageError(f"{no_value[1]} needs a value", hint=hint_for(self.name, no_value[1]))
        return UsageError(what, hint=f"`doit help {self.name}` lists the options")

    def _written(self, name: str, words: Sequence[str]) -> str:
        options = (option for option in self.cmdparser.options if option.name == name)
        spellings = (
            spelling
            for option in options
            for spelling in (f"-{option.short}" * bool(option.short), f"--{option.long}")
        )
        return as_written([*filter(None, spellings)], words)

    def execute(self, params: Any, args: list[str]) -> int:
        """Run the command with the checkout as its working directory."""
        # As with the option -k, doit looks for dodo.py in the folders above too.
        params["seek_file"] = True
        enter(params["cwdPath"], params["dodoFile"])
        # doit goes to the directory of dodo.py itself.
        params["cwdPath"], params["dodoFile"] = None, os.path.basename(params["dodoFile"])
        if params["dodoFile"] == DODO:
            find_root(Path.cwd())  # raises our error
        if args:
            args = tasks(session(), args, bare=self.bare_names)
        status: int = super().execute(params, args)
        return status


def unknown_task(name: str, known: list[str], commands: Sequence[str] = ()) -> InvalidCommand:
    """Return the error for a task that does not exist, with the nearest names."""
    if name in COMMANDS:
        # Options of a run precede it, or an old environment still has doit's own script.
        return InvalidCommand(
            f"`{name}` is a command, so it must come before any option or task\n"
            f"  next: doit help {name}; if nothing precedes it, run ./bootstrap.sh setup"
        )
    if name.startswith("-"):
        return InvalidCommand(
            f"{name} comes after a name, so it is taken for one\n"
            f"  next: write options before names: doit COMMAND {name} NAME"
        )
    step, colon, bare = name.partition(":")
    if not colon or step not in TASK_KINDS:
        step, bare = "build", name
    # Any two names are alike in the step before the colon, so compare them without.
    names = [task.partition(":")[2] for task in known if task.startswith(f"{step}:")]
    close = [f"{step}:{image}" for image in ((bare,) if bare in names else near(bare, names))]
    # The exact name of an image is no misspelt command.
    mistyped = () if bare in names else near(name, commands, 1)
    close = [*(f"`doit {command}`" for command in mistyped), *close][:3]
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else "`doit list` shows all images, `doit help` all commands"
    )
    return InvalidCommand(f"there is no task or command named {name!r}\n  next: {hint}")


def require_tasks(command: DoitCmdBase, names: list[str] | None) -> None:
    """Raise InvalidCommand for the first name that is not a task."""
    known = dict.fromkeys(task.name for task in command.task_list)
    for name in names or ():
        if name not in known and "*" not in name:
            raise unknown_task(name, list(known))


def expand_names(command: DoitCmdBase, names: list[str] | None, all_option: str) -> list[str]:
    """Return the tasks that names mean, with aliases and groups of versions expanded.

    Raise InvalidCommand for an unknown name. Raise it without names, too: a user must ask for all images
    with the option `all_option`.
    """
    if not names:
        raise InvalidCommand(
            f"TASK is missing\n  next: doit {command.name} build:NAME,"
            f" or doit {command.name} {all_option} for all tasks"
        )
    require_tasks(command, names)
    tasks = {task.name: task for task in command.task_list}
    expanded: dict[str, None] = {}
    todo = list(names)
    while todo:
        name = todo.pop(0)
        task = tasks.get(name)
        if task is None or task.actions or task.has_subtask:
            expanded[name] = None
        else:
            todo += task.task_dep
    return list(expanded)


def judge_groups(dependencies: Any) -> None:
    """Let doit's dependency manager judge a group by its steps; it would call every group stale."""
    of_step = dependencies.get_status

    def get_status(task: Task, tasks: Mapping[str, Task], get_log: bool = False) -> Any:
        if task.actions:
            return of_step(task, tasks, get_log)
        status = DependencyStatus(get_log)
        for name in reach(tasks, task.task_dep):
            if tasks[name].actions and of_step(tasks[name], tasks).status != "up-to-date":
                status.add_reason("uptodate_false", (_with_cause(tasks[name]), None, None))
        return status

    dependencies.get_status = get_status


def _with_cause(step: Task) -> str:
    causes = ", ".join(repr(check[0]) for check in step.uptodate)
    return f"{step.name}: {causes}" if causes else step.name


class List(AdaptedCommand, DoitList):
    """`doit list` with an option of doit's own list."""

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
            require_tasks(self, pos_args)
        judge_groups(self.dep_manager)
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
        """Return the named tasks; with `--all`, a name means all tasks below it."""
        if not include_subtasks:
            filtered: list[Task] = DoitList._list_filtered(tasks, names, include_subtasks)
            return filtered
        below = {name: [key for key in tasks if f"{key}:".startswith(f"{name}:")] for name in names}
        for name, keys in below.items():
            if not keys:
                raise unknown_task(name, list(tasks))
        return [tasks[key] for key in dict.fromkeys(key for keys in below.values() for key in keys)]


class Info(AdaptedCommand, DoitInfo):
    """`doit info TASK`."""

    outstream: Any

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> Any:
        if not pos_args:
            raise InvalidCommand(
                "TASK is missing\n  next: doit info podman:NAME, or enroot:, env: or build:NAME"
            )
        require_tasks(self, pos_args)
        judge_groups(self.dep_manager)
        out, self.outstream = self.outstream, io.StringIO()
        try:
            return max(super(Info, self)._execute([name], hide_status) for name in pos_args)
        finally:
            # File names in the output may contain control characters.
            out.write(printable_lines(self.outstream.getvalue()))
            self.outstream = out

    @staticmethod
    def get_reasons(reasons: Any) -> str:
        """Return why a task would run, without the names of doit's objects."""
        causes = [f" * {check}" for check, _, _ in reasons.pop("uptodate_false", ())]
        others: str = DoitInfo.get_reasons(reasons)
        return "\n".join([*causes, *filter(None, [others])])


class Forget(AdaptedCommand, DoitForget):
    """`doit forget TASK`."""

    sel_tasks: Any

    def _execute(self, forget_sub: bool, forget_disable_default: bool, forget_all: bool) -> Any:
        require_own(session().checkout)
        if not forget_all:
            names = None if self.sel_default_tasks else self.sel_tasks
            self.sel_tasks = expand_names(self, names, "--all")
        return super()._execute(forget_sub, forget_disable_default, forget_all)


class Ignore(AdaptedCommand, DoitIgnore):
    """`doit ignore TASK`, with an option that ends it and keeps the records."""

    cmd_options = ({"name": "undo", "short": "u", "long": "undo", "type": bool, "default": False},)

    def _execute(self, pos_args: list[str], undo: bool = False) -> Any:
        records = session().checkout.records
        if not pos_args:
            command = "doit ignore --undo" if undo else "doit ignore"
            raise InvalidCommand(
                f"TASK is missing\n  next: {command} build:NAME, or podman:, enroot: or env:NAME"
            )
        names = expand_names(self, pos_args, "")
        if not undo:
            return super()._execute(names)
        marked, tasks = records.ignored(), {task.name: task for task in self.task_list}
        for name in names:
            steps = [task.name for task in subtasks_iter(tasks, tasks[name])]
            ignored = [task for task in (name, *steps) if task in marked]
            for task in ignored:
                records.ignore_no_longer(task)
                self.outstream.write(f"no longer ignored: {task}\n")
            if not ignored:
                self.outstream.write(f"{name} is not ignored\n")
            if group := tasks[name].subtask_of:
                # `doit ignore build:NAME` also marks the group.
                records.ignore_no_longer(group)
        return None


class Clean(AdaptedCommand, DoitClean):
    """`doit clean TASK`."""

    def _execute(
        self, dryrun: bool, cleandep: bool, cleanall: bool, cleanforget: bool, pos_args: Any = None
    ) -> Any:
        require_own(session().checkout)
        if not cleanall:
            pos_args = expand_names(self, pos_args, "--clean-all")
        return super()._execute(dryrun, cleandep, cleanall, cleanforget, pos_args)


class Help(AdaptedCommand, DoitHelp):
    """`doit help COMMAND`, when doit's own script runs it."""

    def execute(self, params: Any, args: list[str]) -> int:
        """Print the help of the named commands, or the overview of all."""
        return overview.run(Namespace(commands=args))
