"""Records of finished and failed steps: one small JSON file per step, written when the step ends."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self

from msgspec import DecodeError, Struct, convert, field, to_builtins
from msgspec.structs import replace

from rc_tasks.model.config.settings import Launcher
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.inputs import BASE, recorded
from rc_tasks.util import json_decode
from rc_tasks.util.json_decode import Seconds, Size, check_times, encode, load

SCHEMA = 1
# The end of the name of a mark of `doit ignore`.
_IGNORED = ".ignore"

# Inode and modification time of a record's file: they change whenever it is written.
Version = tuple[int, int]


class Step(StrEnum):
    """The steps of an image, in order; each is a doit task `STEP:NAME`."""

    PODMAN = "podman"
    ENROOT = "enroot"
    ENV = "env"


class Task(NamedTuple):
    """A step of an image. As text it is `STEP:NAME`, the name of its doit task and of its record."""

    step: Step
    name: str

    def __str__(self) -> str:
        return f"{self.step}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the task of a text such as `podman:reasoning:2025.1`, or None for any other text."""
        step, _, name = text.partition(":")
        return cls(_STEPS[step], name) if name and step in _STEPS else None


# A look-up here is faster than Step(text), and thousands of names are parsed at every start.
_STEPS = {str(step): step for step in Step}


class Facts(Struct, frozen=True):
    """Properties of a built image that EDFs and listings need.

    `sets_entrypoint`: a Dockerfile of this checkout, its own or a base's, has an ENTRYPOINT.
    `entrypoint` says what that ENTRYPOINT does.
    """

    image_id: str
    architecture: str
    size_bytes: Size
    workdir: str
    sets_entrypoint: bool
    entrypoint: Behaviour = Behaviour.NOT_TRIED


class Artifact(Struct, frozen=True):
    """A published file as it was when published; `sample` is from `Digests.sample`.

    `blocks_digest` is from the function `blocks_digest`, of all bytes; records of earlier versions have
    an empty one.
    """

    size_bytes: Size
    mtime_ns: Size
    sample: str
    blocks_digest: str = ""


class Passed(Struct, frozen=True):
    """A smoke test that a published image has passed; `launcher` started the container for it."""

    argv: tuple[str, ...]
    launcher: str
    duration_s: float


class Record(Struct, frozen=True):
    """A finished step. Times are UTC, ISO 8601; `inputs` are digests by part.

    `commit` is empty outside git. `dirty` says that the project's directory differed from the commit.
    `tools` holds versions by program. `bases` holds the digests of a built image's registry bases.
    `smoke` holds the tests that a published image has passed.
    `adopted_from` is the official checkout of an adopted image; empty for an image built here.
    `instead_of` and `generation` belong to rollbacks, see `rollback.py`.
    """

    inputs: Mapping[str, str]
    started_at: str
    ended_at: str
    duration_s: Seconds
    node: str
    job_id: str = ""
    facts: Facts | None = None
    artifact: Artifact | None = None
    builder: str = ""
    commit: str = ""
    dirty: bool = False
    tools: Mapping[str, str] = field(default_factory=dict)
    adopted_from: str = ""
    bases: Mapping[str, str] = field(default_factory=dict)
    smoke: tuple[Passed, ...] = ()
    instead_of: str = ""
    generation: Size = 0

    def __post_init__(self) -> None:
        check_times(self.started_at, self.ended_at)

    def passed(self, launcher: Launcher) -> set[tuple[str, ...]]:
        """Return the smoke tests that need not run again when the settings say `launcher`."""
        # Launchers start a container differently. The official checkout chooses its own launcher.
        all_count = launcher is Launcher.AUTO or self.adopted_from
        return {test.argv for test in self.smoke if all_count or test.launcher == launcher}


class Failure(Struct, frozen=True):
    """A step that failed: from which inputs, why, and where the log is (relative to the checkout)."""

    inputs: Mapping[str, str]
    failed_at: str
    message: str
    log: str


class _Unread:
    """Marks a record that was not read yet; None marks a missing record."""


_UNREAD = _Unread()


