"""doit's own commands, made to work from any folder of the checkout and to speak clearly."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doit.cmd_base import DoitCmdBase, opt_dodo
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_forget import Forget as DoitForget
from doit.cmd_ignore import Ignore as DoitIgnore
from doit.cmd_info import Info as DoitInfo
from doit.exceptions import InvalidCommand

from rc_tasks.commands.cli.errors import Told
from rc_tasks.engine.session import TASK_KINDS, session
from rc_tasks.model.reference import near
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import find_root
from rc_tasks.util.text import printable_lines


class AtRoot(Told, DoitCmdBase):
    """A command that finds the dodo.py in a folder above."""

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


class Info(AtRoot, DoitInfo):
    """`doit info TASK`."""

    doc_purpose = "show what a task depends on and why it would run"
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

    doc_purpose = "forget that tasks were done, so that they run again"
    sel_tasks: Any

    def _execute(self, forget_sub: bool, forget_disable_default: bool, forget_all: bool) -> Any:
        require_own(session().checkout)
        if not forget_all:
            names = None if self.sel_default_tasks else self.sel_tasks
            self.sel_tasks = steps_of(self, names, "--all")
        return super()._execute(forget_sub, forget_disable_default, forget_all)


class Ignore(AtRoot, DoitIgnore):
    """`doit ignore TASK`."""

    doc_purpose = "leave tasks out of runs until they are forgotten"


class Clean(AtRoot, DoitClean):
    """`doit clean TASK`."""

    doc_purpose = "remove image.sqsh and image.json"

    def _execute(
        self, dryrun: bool, cleandep: bool, cleanall: bool, cleanforget: bool, pos_args: Any = None
    ) -> Any:
        require_own(session().checkout)
        if not cleanall:
            pos_args = steps_of(self, pos_args, "--clean-all")
        return super()._execute(dryrun, cleandep, cleanall, cleanforget, pos_args)
