"""`doit [TASK…]`: builds what is stale."""

import contextlib
import fnmatch
import functools
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from doit import doit_cmd
from doit.cmd_run import Run as DoitRun
from doit.exceptions import InvalidCommand
from doit.task import Task as DoitTask

from rc_tasks.commands.at_root import AtRoot, unknown
from rc_tasks.commands.cli.errors import INTERRUPTED, leave_closed_output
from rc_tasks.engine.doit.reporter import Reporter
from rc_tasks.engine.doit.selection import reach, selection
from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.run import adopt
from rc_tasks.engine.run.allocator import release_abandoned
from rc_tasks.engine.run.dispatcher import Dispatcher
from rc_tasks.engine.schedule.estimates import Order, order
from rc_tasks.engine.session import (
    NOTHING_LOST,
    Session,
    remember_digests,
    report_without_display,
    session,
)
from rc_tasks.model.graph.project import RECIPE
from rc_tasks.state import rights
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.records.records import Task
from rc_tasks.state.records.status import briefly
from rc_tasks.tools import interrupt
from rc_tasks.util.text import printable_lines

_MOST_THREADS = 512
# doit's verbosity with which everything is shown at once.
_STREAMS = 2


class Run(AtRoot, DoitRun):
    """doit's `run`, which ends in order on TERM and HUP and knows the nearest name."""

    sel_tasks: Any

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
        if kwargs["num_process"] < 0:
            raise InvalidCommand(
                "-n is at least 1, or 0 for as many as there is room for\n  next: doit -n 4"
            )
        out = kwargs["outfile"]
        if isinstance(out, str) and not os.path.isdir(os.path.dirname(out) or "."):
            raise InvalidCommand(
                f"{out}: there is no such directory\n  next: make it, or name another file"
            )
        # The record of the last success stays when a step fails: only `doit forget` removes it.
        self.dep_manager.remove_success = lambda _task: None
        # A run under nohup(1) outlives its terminal.
        hang_up = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else set()
        interrupt.raise_once({signal.SIGINT, signal.SIGTERM, *hang_up}, _say_so, _leave_at_once)
        try:
            status = self._run(*args, **kwargs)
        except InvalidCommand as error:
            if error.not_found is None:
                raise
            raise unknown(error.not_found, known, self.loader.cmd_names) from None
        except KeyboardInterrupt:
            status = INTERRUPTED
        finally:
            remember_digests()
        return status

    def _run(self, *args: Any, **kwargs: Any) -> int:
        opened = session()
        tasks = {task.name: task for task in self.task_list}
        asked = [each for name in self.sel_tasks or tasks for each in _tasks(name, tasks)]
        found = reach(tasks, asked)
        names = list(dict.fromkeys(task.name for name in found if (task := Task.parse(name))))
        require_own(opened.checkout)
        for job_id in release_abandoned(opened.checkout):
            print(f"job {job_id} released, left by an earlier run", flush=True)
        if not kwargs["always"]:
            _adopt(opened, names)
            if not self.sel_default_tasks:
                _tell_frozen(opened, names)
        expected = order(opened.checkout, opened.judge, names, everything=kwargs["always"])
        _warn_of_umask(opened, expected)
        dispatcher = Dispatcher(
            opened, expected, kwargs["num_process"], keep_going=bool(kwargs["continue_"])
        )
        opened.run_step, opened.expected = dispatcher.run, expected
        opened.streams = (kwargs["verbosity"] or 0) >= _STREAMS
        opened.arguments = tuple(asked)
        # `--single` is about what was named, and other reporters tell what is fresh as well. What is no
        # task may be an option of one.
        if kwargs["reporter"] is Reporter and not kwargs["single"] and tasks.keys() >= set(asked):
            chosen = selection(tasks, found, expected.stale_s)
            self.sel_tasks, opened.fresh = list(chosen.tasks), chosen.fresh
        # Every step that is ready gets a thread, in which it waits for its place. Where nothing is
        # stale there is none, as a queue between threads would take a third of such a run.
        threads = min(expected.stale_images, _MOST_THREADS)
        kwargs |= {"num_process": threads, "par_type": "thread"}
        try:
            status: int = super()._execute(*args, **kwargs)
        finally:
            opened.tell(Event(EventKind.OVER))
            for job_id in dispatcher.end():
                sys.stderr.write(
                    f"warning: Slurm did not confirm the release of job {job_id}; the next run releases"
                    f" it\n  next: scancel {job_id}, when `scontrol ping` finds the controller\n"
                )
            # Nobody may read the output any more; the images are built all the same.
            leave_closed_output()
        # doit's 2 says that something was not tried because of what failed: no other news than 1.
        return min(status, 1)


def _tasks(name: str, known: Mapping[str, DoitTask]) -> list[str]:
    """The tasks that doit takes a name for: a task's own, a pattern, or a file that one makes."""
    if "*" in name:
        return fnmatch.filter(known, name)
    if name in known:
        return [name]
    return [task.name for task in known.values() if name in task.targets] or [name]


def _adopt(opened: Session, names: list[str]) -> None:
    """Take over what a clone need not build, and say what of the official checkout is refused."""
    for line in adopt.words(opened, adopt.adopt(opened, names)):
        print(line, flush=True)
    for warning in adopt.warnings(opened, names):
        sys.stderr.write(f"warning: {warning}\n")


def _warn_of_umask(opened: Session, expected: Order) -> None:
    """Report once, before anything is published, that nobody else could start a job from it."""
    mask = rights.closing_umask(opened.checkout) if expected.stale_images else ""
    if mask:
        sys.stderr.write(
            f"warning: with umask {mask} nobody but you may read what this run publishes, so jobs of"
            " others cannot start from it\n"
            "  next: unless that is meant, interrupt it, then `umask 022` (002 where a group shares the"
            " checkout)\n"
        )


def _tell_frozen(opened: Session, names: list[str]) -> None:
    """Who asks for an image by name learns why it is not built."""
    for name in names:
        node = opened.checkout.graph.images.get(name)
        if node is not None and node.recipe.frozen:
            held = [cause.words for cause in opened.judge.image(name).held]
            if held:
                where, told = node.project.shown(RECIPE), printable_lines(briefly(name, held))
                print(f"{name} is frozen in {where}: not built again, though {told}", flush=True)


def _say_so() -> None:
    tell = session().tell if session.cache_info().currsize else report_without_display
    tell(Event(EventKind.INTERRUPTED, words=NOTHING_LOST))


def _leave_at_once() -> None:
    """End this process at a second Ctrl-C; its guard ends the steps, and the next run clears up."""
    # The terminal may be gone, and a lock of Python's streams be held.
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), b"interrupted again: not waiting for the steps to end\n")
    os._exit(INTERRUPTED)
