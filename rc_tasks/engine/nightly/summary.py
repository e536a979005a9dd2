"""Summary of a nightly run: gathered from the history and the current checkout, and as JSON."""

import contextlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from msgspec import DecodeError, Struct, convert, to_builtins

from rc_tasks.engine.run.diagnosis import diagnose
from rc_tasks.engine.session import Session
from rc_tasks.state import history
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import State
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.util.json_decode import check_times, load
from rc_tasks.util.safe_read import read_bytes

SCHEMA = 1
# The clocks of nodes differ.
_SKEW = timedelta(minutes=5)


class NightlyEnding(StrEnum):
    """How the run of a job ended.

    `time`: its job's time was over, or too little was left to start a step. `cancelled`: by scancel or
    preemption. `refused`: nothing was run.
    """

    FINISHED = "finished"
    TIME = "time"
    CANCELLED = "cancelled"
    REFUSED = "refused"


class JobStart(Struct, frozen=True):
    """A job of a nightly run at its start; times are UTC, ISO 8601.

    `after` is the job whose time ran out before this one. `commit_before` is the commit before the
    pull; both are empty outside git. `error` is why it was refused.
    """

    job_id: str
    started_at: str
    after: str = ""
    commit_before: str = ""
    commit: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        check_times(self.started_at)


class BuiltImage(Struct, frozen=True):
    """An image that was built; `duration_s` is that of its steps."""

    name: str
    duration_s: float
    size_bytes: int | None


class FailedStep(Struct, frozen=True):
    """A step that failed; `step` and `log` are empty when the project itself is wrong."""

    name: str
    step: str
    error: str
    last_lines: tuple[str, ...] = ()
    log: str = ""


class UntriedImage(Struct, frozen=True):
    """An image that was left out because a base failed."""

    name: str
    because_of: str


class RemainingImage(Struct, frozen=True):
    """An image that is still to be built, and why."""

    name: str
    state: State
    reasons: tuple[str, ...]


class Summary(Struct, frozen=True):
    """The result of one nightly run: of the job that ends now, and of the job that it continues.

    `images` is how many there are, `fresh` how many are fresh now. `log` and `report` are paths in the
    checkout; `resubmitted_as` is the job that follows. `status` is doit's exit status.
    """

    root: str
    begun: JobStart
    ended_at: str
    ending: NightlyEnding
    status: int
    nodes: tuple[str, ...]
    images: int
    fresh: int
    built: tuple[BuiltImage, ...]
    env_only: tuple[str, ...]
    adopted: tuple[str, ...]
    failed: tuple[FailedStep, ...]
    not_tried: tuple[UntriedImage, ...]
    left: tuple[RemainingImage, ...]
    log: str = ""
    report: str = ""
    resubmitted_as: str = ""

    @property
    def duration_s(self) -> float:
        """The time from the start of the job to its end."""
        spent = datetime.fromisoformat(self.ended_at) - datetime.fromisoformat(self.begun.started_at)
        return max(0.0, spent.total_seconds())

    @property
    def is_good(self) -> bool:
        """Whether nothing failed, and another job continues with the remaining images."""
        stopped = self.ending in {NightlyEnding.CANCELLED, NightlyEnding.REFUSED}
        unfinished = (self.left or self.status) and not self.resubmitted_as
        return not (self.failed or stopped or unfinished)


def as_json(summary: Summary, subject: str, text: str) -> dict[str, Any]:
    """Return the summary for programs; docs/reference/nightly-summary.md describes the keys."""
    document = to_builtins(summary)
    begun = document.pop("begun")
    empty = ("after", "commit_before", "commit", "error", "log", "report", "resubmitted_as")
    flat = {"schema": SCHEMA, **begun, **document}
    return {
        **{key: value or None if key in empty else value for key, value in flat.items()},
        "duration_s": summary.duration_s,
        "subject": subject,
        "text": text,
    }


