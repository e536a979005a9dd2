"""`doit [TASK…]`: builds what is stale."""

import fnmatch
import functools
import signal
import sys
from types import FrameType
from typing import Any

from doit import doit_cmd
from doit.cmd_run import Run as DoitRun
from doit.exceptions import InvalidCommand

from rc_tasks.commands.at_root import AtRoot, unknown
from rc_tasks.engine.dispatch import STEP_GRACE_S
from rc_tasks.engine.session import remember_digests
from rc_tasks.tools import command

# What a shell reports for a program that Ctrl-C ended.
_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Run(AtRoot, DoitRun):
    """doit's `run`, which ends in order on TERM and HUP and knows the nearest name."""

    doc_purpose = "build what is stale (the default command)"

    # doit reads from the signature which options it has to pass.
    @functools.wraps(DoitRun._execute)
    def _execute(self, *args: Any, **kwargs: Any) -> int:
        known = [task.name for task in self.task_list]
        if doit_cmd._CMDLINE_VARS:
            # doit takes NAME=VALUE for a variable, and would go on to build everything.
            key, value = next(iter(doit_cmd._CMDLINE_VARS.items()))
            raise unknown(f"{key}={value}", known, self.loader.cmd_names)
        for name in self.sel_tasks or ():
            if "*" in name and not fnmatch.filter(known, name):
                # doit takes a pattern without a match for nothing to do.
                raise InvalidCommand(f"no task matches {name!r}\n  next: `doit list` shows all images")
        # The record of the last success stays when a step fails: only `doit forget` removes it.
        self.dep_manager.remove_success = lambda _task: None
        for number in _SIGNALS:
            signal.signal(number, _interrupt)
        try:
            status: int = super()._execute(*args, **kwargs)
        except InvalidCommand as error:
            if error.not_found is None:
                raise
            raise unknown(error.not_found, known, self.loader.cmd_names) from None
        except KeyboardInterrupt:
            status = _INTERRUPTED
        finally:
            command.end_all(STEP_GRACE_S)
            remember_digests()
        if status == _INTERRUPTED:
            sys.stderr.write("interrupted: what was finished stays finished\n")
        return status


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        # Once is enough: a second one must not break the cleaning up.
        signal.signal(number, signal.SIG_IGN)
    sys.stderr.write("interrupted: ending what is running\n")
    raise KeyboardInterrupt
