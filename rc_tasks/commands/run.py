"""`doit [TASK…]`: build images that are stale."""

import fnmatch
import functools
import os
import signal
import sys
from collections.abc import Collection, Mapping
from typing import Any

from doit import doit_cmd
from doit.cmd_run import Run as DoitRun
from doit.exceptions import InvalidCommand
from doit.task import Task as DoitTask

from rc_tasks.commands.at_root import AdaptedCommand, unknown_task
from rc_tasks.commands.cli.errors import INTERRUPTED, leave_at_once, leave_closed_output
from rc_tasks.engine.doit.reporter import Reporter
from rc_tasks.engine.doit.selection import always_run, reach, selection
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
from rc_tasks.state import rights
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.disk import locks
from rc_tasks.state.records.records import Task
from rc_tasks.state.records.status import briefly
from rc_tasks.tools import interrupt
from rc_tasks.util.text import printable_lines

_MOST_THREADS = 512
# doit's verbosity at which the output of steps is shown while they run.
_STREAMING_VERBOSITY = 2
# make's names of --process and --continue.
_JOBS = {"name": "jobs", "short": "j", "long": "jobs", "type": int, "default": None}
_KEEP_GOING = {"name": "keep_going", "long": "keep-going", "type": bool, "default": False}
# doit's own -a also runs what the named tasks depend on.
_ALWAYS_ALL = {"name": "always_all", "short": "", "long": "always-all", "type": bool, "default": False}


class Run(AdaptedCommand, DoitRun):
    """`doit run`, which ends cleanly on SIGTERM and SIGHUP and suggests names."""

    bare_names = False
    cmd_options = (*DoitRun.cmd_options, _JOBS, _KEEP_GOING, _ALWAYS_ALL)
    sel_tasks: Any
    _always_all = False

    def execute(self, params: Any, args: list[str]) -> int:
        """Run tasks; translate the options that doit's own `_execute` does not know."""
        self._always_all = params["always_all"]
        if params["seek_file"]:
            sys.stderr.write(
                "warning: -k is not make's: it has no effect, and the run stops at the first failure\n"
                "  next: doit --continue\n"
            )
        if params["jobs"] is not None:
            params["num_process"] = params["jobs"]
        if params["keep_going"]:
            params["continue"] = True
        return super().execute(params, args)

    # doit reads the signature to find out which options to pass.
    @functools.wraps(DoitRun._execute)
    def _execute(self, *args: Any, **kwargs: Any) -> int:
        known = [task.name for task in self.task_list]
        if doit_cmd._CMDLINE_VARS:
            # doit takes NAME=VALUE for a variable, and would then build all images.
            key, value = next(iter(doit_cmd._CMDLINE_VARS.items()))
            raise unknown_task(f"{key}={value}", known, self.loader.cmd_names)
        for name in self.sel_tasks or ():
            if "*" in name and not fnmatch.filter(known, name):
                # doit would report that there is nothing to do.
                raise InvalidCommand(f"no task matches {name!r}\n  next: `doit list` shows all images")
        if kwargs["num_process"] < 0:
            raise InvalidCommand(
                f"-n must be at least 1, not {kwargs['num_process']}\n"
                "  next: doit -n 4; -n 0 runs as many steps as there is room for"
            )
        out = kwargs["outfile"]
        if isinstance(out, str) and not os.path.isdir(os.path.dirname(out) or "."):
            raise InvalidCommand(
                f"{out}: the directory does not exist\n  next: create it, or name another file with -o"
            )
        # doit would remove the record of the last success when a step fails. Only `doit forget` may.
        self.dep_manager.remove_success = lambda _task: None
        # A run under nohup(1) outlives its terminal.
        hang_up = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else set()
        interrupt.raise_once({signal.SIGINT, signal.SIGTERM, *hang_up}, _report_interrupt, leave_at_once)
        try:
            with interrupt.recognized():
                status = self._run(*args, **kwargs)
        except InvalidCommand as error:
            if error.not_found is None:
                raise
            raise unknown_task(error.not_found, known, self.loader.cmd_names) from None
        except KeyboardInterrupt:
            status = INTERRUPTED
        finally:
            remember_digests()
        return status

    def _run(self, *args: Any, **kwargs: Any) -> int:
        current = session()
        tasks = {task.name: task for task in self.task_list}
        selected = [task for name in self.sel_tasks or tasks for task in _matching_tasks(name, tasks)]
        reached = reach(tasks, selected)
        names = list(dict.fromkeys(task.name for name in reached if (task := Task.parse(name))))
        require_own(current.checkout)
        for job_id in release_abandoned(current.checkout):
            print(f"job {job_id} of an earlier run released", flush=True)
        # A step that was killed after its record has left its lock, and will not run again.
        locks.clear_ended(current.checkout.lock("").parent)
        always: Collection[str] = ()
        if self._always_all:
            always = reached
        elif kwargs["always"]:
            always = always_run(tasks, selected)
        kwargs["always"] = False
        for name in always:
            tasks[name].uptodate = [(False, None, None)]
        built_again = {task.name for name in always if (task := Task.parse(name))}
        others = [name for name in names if name not in built_again]
        _adopt_images(current, others)
        if not self.sel_default_tasks:
            _print_frozen(current, others)
        expected = order(current.checkout, current.judge, names, always=always)
        _warn_of_umask(current, expected)
        dispatcher = Dispatcher(
            current, expected, kwargs["num_process"], keep_going=bool(kwargs["continue_"])
        )
        current.run_step, current.expected = dispatcher.run, expected
        current.streams = (kwargs["verbosity"] or 0) >= _STREAMING_VERBOSITY
        current.arguments = tuple(selected)
        # `--single` runs what is named even if it is fresh, and other reporters list fresh tasks too. A
        # word that is not a task may be an option of a task.
        if kwargs["reporter"] is Reporter and not kwargs["single"] and tasks.keys() >= set(selected):
            stale = selection(tasks, reached, expected.stale_s)
            self.sel_tasks, current.fresh = list(stale.tasks), stale.fresh
        # Each step that is ready waits for a slot in a thread of its own. If nothing is stale, use no
        # threads: the queue between them would take a third of such a run.
        threads = min(expected.stale_images, _MOST_THREADS)
        kwargs |= {"num_process": threads, "par_type": "thread"}
        try:
            status: int = super()._execute(*args, **kwargs)
        finally:
            current.tell(Event(EventKind.OVER))
            for job_id in dispatcher.end():
                sys.stderr.write(
                    f"warning: Slurm did not confirm the release of job {job_id}; the next run releases"
                    f" it\n  next: scancel {job_id}, once `scontrol ping` reports the controller up\n"
                )
            # A closed terminal must not turn a successful run into a failure.
            leave_closed_output()
        # doit returns 2 for tasks not attempted after a failure, which users need not tell from 1.
        return min(status, 1)


