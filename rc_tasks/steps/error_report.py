"""Report of a step that failed: the file that it leaves beside its log.

A log holds whatever a Dockerfile prints, so nothing in it can say why the step failed. A step that did
its work leaves its record instead, and one that was killed leaves nothing.
"""

from enum import StrEnum
from pathlib import Path
from typing import Self

from msgspec import Struct

from rc_tasks.errors import CommandError, RcError
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.disk.locks import LockedError, LostLockError
from rc_tasks.util.json_decode import encode, parse


class ErrorKind(StrEnum):
    """Kinds of errors, by what the caller can do next."""

    FAILED = "failed"
    # Another process builds the image: nothing was done, and everything may be tried again.
    LOCKED = "locked"
    # Another process took the lock of this step while it was stopped.
    LOST_LOCK = "lost its lock"
    # The image `needs` has to be built first.
    NEEDS = "needs another image"


class ErrorReport(Struct, frozen=True):
    """The error of a step: `text` is the whole message, and stands at the end of the log as well.

    `after_tool`: the lines of a tool just above the message in the log say why.
    """

    kind: ErrorKind
    text: str
    needs: str = ""
    after_tool: bool = False

    @classmethod
    def of(cls, error: RcError) -> Self:
        """Return the report of an error that a step raised."""
        match error:
            case LostLockError():
                return cls(ErrorKind.LOST_LOCK, str(error))
            case LockedError():
                return cls(ErrorKind.LOCKED, str(error))
            case NeedsError(name=name):
                return cls(ErrorKind.NEEDS, str(error), needs=name)
            case _:
                after_tool = isinstance(error, CommandError) and not error.quote
                return cls(ErrorKind.FAILED, str(error), after_tool=after_tool)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the report of a step, or None when it is missing or incomplete.

        A network file system shows the file at once, as nobody has looked for its name before.
        """
        return parse(cls, reading.content(path))

    def write(self, path: Path) -> None:
        """Write it to `path`. Raise RcError when nothing can be written."""
        write_atomically(path, encode(self))


class ReportedError(RcError):
    """A part of the step, in a process of its own, has printed its error and ended with `status`.

    `report` is what it left, or None when it was killed.
    """

    def __init__(self, status: int, report: ErrorReport | None) -> None:
        super().__init__(report.text if report is not None else "the step was ended")
        self.status = status
        self.report = report


class NeedsError(RcError):
    """A base that was built is neither on the node nor in a store: it has to be built again first."""

    def __init__(self, name: str, what: str, *, where: object = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.name = name
