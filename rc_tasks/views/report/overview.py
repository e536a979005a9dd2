"""State of a checkout at one moment, for `doit report`: images, past runs, failures."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from rc_tasks.errors import RcError
from rc_tasks.model.graph.project import EDF
from rc_tasks.model.graph.view import EdgeKind, GraphView, graph_view
from rc_tasks.state import history, logs
from rc_tasks.state.bases.registry_bases import RegistryBase, registry_bases
from rc_tasks.state.checkout import GENERATED, Checkout
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Passed, Step
from rc_tasks.state.records.rollback import rolled_back_from
from rc_tasks.state.records.status import ImageStatus, State
from rc_tasks.tools import git
from rc_tasks.views import recipe_text
from rc_tasks.views.report.manifest_summary import ManifestSummary, manifest_summary

# How many runs of an image are shown, and how many lines of the log of a failure.
_RUNS = 30
_TAIL_LINES = 20
# How far back the changes reach.
_RECENT = timedelta(hours=24)
# A longer env.toml is cut.
_LONGEST_EDF_BYTES = 16_384


class ImageRun(Struct, frozen=True):
    """One run of an image's steps; `durations_s` has the steps that succeeded.

    `size_bytes` is that of the published image; None when the run published none.
    """

    run: str
    began: datetime
    durations_s: tuple[tuple[Step, float], ...]
    size_bytes: int | None = None
    failed: bool = False

    @property
    def duration_s(self) -> float:
        """The total of all steps."""
        return sum(duration_s for _, duration_s in self.durations_s)


class ImageOverview(Struct, frozen=True):
    """An image as in `doit list`, with details.

    `commit` is that of the build, by `builder` on `node`. `bases` are local and registry ones. `built`
    are the runs that had work with the image, the oldest first. `edf` is relative to the checkout, and
    empty when there is no file. `smoke` has the tests that the published image passed. `instead_of` is
    the image ID that a rollback replaced, and empty without a rollback. `recipe` says where files are
    that are not in the directory of the image.
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
    manifest_summary: ManifestSummary | None = None
    builder: str = ""
    node: str = ""
    recipe: tuple[tuple[str, str], ...] = ()


class FailedImage(Struct, frozen=True):
    """A current failure, or one of the last run whose cause was changed since.

    `step` is None where a project cannot be built at all. `tail` holds the last lines of the log, as
    they are. `waiting` are the images that are not up to date and are built on this one.
    """

    image: str
    state: State
    message: str
    step: Step | None = None
    failed_at: str = ""
    log: str = ""
    tail: tuple[bytes, ...] = ()
    waiting: tuple[str, ...] = ()


class RecentChange(Struct, frozen=True):
    """What the runs since yesterday did with an image: the newest step that published it, or failed.

    `reason` says why that step ran. `size_change_bytes` compares with the size before; None where that
    is not known.
    """

    image: str
    outcome: Outcome
    at: str
    reason: str = ""
    is_same: bool = False
    size_change_bytes: int | None = None


class Overview(Struct, frozen=True):
    """The state of a checkout at `made_at`, which has a time zone.

    `tries` are those of the newest run that had work, in the order of their starts. `commit` is empty
    outside git. `problems` are about directories that cannot be images. `recent` are changes of the last
    24 hours, the newest first. `store_bytes` is the size of the image store.
    """

    root: Path
    made_at: datetime
    images: tuple[ImageOverview, ...] = ()
    graph_view: GraphView = field(default_factory=lambda: GraphView((), ()))
    tries: tuple[HistoryEntry, ...] = ()
    failures: tuple[FailedImage, ...] = ()
    bases: tuple[RegistryBase, ...] = ()
    problems: tuple[str, ...] = ()
    branch: str = ""
    commit: str = ""
    changes: int = 0
    recent: tuple[RecentChange, ...] = ()
    store_bytes: int = 0


