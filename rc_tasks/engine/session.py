"""Session: the checkout, its judge and the state of one run of doit."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from rc_tasks.engine.events import Event, EventKind
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.state.checkout import Checkout, find_root, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step, Task

if TYPE_CHECKING:
    from doit.exceptions import TaskFailed

    from rc_tasks.engine.schedule.estimates import Order

# Prefixes of task names.
TASK_KINDS = frozenset({"build", *Step})
NOTHING_LOST = "what is finished stays finished"


class Session(Struct):
    """A checkout and its judge, and the state that a run adds to them.

    `asked` are the tasks that the user named. `fresh` are their images that have nothing to do.
    `run_step` runs a step. `tell` reports an event. `remarks` are the reporter's remarks on tasks that
    have run. `entrypoints` are those of images to report at the end of the run. `expected` is the order
    of the steps with their estimates. `streams`: the reporter also shows the output of the steps.
    """

    checkout: Checkout
    judge: Judge
    arguments: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    remarks: dict[Task, str] = field(default_factory=dict)
    entrypoints: dict[str, Behaviour] = field(default_factory=dict)
    run_step: Callable[[Task], "TaskFailed | None"] = lambda _task: None
    tell: Callable[[Event], None] = field(default_factory=lambda: report_without_display)
    expected: "Order | None" = None
    streams: bool = False


def report_without_display(event: Event) -> None:
    """Print an interrupt and ignore all other events; used while the run has no display."""
    if event.kind is EventKind.INTERRUPTED:
        # The terminal may be gone: SIGHUP means that.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{event.kind} {NOTHING_LOST}\n")


@functools.cache
def session(start: Path | None = None) -> Session:
    """Return the session of the checkout around `start` (the working directory). Raise RcError."""
    checkout = open_checkout(find_root(start or Path(os.getcwd())))
    for error in checkout.moves.interrupted(checkout.lock("").parent):
        sys.stderr.write(f"warning: {error}\n")
    return Session(checkout, Judge(checkout))


def remember_digests() -> None:
    """Save the caches of digests and comparisons, if this run opened a checkout."""
    if session.cache_info().currsize:
        session().checkout.remember()
