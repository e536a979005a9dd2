"""The checkout that this run of doit is about, opened once."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from doit.exceptions import TaskFailed

from rc_tasks.state.checkout import Checkout, find_root, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records import Step

# What the names of tasks begin with.
TASK_KINDS = frozenset({"build", *Step})


@dataclass(slots=True)
class Session:
    """A checkout and its judge, and what a run adds to them.

    `run_step` runs a step. `tell` shows an event of a run (a word for its kind, and the rest);
    `remarks` are words on tasks that have run, for the reporter.
    """

    checkout: Checkout
    judge: Judge
    remarks: dict[str, str] = field(default_factory=dict)
    run_step: Callable[[Step, str], TaskFailed | None] = lambda _step, _name: None
    tell: Callable[[str, str], None] = lambda _kind, _text: None


@functools.cache
def session(start: Path | None = None) -> Session:
    """The session of the checkout around `start` (the working directory). Raises RcError."""
    checkout = open_checkout(find_root(start or Path(os.getcwd())))
    return Session(checkout, Judge(checkout))


def remember_digests() -> None:
    """Save what this run learnt of files, if it opened a checkout at all."""
    if session.cache_info().currsize:
        session().checkout.digests.save()
