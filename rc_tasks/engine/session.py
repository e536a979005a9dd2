"""The checkout that this run of doit is about, opened once."""

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path

from rc_tasks.state.checkout import Checkout, find_root, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records import Step

# What the names of tasks begin with.
TASK_KINDS = frozenset({"build", *Step})


@dataclass(frozen=True, slots=True)
class Session:
    """A checkout and its judge; `remarks` are words on tasks that have run, for the reporter."""

    checkout: Checkout
    judge: Judge
    remarks: dict[str, str] = field(default_factory=dict)


@functools.cache
def session(start: Path | None = None) -> Session:
    """The session of the checkout around `start` (the working directory). Raises RcError."""
    checkout = open_checkout(find_root(start or Path(os.getcwd())))
    return Session(checkout, Judge(checkout))


def remember_digests() -> None:
    """Save what this run learnt of files, if it opened a checkout at all."""
    if session.cache_info().currsize:
        session().checkout.digests.save()
