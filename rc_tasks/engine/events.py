"""What happens in a run, as values: the dispatcher tells, the reporter counts, a display shows."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from rc_tasks.state.records.records import Task


class EventKind(StrEnum):
    """What has happened; those that a line tells, by its first word."""

    START = "start"
    DONE = "done"
    FAILED = "FAILED"
    IGNORED = "ignored"
    # Another run builds the image.
    WAIT = "wait"
    # On another node, or after something else.
    RETRY = "retry"
    AGAIN = "again"
    # Of the allocation.
    QUEUE = "queue"
    GRANTED = "granted"
    # Of Slurm itself.
    SLURM = "slurm"
    INTERRUPTED = "interrupted:"

    # A step is ready and has no place yet.
    READY = "(ready)"
    # It has left its place, or waits for none any more.
    LEFT = "(left)"
    # It turns out to have nothing to do, or cannot be tried.
    SETTLED = "(settled)"
    # The run is over.
    OVER = "(over)"

    @property
    def told(self) -> bool:
        """Whether it has a line of its own."""
        return not self.startswith("(")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a step, to what `about` names, or (both are empty) to the whole run.

    Of a step that starts, `node` is where (empty: this host), `log` what grows, and `last_s` how long
    it took last time.
    """

    kind: EventKind
    task: Task | None = None
    words: str = ""
    node: str = ""
    log: Path | None = None
    last_s: float | None = None
    about: str = ""
    at: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def subject(self) -> str:
        """The step, or what else it is about."""
        return str(self.task) if self.task is not None else self.about