def _matching_tasks(name: str, known: Mapping[str, DoitTask]) -> list[str]:
    """Return the tasks that a name means to doit: a task, a pattern, or the file that a task makes."""
    if "*" in name:
        return fnmatch.filter(known, name)
    if name in known:
        return [name]
    return [task.name for task in known.values() if name in task.targets] or [name]


def _adopt_images(current: Session, names: list[str]) -> None:
    """Adopt images from the official checkout, and print which ones are refused."""
    for line in adopt.words(current, adopt.adopt(current, names)):
        print(line, flush=True)
    for warning in adopt.warnings(current, names):
        sys.stderr.write(f"warning: {warning}\n")


def _warn_of_umask(current: Session, expected: Order) -> None:
    """Warn before the build when other users could not read what it publishes."""
    mask = rights.closing_umask(current.checkout) if expected.stale_images else ""
    if mask:
        sys.stderr.write(
            f"warning: with umask {mask}, other users cannot read the images that this run publishes, or"
            " start jobs from them\n"
            "  next: to share the images, press Ctrl-C, run `umask 022` (002 where a group shares the"
            " checkout), then doit again\n"
        )


def _print_frozen(current: Session, names: list[str]) -> None:
    """Print which of the named images are frozen although they have changed."""
    for name in names:
        node = current.checkout.graph.images.get(name)
        if node is not None and node.options.frozen:
            ignored = [cause.words for cause in current.judge.image(name).ignored]
            if ignored:
                where = node.project.shown_options
                changes = printable_lines(briefly(name, ignored))
                print(f"{name} is frozen in {where}: not built again, though {changes}", flush=True)


def _report_interrupt() -> None:
    tell = session().tell if session.cache_info().currsize else report_without_display
    tell(Event(EventKind.INTERRUPTED, words=NOTHING_LOST))
