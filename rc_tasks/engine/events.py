"""Events of a run: the dispatcher reports them, the reporter counts them, a display shows them."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path

from msgspec import Struct, field

from rc_tasks.state.records.records import Task


class EventKind(StrEnum):
    """The kind of an event; the value is the first word of its line, if it is printed."""

    START = "start"
    DONE = "done"
    FAILED = "FAILED"
    IGNORED = "ignored"
    # Another run builds the image.
    WAIT = "wait"
    # The step starts again, on another node or after an error that may pass.
    RETRY = "retry"
    AGAIN = "again"
    # The allocation.
    QUEUE = "queue"
    GRANTED = "granted"
    # Slurm itself.
    SLURM = "slurm"
    INTERRUPTED = "interrupted:"

    # A step is ready and has no slot yet.
    READY = "(ready)"
    # It has left its slot, or no longer waits for one.
    LEFT = "(left)"
    # It has nothing to do, or cannot start.
    SETTLED = "(settled)"
    # The run is over.
    OVER = "(over)"

    @property
    def printed(self) -> bool:
        """Whether an event of this kind has a line of its own."""
        return not self.startswith("(")


class Event(Struct, frozen=True):
    """An event of a step, of the subject that `about` names, or (without both) of the whole run.

    When a step starts, `node` is where (empty: this host), `log` is its log, and `last_s` is how long it
    took last time.
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
        """The step, or the subject that `about` names."""
        return str(self.task) if self.task is not None else self.about
