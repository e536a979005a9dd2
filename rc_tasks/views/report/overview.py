"""A checkout at one moment, as values: images, past runs, what failed. `doit report` shows them."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.model.graph.project import EDF
from rc_tasks.model.graph.view import GraphView, picture
from rc_tasks.state import history, logs
from rc_tasks.state.bases.registry_bases import RegistryBase, registry_bases
from rc_tasks.state.checkout import GENERATED, Checkout
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Passed, Step
from rc_tasks.state.records.status import ImageStatus, State
from rc_tasks.tools import git
from rc_tasks.views.report.manifest_summary import Inside, inside

# How many runs of an image are told, and how much of the log of a failure.
_RUNS = 30
_TAIL_LINES = 20
# Nobody reads a longer env.toml on a page.
_LONGEST_EDF_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class ImageRun:
    """What one run did for an image, by its steps that ended well.

    `size_bytes` is that of the published image; None when the run published none.
    """

    run: str
    began: datetime
    durations_s: tuple[tuple[Step, float], ...]
    size_bytes: int | None = None
    failed: bool = False

    @property
    def duration_s(self) -> float:
        """All steps together."""
        return sum(each for _, each in self.durations_s)


@dataclass(frozen=True, slots=True)
class ImageOverview:
    """An image as in `doit list`, and more.

    `commit` is that of the build, `bases` are local and registry ones, `built` are the runs that had
    work with it, the oldest first. `edf` is relative to the checkout and empty when there is no file.
    `smoke` has the tests that the published image passed. `instead_of` is the image ID in place of which
    it was put back, empty for one that was not.
    """

    name: str
    state: State
    reasons: tuple[str, ...] = ()
    size_bytes: int | None = None
    built_at: str = ""
    commit: str = ""
    dirty: bool = False
    bases: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    edf: str = ""
    edf_text: str = ""
    built: tuple[ImageRun, ...] = ()
    smoke: tuple[Passed, ...] = ()
    instead_of: str = ""
    inside: Inside | None = None


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A failure that stands, or one of the last run whose cause was changed since.

    `step` is None where a project is no image that could be built. `tail` holds the last lines of the
    log, as they are.
    """

    image: str
    state: State
    message: str
    step: Step | None = None
    failed_at: str = ""
    log: str = ""
    tail: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Overview:
    """All that is known at `made_at`, which has a zone.

    `tries` are those of the newest run that had work, in the order in which they began. `commit` is
    empty outside git. `problems` concern directories that cannot be images.
    """

    root: Path
    made_at: datetime
    images: tuple[ImageOverview, ...] = ()
    picture: GraphView = field(default_factory=lambda: GraphView((), ()))
    tries: tuple[HistoryEntry, ...] = ()
    failures: tuple[FailedImage, ...] = ()
    bases: tuple[RegistryBase, ...] = ()
    problems: tuple[str, ...] = ()
    branch: str = ""
    commit: str = ""
    changes: int = 0


def overview(checkout: Checkout, judge: Judge) -> Overview:
    """Judge every image and read the history."""
    graph = checkout.graph
    statuses = [judge.image(name) for name in (*graph.images, *graph.broken)]
    past = list(history.entries(checkout.history))
    last = tuple(entry for entry in reversed(past) if entry.run == past[0].run)
    built = by_image(past)
    states = {each.name: (each.state, each.reasons, judge.rolled_back(each.name)) for each in statuses}
    aliases = graph.aliases_of()
    head, changes = _git(checkout.root)
    return Overview(
        root=checkout.root,
        made_at=datetime.now().astimezone(),
        images=tuple(
            _image(
                checkout,
                status,
                tuple(aliases.get(status.name, ())),
                built.get(status.name, ()),
                rolled_back=states[status.name][2],
            )
            for status in statuses
        ),
        picture=picture(graph, states),
        tries=last,
        failures=tuple(_failures(checkout, statuses, last)),
        bases=_bases(checkout),
        problems=tuple(map(str, graph.problems)),
        branch=head.branch,
        commit=head.commit,
        changes=changes,
    )


def by_image(entries: Iterable[HistoryEntry]) -> dict[str, tuple[ImageRun, ...]]:
    """The newest runs of each image, the oldest of them first; the entries come newest first."""
    runs: dict[tuple[str, str], list[HistoryEntry]] = defaultdict(list)
    for entry in entries:
        runs[entry.image, entry.run].append(entry)
    found: dict[str, list[ImageRun]] = defaultdict(list)
    for (image, run), tries in runs.items():
        if len(found[image]) == _RUNS:
            continue
        done = [each for each in tries if each.outcome is Outcome.DONE]
        failed = any(each.outcome is Outcome.FAILED for each in tries)
        # Of a run that wrote only env.toml there is nothing to compare.
        if not failed and all(each.step is Step.ENV for each in done):
            continue
        durations = tuple(
            (step, sum(each.duration_s for each in done if each.step is step))
            for step in Step
            if any(each.step is step for each in done)
        )
        size = next((each.size_bytes for each in done if each.step is Step.ENROOT), None)
        found[image].append(ImageRun(run, tries[-1].began, durations, size, failed))
    return {image: tuple(reversed(each)) for image, each in found.items()}


