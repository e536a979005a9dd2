"""The checkout that this run of doit is about, opened once."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rc_tasks.engine.events import Event, EventKind
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.state.checkout import Checkout, find_root, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step, Task

if TYPE_CHECKING:
    from doit.exceptions import TaskFailed

    from rc_tasks.engine.schedule.estimates import Order

# What the names of tasks begin with.
TASK_KINDS = frozenset({"build", *Step})
NOTHING_LOST = "what is finished stays finished"


@dataclass(slots=True)
class Session:
    """A checkout and its judge, and what a run adds to them.

    `asked` are the tasks that the user named, and `fresh` the images of theirs in which there is nothing
    to do. `run_step` runs a step. `tell` is told what happens in a run, and `remarks` are words on tasks
    that have run, for the reporter; `entrypoints` are those of images to tell of at its end. `expected`
    is what it may count on, and `streams` says that it shows the output of the steps as well.
    """

    checkout: Checkout
    judge: Judge
    asked: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    remarks: dict[Task, str] = field(default_factory=dict)
    entrypoints: dict[str, Behaviour] = field(default_factory=dict)
    run_step: Callable[[Task], "TaskFailed | None"] = lambda _task: None
    tell: Callable[[Event], None] = field(default_factory=lambda: alone)
    expected: "Order | None" = None
    streams: bool = False


def alone(event: Event) -> None:
    """What is told while nobody shows the run, as before its beginning."""
    if event.kind is EventKind.INTERRUPTED:
        # The terminal may be gone: that is what HUP says.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{event.kind} {NOTHING_LOST}\n")


@functools.cache
def session(start: Path | None = None) -> Session:
    """The session of the checkout around `start` (the working directory). Raises RcError."""
    checkout = open_checkout(find_root(start or Path(os.getcwd())))
    return Session(checkout, Judge(checkout))


def remember_digests() -> None:
    """Save what this run learnt of files, if it opened a checkout at all."""
    if session.cache_info().currsize:
        session().checkout.remember()
