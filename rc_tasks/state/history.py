"""History of runs: one file per run in `.rc/history`, with a JSON line for each step that ended.

A line is appended by a single write, so that the threads of a run do not mix their lines. Readers skip
the incomplete last line of a killed run. `renames.jsonl` has a line for each project that got another
name: readers give earlier steps the new name.
"""

import contextlib
import functools
import heapq
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from rc_tasks.state.disk import reading
from rc_tasks.state.records.records import Record, Step, Task
from rc_tasks.util.json_decode import Seconds, Size, check_times, parse

_SUFFIX = ".jsonl"
# `trim` removes it once all runs before the last rename are gone, too.
_RENAMES = f"renames{_SUFFIX}"


class Outcome(StrEnum):
    """How an attempt at a step ended; `retried`: something else failed, so that it was tried again."""

    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    RETRIED = "retried"


class HistoryEntry(Struct, frozen=True):
    """One attempt at a step. `queued_s` is the time from ready to `started_at` (UTC, ISO 8601).

    `image_id` is empty where no image was made or published. `size_bytes` is that of the image, for
    `enroot` that of image.sqsh. `log` is relative to the checkout. `log` and `node` are empty when
    nothing was started. `error` is the first line of the error.
    """

    run: str
    image: str
    step: Step
    outcome: Outcome
    started_at: str
    duration_s: Seconds
    queued_s: Seconds
    node: str = ""
    job_id: str = ""
    image_id_before: str = ""
    image_id: str = ""
    size_bytes: Size | None = None
    commit: str = ""
    dirty: bool = False
    reason: str = ""
    log: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        check_times(self.started_at)

    @property
    def task(self) -> Task:
        """The step."""
        return Task(self.step, self.image)

    @property
    def began(self) -> datetime:
        """`started_at` as a time."""
        return datetime.fromisoformat(self.started_at)

    def made(self, record: Record | None) -> "HistoryEntry":
        """Return the entry with the image ID, size and commit of the step's record."""
        if record is None:
            return self
        output = record.artifact or record.facts
        return replace(
            self,
            image_id=image_id(record),
            size_bytes=output.size_bytes if output is not None else None,
            commit=record.commit,
            dirty=record.dirty,
        )


class Rename(Struct, frozen=True):
    """An image that got another name `at` a time (UTC, ISO 8601)."""

    old: str
    new: str
    at: str

    def __post_init__(self) -> None:
        check_times(self.at)

    def applied(self, entry: HistoryEntry) -> HistoryEntry:
        """Return an entry with the new name, if the image was built under the old one."""
        if entry.image != self.old or entry.began > datetime.fromisoformat(self.at):
            return entry
        return replace(entry, image=self.new, log=entry.log.replace(f"/{self.old}/", f"/{self.new}/", 1))


class RunHistory(Struct):
    """The history of one run, to be written."""

    directory: Path
    # Two runs may start in one millisecond, and have the same PID on two nodes or in two namespaces.
    id: str = field(
        default_factory=lambda: f"{stamp(datetime.now(UTC))}.{int.from_bytes(os.urandom(4))}"
    )
    _torn: bool = False

    def append(self, entry: HistoryEntry) -> None:
        """Append a line; a failure to write it must not fail the step."""
        line = json.dumps(to_builtins(entry)).encode() + b"\n"
        with contextlib.suppress(OSError):
            descriptor = _open(self.directory / f"{self.id}{_SUFFIX}")
            try:
                # A full disk may take half a line, which must not spoil the next one.
                whole = b"\n" + line if self._torn else line
                self._torn = True
                self._torn = os.write(descriptor, whole) != len(whole)
            finally:
                os.close(descriptor)


def put_rename(directory: Path, rename: Rename) -> None:
    """Note another name of an image, once. Raise OSError."""
    if rename not in _renames(directory):
        descriptor = _open(directory / _RENAMES)
        try:
            # The line before may be incomplete.
            os.write(descriptor, b"\n" + json.dumps(to_builtins(rename)).encode() + b"\n")
        finally:
            os.close(descriptor)


def entries(directory: Path) -> Iterator[HistoryEntry]:
    """Yield each step of each run, the latest start first; files are read as needed.

    Raise OSError when a file exists and cannot be read.
    """
    files = sorted(_files(directory), key=lambda file: -file[1])
    renames = _renames(directory)
    waiting: list[tuple[float, int, HistoryEntry]] = []
    count = 0
    for path, written_s in files:
        # All steps in this file and in those after it began before its last write.
        while waiting and -waiting[0][0] >= written_s:
            yield heapq.heappop(waiting)[2]
        for written in _read(path):
            entry = functools.reduce(lambda entry, rename: rename.applied(entry), renames, written)
            count += 1
            heapq.heappush(waiting, (-entry.began.timestamp(), -count, entry))
    while waiting:
        yield heapq.heappop(waiting)[2]


def trim(directory: Path, days: int, suffix: str = _SUFFIX) -> None:
    """Remove the files of runs that were last written more than `days` ago, where permitted."""
    oldest = datetime.now(UTC) - timedelta(days=days)
    with contextlib.suppress(OSError):
        for path, written_s in _files(directory, suffix):
            if written_s < oldest.timestamp():
                with contextlib.suppress(OSError):
                    path.unlink()


def image_id(record: Record | None) -> str:
    """Return the ID of the image that a step made or published; empty for a step that does neither."""
    if record is None:
        return ""
    return record.facts.image_id if record.facts is not None else record.inputs.get("image", "")


def stamp(time: datetime) -> str:
    """Format a UTC time for file names: with milliseconds, and without colons."""
    return time.strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3] + "Z"


def _files(directory: Path, suffix: str = _SUFFIX) -> list[tuple[Path, float]]:
    """Return the files of all runs, with the times of their last writes."""
    files = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as listing:
        for entry in listing:
            # Another run may be trimming.
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False):
                    files.append((Path(entry.path), entry.stat().st_mtime))
    return files


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _renames(directory: Path) -> tuple[Rename, ...]:
    lines = (reading.content(directory / _RENAMES) or b"").split(b"\n")
    return tuple(rename for line in lines if (rename := parse(Rename, line)) is not None)


def _read(path: Path) -> Iterator[HistoryEntry]:
    for line in (reading.content(path) or b"").split(b"\n"):
        # It may be incomplete, damaged, or of a later version.
        entry = parse(HistoryEntry, line)
        if entry is not None:
            yield entry