def interval(tries: Iterable[HistoryEntry]) -> tuple[datetime, datetime]:
    """When the first of some tries was ready, and when the last one ended."""
    spans = [(ready(each), ended(each)) for each in tries]
    return min(begin for begin, _ in spans), max(end for _, end in spans)


def ready(entry: HistoryEntry) -> datetime:
    """When a try could have begun."""
    return _moved(entry.began, -entry.queued_s)


def ended(entry: HistoryEntry) -> datetime:
    """When a try was over."""
    return _moved(entry.began, entry.duration_s)


def _moved(time: datetime, seconds: float) -> datetime:
    try:
        return time + timedelta(seconds=seconds)
    except OverflowError:
        # A damaged history holds any number.
        return time


def _image(
    checkout: Checkout,
    status: ImageStatus,
    aliases: tuple[str, ...],
    built: tuple[ImageRun, ...],
    *,
    rolled_back: bool,
) -> ImageOverview:
    graph, name = checkout.graph, status.name
    node = graph.images.get(name) or graph.circular.get(name)
    if node is None:
        return ImageOverview(name, status.state, status.reasons, aliases=aliases, built=built)
    podman, enroot = (checkout.records.get(step, name) for step in (Step.PODMAN, Step.ENROOT))
    edf = _text(node.project.edf)
    instead_of = enroot.instead_of if enroot and rolled_back else ""
    return ImageOverview(
        name,
        status.state,
        status.reasons,
        size_bytes=_size(node.project.artifact),
        built_at=enroot.ended_at if enroot else "",
        commit=podman.commit if podman else "",
        dirty=podman.dirty if podman else False,
        bases=tuple(dict.fromkeys((*node.bases, *node.remote))),
        aliases=aliases,
        edf=node.project.shown(EDF) if edf is not None else "",
        edf_text=edf or "",
        built=built,
        smoke=tuple(filter(_plausible, enroot.smoke)) if enroot else (),
        instead_of=instead_of,
        inside=inside(checkout, name, instead_of),
    )


def _plausible(test: Passed) -> bool:
    """Whether what a file says of a test can be shown: of types nothing is certain."""
    return all(isinstance(word, str) for word in test.argv) and math.isfinite(test.duration_s)


def _bases(checkout: Checkout) -> tuple[RegistryBase, ...]:
    # What is wrong with the pins stands as the reason of every image that needs one.
    try:
        return registry_bases(checkout.graph, checkout.pins.read())
    except RcError:
        return ()


def _failures(
    checkout: Checkout, statuses: list[ImageStatus], last: tuple[HistoryEntry, ...]
) -> Iterable[FailedImage]:
    told = set()
    # The images of a circle share one error.
    first: dict[str, str] = {}
    for status in statuses:
        name, failure = status.name, status.failure
        if status.state is not State.FAILED:
            continue
        if failure is None:
            broken = checkout.graph.broken.get(name)
            text = str(broken or "\n".join(status.reasons))
            same = first.setdefault(text, name)
            yield FailedImage(name, status.state, text if same == name else f"as {same}")
            continue
        step = next((each for each in Step if checkout.records.failure(each, name) == failure), None)
        told.add((name, step))
        tail = _tail(checkout, failure.log)
        yield FailedImage(
            name, status.state, failure.message, step, failure.failed_at, failure.log, tail
        )
    states = {status.name: status.state for status in statuses}
    for entry in last:
        if entry.outcome is not Outcome.FAILED or (entry.image, entry.step) in told:
            continue
        if entry.image in states:
            tail = _tail(checkout, entry.log)
            state, at = states[entry.image], entry.started_at
            yield FailedImage(entry.image, state, "", entry.step, at, entry.log, tail)


def _tail(checkout: Checkout, log: str) -> tuple[bytes, ...]:
    """The end of a log; records and history are files, and only logs are to be shown."""
    if not log:
        return ()
    path = Path(os.path.realpath(checkout.root / log))
    if not path.is_relative_to(checkout.root / GENERATED / "logs"):
        return ()
    return logs.tail(path, _TAIL_LINES)


def _git(root: Path) -> tuple[git.Head, int]:
    try:
        return git.head(root), len(git.changes(root))
    except RcError:
        return git.Head("", "", ""), 0


def _size(path: Path) -> int | None:
    # An adopted image may lie where we may not look.
    try:
        return path.stat().st_size
    except OSError:
        return None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_EDF_BYTES).decode(errors="replace")
    except OSError:
        return None
