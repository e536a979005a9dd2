"""What a step says when it ends, for whoever reads its log."""

from rc_tasks.errors import RcError

# The last thing in the log of a step that failed with an error of ours; what follows is its text.
FAILED = "== failed"
# The same, where the lines of a tool just above say why.
FAILED_AS_ABOVE = "== failed, as told above"
# Somebody else is building the image: nothing was done, and all may be tried again.
LOCKED = "== locked"
# Somebody else has taken the lock of a step that was stopped, and builds the image; why follows.
LOST = "== lost its lock"
# Another image has to be built first; its name follows, and on the next lines why.
NEEDS = "== needs "


class ToldError(RcError):
    """A part of the step in a process of its own has said all there is to say; `status` is its own."""

    def __init__(self, status: int) -> None:
        super().__init__("the step failed, as told above")
        self.status = status


class NeedsError(RcError):
    """A base that was built is nowhere to be had any more: it has to be built again first."""

    def __init__(self, name: str, what: str, *, where: object = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.name = name
