"""States of images, status of their steps, and the causes for a step to run."""

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from rc_tasks.errors import RcError
from rc_tasks.model.dockerfile.parser import Overlooked
from rc_tasks.state.records.inputs import CHANGED_MEANWHILE
from rc_tasks.state.records.records import Failure, Step
from rc_tasks.util.text import listed


class State(StrEnum):
    """The state of an image, as `doit list` shows it."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"
    FAILED = "failed"
    BUILDING = "building"


# The part of a cause that a run settles by adoption, without building.
OFFICIAL = "official"
# The parts of causes that an image was never built, is no longer in the store, or is no longer the
# official one.
NEVER = ""
STORE = "store"
GONE = "gone"
# Why an image that an earlier version of this program built may be wrong, by what podman overlooked.
_OVERLOOKED = {
    Overlooked.SOURCE: "podman's cache may have used older files for RUN --mount",
    Overlooked.STAGE: "podman's cache may have used an older stage for RUN --mount",
    Overlooked.VARIABLE: "podman's cache may have used an older value of ARG",
    Overlooked.SHADOW: "podman may have used the image of the same name instead of a stage",
}
# The part of a cause that needs only a test of the published image, unless there are other causes.
SMOKE = "smoke"
_MOST_ON_LINE = 5


class Cause(Struct, frozen=True):
    """One reason for a step to run.

    `part` names the input or output concerned, `old` and `new` are its digests or empty.
    `upstream`: an earlier step has to run, and the cause may vanish once that step has run.
    """

    part: str
    words: str
    old: str = ""
    new: str = ""
    upstream: bool = False


class StepStatus(Struct, frozen=True):
    """Why a step has to run; without causes it is fresh. A frozen image ignores those in `ignored`."""

    step: Step
    causes: tuple[Cause, ...]
    ignored: tuple[Cause, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether the step has nothing to do."""
        return not self.causes

    @property
    def adoptable(self) -> bool:
        """Whether the run adopts the official image instead of running the step."""
        return any(cause.part == OFFICIAL for cause in self.causes)

    @property
    def settled(self) -> bool:
        """Whether the step need not run: it is fresh, or the official image will be adopted."""
        return self.fresh or self.adoptable

    @property
    def certain(self) -> bool:
        """Whether the step runs whatever the steps before it make."""
        return not self.adoptable and any(not cause.upstream for cause in self.causes)


class ImageStatus(Struct, frozen=True):
    """The status of an image; `reasons` are sentences for people, the most important first."""

    name: str
    state: State
    reasons: tuple[str, ...]
    steps: tuple[StepStatus, ...]
    failure: Failure | None = None

    @property
    def ignored(self) -> tuple[Cause, ...]:
        """The causes that a frozen image ignores."""
        return tuple(cause for status in self.steps for cause in status.ignored)


def leading_causes(steps: tuple[StepStatus, ...]) -> list[Cause]:
    """Return the causes to print: those of the steps, then those of the bases.

    An image that was never built has that one cause, and those of its bases.
    """
    certain = [cause for status in steps for cause in status.causes if not cause.upstream]
    from_bases = [cause for cause in steps[0].causes if cause.upstream] if steps else []
    if steps and any(cause.part == NEVER for cause in steps[0].causes):
        return [steps[0].causes[0], *from_bases]
    return certain + from_bases


def on_one_line(reasons: Iterable[str]) -> str:
    """Return some reasons for a line of output; another branch may change thousands of files."""
    return listed(tuple(dict.fromkeys(reasons)), _MOST_ON_LINE)


def briefly(name: str, reasons: Iterable[str]) -> str:
    """Return the first of some reasons, and how to see the others."""
    first, *more = dict.fromkeys(reasons)
    return f"{first} (and {len(more)} more: doit why {name})" if more else first


def changed(part: str, old: str | None, new: str | None) -> str:
    """Describe a changed input; None stands for a part that was or is missing."""
    kind, _, rest = part.partition("/")
    if old == CHANGED_MEANWHILE:
        return f"{'the directory' if rest == '.' else rest or part} changed during the last build"
    match kind:
        case "cache":
            return _OVERLOOKED[Overlooked(rest)]
        case "base" if old is not None and new is not None:
            return f"base image {rest} was rebuilt"
        case "base":
            return f"base image {rest} {'added' if old is None else 'removed'}"
        case "pin":
            return f"base image {rest} was pinned to another digest"
        case "architecture":
            return f"built for {old}, this host is {new}"
        case "context" if not rest:
            return "the context changed"
        case "contexts" if "/" not in rest:
            return f"the context {rest} changed"
        case "context" | "contexts" | "Containerfile" | "Dockerfile":
            if old is not None and new is not None:
                same_content = old.partition(" ")[2] == new.partition(" ")[2]
                return f"{'mode of ' if same_content else ''}{rest or kind} changed"
            return f"{rest or kind} {'added' if old is None else 'removed'}"
        case _:
            return f"{part} changed"


def first_line(error: RcError) -> str:
    """Return the first line of an error, for a table."""
    return error.headline.partition("\n")[0]
