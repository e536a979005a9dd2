"""Markers at the end of a step's log, which the dispatcher reads, and their errors."""

from rc_tasks.errors import RcError

# The text of the step's error follows, to the end of the log.
FAILED = "== failed"
# The same, but the lines of a tool above give the reason.
FAILED_AS_ABOVE = "== failed, as told above"
# Another process is building the image: nothing was done, and the step may be tried again.
LOCKED = "== locked"
# Another process has taken the lock of a step that was stopped, and builds it; the reason follows.
LOST = "== lost its lock"
# Another image has to be built first; its name follows, and the reason on the next lines.
NEEDS = "== needs "


class ReportedError(RcError):
    """A child process of the step failed and has reported why; `status` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__("the step failed for the reason above")
        self.status = status


class NeedsError(RcError):
    """A base was lost after its build, so it has to be built again first."""

    def __init__(self, name: str, what: str, *, where: object = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.name = name