def overview(checkout: Checkout, judge: Judge) -> Overview:
    """Judge every image and read the history."""
    graph = checkout.graph
    statuses = [judge.image(name) for name in (*graph.images, *graph.broken)]
    past = list(history.entries(checkout.history))
    last = tuple(entry for entry in reversed(past) if entry.run == past[0].run)
    built = by_image(past)
    states = {
        status.name: (status.state, status.reasons, judge.rolled_back(status.name))
        for status in statuses
    }
    aliases = graph.aliases_of()
    head, changes = _git(checkout.root)
    view, now = graph_view(graph, states), datetime.now().astimezone()
    return Overview(
        root=checkout.root,
        made_at=now,
        images=tuple(
            _image(
                checkout,
                status,
                tuple(aliases.get(status.name, ())),
                built.get(status.name, ()),
            )
            for status in statuses
        ),
        graph_view=view,
        tries=last,
        failures=tuple(
            replace(failure, waiting=_waiting(view, failure.image))
            for failure in _failures(checkout, statuses, last)
        ),
        bases=_bases(checkout),
        problems=tuple(map(str, graph.problems)),
        branch=head.branch,
        commit=head.commit,
        changes=changes,
        recent=tuple(recent_changes(past, now)),
        store_bytes=checkout.store.size_bytes(),
    )


def recent_changes(entries: Iterable[HistoryEntry], now: datetime) -> Iterator[RecentChange]:
    """Yield the newest change of each image in the 24 hours before `now`; entries come newest first."""
    published: dict[str, list[HistoryEntry]] = defaultdict(list)
    newest: dict[str, HistoryEntry] = {}
    for entry in entries:
        is_published = entry.outcome is Outcome.DONE and entry.step is Step.ENROOT
        if is_published:
            published[entry.image].append(entry)
        if (is_published or entry.outcome is Outcome.FAILED) and entry.began >= now - _RECENT:
            newest.setdefault(entry.image, entry)
    for image, entry in newest.items():
        if entry.outcome is Outcome.FAILED:
            yield RecentChange(image, entry.outcome, entry.started_at, entry.reason)
            continue
        sizes = [past.size_bytes for past in published[image][:2] if past.size_bytes is not None]
        change = sizes[0] - sizes[1] if len(sizes) == 2 else None
        is_same = bool(entry.image_id) and entry.image_id == entry.image_id_before
        yield RecentChange(image, entry.outcome, entry.started_at, entry.reason, is_same, change)


def _waiting(view: GraphView, name: str) -> tuple[str, ...]:
    """Return the images built on this one, directly or not, that are neither fresh nor failed."""
    states = {node.name: node.state for node in view.nodes}
    reached, todo = {name}, [name]
    while todo:
        above = todo.pop()
        for edge in view.edges:
            if edge.above == above and edge.kind is EdgeKind.BASE and edge.below not in reached:
                reached.add(edge.below)
                todo.append(edge.below)
    ready = (State.FRESH, State.FAILED)
    return tuple(sorted(image for image in reached - {name} if states[image] not in ready))


def by_image(entries: Iterable[HistoryEntry]) -> dict[str, tuple[ImageRun, ...]]:
    """Return the newest runs of each image, oldest first, from entries that come newest first."""
    runs: dict[tuple[str, str], list[HistoryEntry]] = defaultdict(list)
    for entry in entries:
        runs[entry.image, entry.run].append(entry)
    runs_of: dict[str, list[ImageRun]] = defaultdict(list)
    for (image, run), tries in runs.items():
        if len(runs_of[image]) == _RUNS:
            continue
        done = [entry for entry in tries if entry.outcome is Outcome.DONE]
        failed = any(entry.outcome is Outcome.FAILED for entry in tries)
        # A run that wrote only env.toml has no times or sizes to compare.
        if not failed and all(entry.step is Step.ENV for entry in done):
            continue
        durations = tuple(
            (step, sum(entry.duration_s for entry in done if entry.step is step))
            for step in Step
            if any(entry.step is step for entry in done)
        )
        size = next((entry.size_bytes for entry in done if entry.step is Step.ENROOT), None)
        runs_of[image].append(ImageRun(run, tries[-1].began, durations, size, failed))
    return {image: tuple(reversed(entry)) for image, entry in runs_of.items()}


