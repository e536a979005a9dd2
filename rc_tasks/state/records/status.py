"""What the judge says: states, causes and their words for people."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rc_tasks.errors import RcError
from rc_tasks.model.dockerfile.parser import Overlooked
from rc_tasks.state.records.inputs import CHANGED_MEANWHILE
from rc_tasks.state.records.records import Failure, Step


class State(StrEnum):
    """The state of an image, as `doit list` shows it."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"
    FAILED = "failed"
    BUILDING = "building"


# The part of a cause that a run settles without building.
OFFICIAL = "official"
# The parts of causes that an image was never built, is lost, or is not the official one any more.
NEVER = ""
STORE = "store"
GONE = "gone"
# Why what earlier versions of this program built may be wrong, by what podman did not look at.
_OVERLOOKED = {
    Overlooked.SOURCE: "podman's cache may have used older files for RUN --mount",
    Overlooked.STAGE: "podman's cache may have used an older stage for RUN --mount",
    Overlooked.VARIABLE: "podman's cache may have used an older value of ARG",
    Overlooked.SHADOW: "a stage was taken for the image of the same name",
}
# The part of a cause that is settled by testing the published image, as long as it is the only one.
SMOKE = "smoke"


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason for a step to run.

    `part` names the input or output concerned, `old` and `new` its digests where there are any.
    `upstream`: it concerns only what comes before, and may vanish once that has run.
    """

    part: str
    words: str
    old: str = ""
    new: str = ""
    upstream: bool = False


@dataclass(frozen=True, slots=True)
class StepStatus:
    """Why a step has to run; no causes: it does not. `held` do not count, as the image is frozen."""

    step: Step
    causes: tuple[Cause, ...]
    held: tuple[Cause, ...] = ()

    @property
    def fresh(self) -> bool:
        """Nothing to do."""
        return not self.causes

    @property
    def adoptable(self) -> bool:
        """The official image is to be taken in place of a run."""
        return any(cause.part == OFFICIAL for cause in self.causes)

    @property
    def settled(self) -> bool:
        """No work: fresh, or as good as fresh because the official image will be taken."""
        return self.fresh or self.adoptable

    @property
    def certain(self) -> bool:
        """It will run whatever the steps before it make."""
        return not self.adoptable and any(not cause.upstream for cause in self.causes)


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """An image as a whole; `reasons` are words for people, the most important first."""

    name: str
    state: State
    reasons: tuple[str, ...]
    steps: tuple[StepStatus, ...]
    failure: Failure | None = None

    @property
    def held(self) -> tuple[Cause, ...]:
        """What would have a frozen image built again."""
        return tuple(cause for status in self.steps for cause in status.held)


def told(steps: tuple[StepStatus, ...]) -> list[Cause]:
    """The causes that a person wants to read: of each image the first step that says something."""
    certain = [cause for status in steps for cause in status.causes if not cause.upstream]
    from_bases = [cause for cause in steps[0].causes if cause.upstream] if steps else []
    if steps and any(cause.part == NEVER for cause in steps[0].causes):
        return [steps[0].causes[0], *from_bases]
    return certain + from_bases


def briefly(name: str, reasons: Iterable[str]) -> str:
    """The first of some reasons, and how to see the others."""
    first, *more = dict.fromkeys(reasons)
    return f"{first} (and {len(more)} more: doit why {name})" if more else first


def changed(part: str, old: str | None, new: str | None) -> str:
    """A changed input in words; None stands for a part that was not or is not there."""
    kind, _, rest = part.partition("/")
    if old == CHANGED_MEANWHILE:
        return f"{'the directory' if rest == '.' else rest or part} changed during the last build"
    match kind:
        case "cache":
            return _OVERLOOKED[Overlooked(rest)]
        case "base" if old is not None and new is not None:
            return f"base {rest} was built anew"
        case "base":
            return f"base {rest} {'added' if old is None else 'removed'}"
        case "pin":
            return f"base {rest} was pinned to another digest"
        case "architecture":
            return f"built for {old}, this is {new}"
        case "context" | "Containerfile" | "Dockerfile" if old is not None and new is not None:
            same_content = old.partition(" ")[2] == new.partition(" ")[2]
            return f"{'mode of ' if same_content else ''}{rest or kind} changed"
        case "context" | "Containerfile" | "Dockerfile":
            return f"{rest or kind} {'added' if old is None else 'removed'}"
        case _:
            return f"{part} changed"


def first_line(error: RcError) -> str:
    """An error for a table."""
    return error.headline.partition("\n")[0]