def gather(
    current: Session,
    begun: JobStart,
    first: JobStart,
    *,
    ending: str,
    status: int,
    ended_at: str,
    nodes: Iterable[str],
) -> Summary:
    """Return the summary of a nightly run. `first` is its first job, often the same one.

    `ending` is the ending that the script saw, perhaps a value of NightlyEnding. `status` is doit's exit
    status. `nodes` are those of the job that ends now.
    """
    entries = _entries(current, begun, first)
    last = {(entry.image, entry.step): entry for entry in entries if entry.outcome != Outcome.RETRIED}
    # A step without a slot does not count as failed: the time or the nodes were missing.
    unplaced = [entry for entry in last.values() if entry.outcome is Outcome.FAILED and not entry.node]
    failed = [
        _failed(current, entry)
        for entry in last.values()
        if entry.outcome is Outcome.FAILED and entry not in unplaced
    ]
    broken = current.checkout.graph.broken
    bad = {failure.name for failure in failed} | broken.keys()
    blocked = _blocked(current, bad)
    statuses = [current.judge.image(name) for name in current.checkout.graph.images]
    stopped = {
        entry.image: "interrupted"
        if entry.outcome is Outcome.INTERRUPTED
        else entry.error or "not started"
        for entry in [
            *(entry for entry in last.values() if entry.outcome is Outcome.INTERRUPTED),
            *unplaced,
        ]
    }
    remaining = [
        RemainingImage(
            status_of.name,
            status_of.state,
            (*((stopped[status_of.name],) if status_of.name in stopped else ()), *status_of.reasons),
        )
        for status_of in statuses
        if status_of.state is not State.FRESH and status_of.name not in {*bad, *blocked}
    ]
    done = [entry for entry in entries if entry.outcome is Outcome.DONE]
    built_names = {entry.image for entry in done if entry.step is not Step.ENV} - bad
    adopted = _adopted(current, first)
    return Summary(
        root=str(current.checkout.root),
        begun=begun,
        ended_at=ended_at,
        ending=_ending(begun, ending, status, unplaced, remaining),
        status=status,
        nodes=tuple(dict.fromkeys([*(entry.node for entry in entries if entry.node), *nodes])),
        images=len(statuses) + len(broken),
        fresh=sum(status_of.state is State.FRESH for status_of in statuses),
        built=tuple(_built(name, done) for name in current.checkout.graph.images if name in built_names),
        env_only=tuple(sorted({entry.image for entry in done} - built_names - bad)),
        adopted=tuple(name for name in adopted if name not in built_names),
        failed=(*failed, *(FailedStep(name, "", str(error)) for name, error in broken.items())),
        not_tried=tuple(UntriedImage(name, base) for name, base in blocked.items()),
        left=tuple(remaining),
    )


def _ending(
    begun: JobStart,
    seen: str,
    status: int,
    unplaced: Iterable[HistoryEntry],
    remaining: Iterable[RemainingImage],
) -> NightlyEnding:
    if begun.error:
        return NightlyEnding.REFUSED
    if seen == NightlyEnding.CANCELLED:
        return NightlyEnding.CANCELLED
    # Another job is of use only if images remain, and a step never started or the time signal stopped
    # the run. A signal after the last step leaves status 0.
    if remaining and (any(unplaced) or (seen == NightlyEnding.TIME and status != 0)):
        return NightlyEnding.TIME
    return NightlyEnding.FINISHED


def _entries(current: Session, begun: JobStart, first: JobStart) -> list[HistoryEntry]:
    """Return the history entries of the jobs of a nightly run, in order."""
    jobs = {begun.job_id, first.job_id}
    since = datetime.fromisoformat(first.started_at) - _SKEW
    of_run = []
    for entry in history.entries(current.checkout.history):
        if entry.began < since:
            # Entries come newest first.
            break
        if entry.job_id in jobs:
            of_run.append(entry)
    return of_run[::-1]


def _built(name: str, done: Iterable[HistoryEntry]) -> BuiltImage:
    mine = [entry for entry in done if entry.image == name]
    sizes = [entry.size_bytes for entry in mine if entry.step is Step.ENROOT]
    return BuiltImage(
        name, round(sum(entry.duration_s for entry in mine), 3), sizes[-1] if sizes else None
    )


def _failed(current: Session, entry: HistoryEntry) -> FailedStep:
    lines: list[str] = []
    if entry.log:
        with contextlib.suppress(OSError):
            log = current.checkout.root / entry.log
            text = diagnose(1, log, StepRequest(str(entry.task))).text
            lines = [line[4:] for line in text.splitlines() if line.startswith("  | ")]
    root = f"{current.checkout.root}/"
    return FailedStep(entry.image, entry.step, entry.error.removeprefix(root), tuple(lines), entry.log)


def _blocked(current: Session, bad: Iterable[str]) -> dict[str, str]:
    """Return the images that cannot be built, each with its nearest bad base."""
    wrong, blocked = set(bad), dict[str, str]()
    # Bases come before the images that are built on them.
    for name, node in current.checkout.graph.images.items():
        causes = [blocked.get(base, base) for base in node.bases if base in wrong or base in blocked]
        if causes and name not in wrong:
            blocked[name] = causes[0]
    return blocked


def _adopted(current: Session, first: JobStart) -> list[str]:
    """Return the images that were adopted from the official checkout since the run began."""
    records, since_ns = (
        current.checkout.records,
        datetime.fromisoformat(first.started_at).timestamp() * 1e9,
    )
    adopted = []
    for name in current.checkout.graph.images:
        record, version = records.get(Step.ENROOT, name), records.version(Step.ENROOT, name)
        if record is not None and record.adopted_from and version is not None and version[1] >= since_ns:
            adopted.append(name)
    return adopted


def load_begun(path: Path) -> JobStart | None:
    """Return the start of a job from its file, which may hold its summary too; None when damaged."""
    try:
        # The summary has null for empty text.
        document = {key: value for key, value in load(read_bytes(path)).items() if value is not None}
        return convert(document, JobStart)
    except (OSError, DecodeError):
        return None