class Records(Struct):
    """The records of a checkout, in `.rc/state`."""

    directory: Path
    _seen: dict[Task, Record | None] = field(default_factory=dict)
    _versions: dict[Task, Version | None] = field(default_factory=dict)

    def get(self, step: Step, name: str) -> Record | None:
        """Return the record of a step, or None when the step never succeeded or its file is damaged.

        Raise OSError when the file exists and cannot be read.
        """
        task = Task(step, name)
        # Look it up once: another thread may call `reread` in between.
        record = self._seen.get(task, _UNREAD)
        if isinstance(record, _Unread):
            # Take the version first: a record written meanwhile must not count as the one that was read.
            self._versions[task] = self.version(step, name)
            record = self._seen[task] = self._read(task)
        return record

    def put(self, step: Step, name: str, record: Record) -> None:
        """Write the record of a step that succeeded, whole or not at all, and remove its failure."""
        task = Task(step, name)
        write_atomically(self._path(task), as_text(record, task))
        self._versions[task] = None
        self._seen[task] = record
        self._remove(self._failure_path(task))

    def version_read(self, step: Step, name: str) -> Version | None:
        """Return the version of the record that `get` has read, or None when it read none."""
        return self._versions.get(Task(step, name))

    def version(self, step: Step, name: str) -> Version | None:
        """Return a value that changes whenever the record is written, even with the same content."""
        # A string is faster than a Path, and every start asks for thousands of versions.
        status = reading.status(f"{self.directory}/{step}:{name}.json")
        return (status.st_ino, status.st_mtime_ns) if status is not None else None

    def forget(self, step: Step, name: str) -> None:
        """Remove the record and the failure of a step."""
        task = Task(step, name)
        self._seen.pop(task, None)
        self._remove(self._path(task))
        self._remove(self._failure_path(task))

    def forget_all(self, name: str) -> None:
        """Remove the records and failures of an image, and its marks of `doit ignore`."""
        for step in Step:
            self.forget(step, name)
        for task in self._ignored(name):
            self.ignore_no_longer(task)

    def ignored(self) -> frozenset[str]:
        """Return the names of the tasks that `doit ignore` leaves out of all runs."""
        names = reading.names(self.directory)
        return frozenset(name.removesuffix(_IGNORED) for name in names if name.endswith(_IGNORED))

    def ignore(self, task: str) -> None:
        """Leave a task out of all runs."""
        write_atomically(self.directory / f"{task}{_IGNORED}", "")

    def ignore_no_longer(self, task: str) -> None:
        """Take a task up again; its record stays."""
        self._remove(self.directory / f"{task}{_IGNORED}")

    def files(self, step: Step, name: str) -> tuple[Path, ...]:
        """Return the files of a step's record and failure."""
        task = Task(step, name)
        return self._path(task), self._failure_path(task)

    def reread(self, step: Step, name: str) -> None:
        """Read the record again at the next `get`, as another process may have written it."""
        self._seen.pop(Task(step, name), None)

    def failure(self, step: Step, name: str) -> Failure | None:
        """Return how the step failed since its last success, or None."""
        failure = json_decode.parse(Failure, reading.content(self._failure_path(Task(step, name))))
        return replace(failure, inputs=recorded(failure.inputs)) if failure is not None else None

    def put_failure(self, step: Step, name: str, failure: Failure) -> None:
        """Write the failure of a step; the record of its last success stays."""
        write_atomically(self._failure_path(Task(step, name)), encode(failure))

    def rename(self, old: str, new: str, log: Callable[[str], str]) -> None:
        """Rename the records, failures and marks of `doit ignore` of an image; go on after a kill.

        `log` returns the new path of a log.
        """
        for step in Step:
            failure, record = self.failure(step, old), self.get(step, old)
            if record is not None:
                self.put(step, new, record)
            if failure is not None:
                self.put_failure(step, new, replace(failure, log=log(failure.log)))
            self.forget(step, old)
        for task in self._ignored(old):
            self.ignore(f"{task.partition(':')[0]}:{new}")
            self.ignore_no_longer(task)

    def rename_base(self, name: str, old: str, new: str) -> None:
        """Rename a base in the inputs of an image that is built on it."""
        task, parts = Task(Step.PODMAN, name), {BASE + old: BASE + new}
        record, failure = self.get(*task), self.failure(*task)
        if record is not None and BASE + old in record.inputs:
            renamed = replace(record, inputs=_renamed(record.inputs, parts))
            write_atomically(self._path(task), as_text(renamed, task))
            self.reread(*task)
        if failure is not None:
            self.put_failure(*task, replace(failure, inputs=_renamed(failure.inputs, parts)))

    def _ignored(self, name: str) -> list[str]:
        return [task for task in self.ignored() if task.partition(":")[2] == name]

    def _read(self, task: Task) -> Record | None:
        text = reading.content(f"{self.directory}/{task}.json")
        return parse(text, task) if text is not None else None

    def _path(self, task: Task) -> Path:
        return self.directory / f"{task}.json"

    def _failure_path(self, task: Task) -> Path:
        # `.failed.json` would be the record of an image whose name ends in `.failed`.
        return self.directory / f"{task}.failed"

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _renamed(inputs: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    return {parts.get(part, part): value for part, value in inputs.items()}


def as_text(record: Record, task: Task) -> str:
    """Return the content of a task's record file; `parse` reads it."""
    return json.dumps({"schema": SCHEMA, "task": str(task), **to_builtins(record)}, indent=1) + "\n"


def record_digest(record: Record | None) -> str:
    """Return a short digest of a record; each record that a step writes has another one."""
    return hashlib.sha256(repr(record).encode()).hexdigest()[:16]


def parse(text: bytes, task: Task) -> Record | None:
    """Return the record in a task's file, or None when it is damaged or belongs to another task.

    Every value of a returned record has its type, so callers need not check again.
    """
    try:
        document = load(text, SCHEMA)
        record = convert(document, Record)
    except DecodeError:
        return None
    if document.get("task") != str(task):
        return None
    return replace(record, inputs=recorded(record.inputs, record.tools.get("podman", "")))