def interval(tries: Iterable[HistoryEntry]) -> tuple[datetime, datetime]:
    """Return the time at which the first try was ready, and the time at which the last one ended."""
    spans = [(ready(entry), ended(entry)) for entry in tries]
    return min(begin for begin, _ in spans), max(end for _, end in spans)


def ready(entry: HistoryEntry) -> datetime:
    """Return the time since which a try could have begun."""
    return _moved(entry.began, -entry.queued_s)


def ended(entry: HistoryEntry) -> datetime:
    """Return the time at which a try ended."""
    return _moved(entry.began, entry.duration_s)


def _moved(time: datetime, seconds: float) -> datetime:
    try:
        return time + timedelta(seconds=seconds)
    except OverflowError:
        # A damaged history may hold any number.
        return time


def _image(
    checkout: Checkout,
    status: ImageStatus,
    aliases: tuple[str, ...],
    built: tuple[ImageRun, ...],
) -> ImageOverview:
    graph, name = checkout.graph, status.name
    node = graph.images.get(name) or graph.unbuildable.get(name)
    if node is None:
        return ImageOverview(name, status.state, status.reasons, aliases=aliases, built=built)
    podman, enroot = (checkout.records.get(step, name) for step in (Step.PODMAN, Step.ENROOT))
    edf = _text(node.project.edf)
    instead_of = rolled_back_from(enroot, podman)
    return ImageOverview(
        name,
        status.state,
        status.reasons,
        size_bytes=_size(node.project.artifact),
        built_at=enroot.ended_at if enroot else "",
        commit=podman.commit if podman else "",
        dirty=podman.dirty if podman else False,
        builder=enroot.builder if enroot else "",
        node=enroot.node if enroot else "",
        bases=tuple(dict.fromkeys((*node.bases, *node.remote))),
        aliases=aliases,
        edf=node.project.shown(EDF) if edf is not None else "",
        edf_text=edf or "",
        built=built,
        smoke=tuple(test for test in (enroot.smoke if enroot else ()) if math.isfinite(test.duration_s)),
        instead_of=instead_of,
        manifest_summary=manifest_summary(checkout, name, instead_of),
        recipe=tuple(recipe_text.facts(node)),
    )


def _bases(checkout: Checkout) -> tuple[RegistryBase, ...]:
    # Every image that needs a pin has the error as its reason already.
    try:
        return registry_bases(checkout.graph, checkout.pins.read())
    except RcError:
        return ()


def _failures(
    checkout: Checkout, statuses: list[ImageStatus], last: tuple[HistoryEntry, ...]
) -> Iterable[FailedImage]:
    reported = set()
    # The images of a cycle share one error.
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
        step = next(
            (
                failed_step
                for failed_step in Step
                if checkout.records.failure(failed_step, name) == failure
            ),
            None,
        )
        reported.add((name, step))
        tail = _tail(checkout, failure.log)
        yield FailedImage(
            name, status.state, failure.message, step, failure.failed_at, failure.log, tail
        )
    states = {status.name: status.state for status in statuses}
    for entry in last:
        if entry.outcome is not Outcome.FAILED or (entry.image, entry.step) in reported:
            continue
        if entry.image in states:
            tail = _tail(checkout, entry.log)
            state, at = states[entry.image], entry.started_at
            yield FailedImage(entry.image, state, "", entry.step, at, entry.log, tail)


def _tail(checkout: Checkout, log: str) -> tuple[bytes, ...]:
    """Return the end of a log. A path from a damaged record outside of the logs is not read."""
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
    # An adopted image may be in a directory that we may not read.
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
