"""doit's own commands, made to work from any folder of the checkout and to speak clearly."""

from typing import Any

from doit.cmd_base import DoitCmdBase
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_forget import Forget as DoitForget
from doit.cmd_info import Info as DoitInfo
from doit.exceptions import InvalidCommand

from rc_tasks.model.reference import near


class AtRoot(DoitCmdBase):
    """A command that finds the dodo.py in a folder above."""

    def execute(self, params: Any, args: list[str]) -> int:
        """Run the command with the checkout as its working directory."""
        # What `-k` does, without having to type it or set DOIT_SEEK_FILE.
        params["seek_file"] = True
        status: int = super().execute(params, args)
        return status


def unknown(name: str, known: list[str]) -> InvalidCommand:
    """The error for a task that does not exist, with the nearest names."""
    bare = name.removeprefix("build:")
    exact = [f"build:{name}"] if f"build:{name}" in known else []
    close = exact or [*near(name, known), *near(f"build:{bare}", known)]
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(close[:3]))}?"
        if close
        else "`doit list` shows all images"
    )
    return InvalidCommand(f"there is no task or command named {name!r}\n  next: {hint}")


def checked(command: DoitCmdBase, names: list[str] | None) -> None:
    """Raise InvalidCommand for the first name that is no task."""
    known = [task.name for task in command.task_list]
    for name in names or ():
        if name not in known and "*" not in name:
            raise unknown(name, known)


class Info(AtRoot, DoitInfo):
    """`doit info TASK`."""

    doc_purpose = "show what a task depends on and why it would run"

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> Any:
        checked(self, pos_args)
        return super()._execute(pos_args, hide_status)


class Forget(AtRoot, DoitForget):
    """`doit forget TASK`."""

    doc_purpose = "forget that tasks were done, so that they run again"

    def _execute(self, forget_sub: bool, forget_disable_default: bool, forget_all: bool) -> Any:
        checked(self, self.sel_tasks)
        return super()._execute(forget_sub, forget_disable_default, forget_all)


class Clean(AtRoot, DoitClean):
    """`doit clean TASK`."""

    doc_purpose = "remove image.sqsh and image.json"

    def _execute(
        self, dryrun: bool, cleandep: bool, cleanall: bool, cleanforget: bool, pos_args: Any = None
    ) -> Any:
        checked(self, pos_args)
        return super()._execute(dryrun, cleandep, cleanall, cleanforget, pos_args)
