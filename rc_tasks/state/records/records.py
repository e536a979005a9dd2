"""Records of finished and failed steps: one small JSON file per step, written when the step ends."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

from rc_tasks.model.config.settings import Launcher
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.inputs import recorded

SCHEMA = 1
_ENDLESS_S = 1e9
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


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a built image that EDFs and listings need.

    `sets_entrypoint`: a Dockerfile of this checkout, its own or a base's, has an ENTRYPOINT.
    `entrypoint` says what that ENTRYPOINT does.
    """

    image_id: str
    architecture: str
    size_bytes: int
    workdir: str
    sets_entrypoint: bool
    entrypoint: Behaviour = Behaviour.NOT_TRIED


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published file as it was when published; `sample` is from `Digests.sample`.

    `blocks_digest` is from the function `blocks_digest`, of all bytes; records of earlier versions have
    an empty one.
    """

    size_bytes: int
    mtime_ns: int
    sample: str
    blocks_digest: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """A smoke test that a published image has passed; `launcher` started the container for it."""

    argv: tuple[str, ...]
    launcher: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """A finished step. Times are UTC, ISO 8601; `inputs` are digests by part.

    `commit` is empty outside git. `dirty` says that the project's directory differed from the commit.
    `tools` holds versions by program. `bases` holds the digests of a built image's registry bases.
    `smoke` holds the tests that a published image has passed.
    `adopted_from` is the official checkout of an adopted image; empty for an image built here.
    `instead_of` is the image ID that a rollback to an older image replaced; empty for the newest image.
    """

    inputs: Mapping[str, str]
    started_at: str
    ended_at: str
    duration_s: float
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

    def passed(self, launcher: Launcher) -> set[tuple[str, ...]]:
        """Return the smoke tests that need not run again when the settings say `launcher`."""
        # Launchers start a container differently. The official checkout chooses its own launcher.
        all_count = launcher is Launcher.AUTO or self.adopted_from
        return {test.argv for test in self.smoke if all_count or test.launcher == launcher}


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that failed: from which inputs, why, and where the log is (relative to the checkout)."""

    inputs: Mapping[str, str]
    failed_at: str
    message: str
    log: str


class _Unread:
    """Marks a record that was not read yet; None marks a missing record."""


_UNREAD = _Unread()


@dataclass(slots=True)
class Records:
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
        text = reading.content(self._failure_path(Task(step, name)))
        if text is None:
            return None
        try:
            document = json.loads(text)
            inputs = {str(part): str(value) for part, value in document["inputs"].items()}
            return Failure(
                recorded(inputs), *(str(document[key]) for key in ("failed_at", "message", "log"))
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def put_failure(self, step: Step, name: str, failure: Failure) -> None:
        """Write the failure of a step; the record of its last success stays."""
        write_atomically(
            self._failure_path(Task(step, name)), json.dumps(asdict(failure), indent=1) + "\n"
        )

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


def as_text(record: Record, task: Task) -> str:
    """Return the content of a task's record file; `parse` reads it."""
    return json.dumps({"schema": SCHEMA, "task": str(task), **asdict(record)}, indent=1) + "\n"


def record_digest(record: Record | None) -> str:
    """Return a short digest of a record; each record that a step writes has another one."""
    return hashlib.sha256(repr(record).encode()).hexdigest()[:16]


def parse(text: bytes, task: Task) -> Record | None:
    """Return the record in a task's file, or None when it is damaged or belongs to another task.

    Every value of a returned record has its type, so callers need not check again.
    """
    try:
        document = json.loads(text)
        if document["schema"] != SCHEMA or document["task"] != str(task):
            return None
        facts, artifact = document["facts"], document["artifact"]
        record = Record(
            inputs=recorded(document["inputs"], dict(document.get("tools", {})).get("podman", "")),
            started_at=document["started_at"],
            ended_at=document["ended_at"],
            duration_s=float(document["duration_s"]),
            node=document["node"],
            job_id=document["job_id"],
            builder=document.get("builder", ""),
            commit=document.get("commit", ""),
            dirty=document.get("dirty", False),
            tools=dict(document.get("tools", {})),
            adopted_from=document.get("adopted_from", ""),
            bases=dict(document.get("bases", {})),
            smoke=tuple(_passed(test) for test in document.get("smoke", ())),
            instead_of=document.get("instead_of", ""),
            facts=_facts(facts) if facts else None,
            artifact=_artifact(artifact) if artifact else None,
        )
        return record if _is_sound(record) else None
    # JSON may nest too deeply (RecursionError) or hold a huge number (OverflowError).
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _is_sound(record: Record) -> bool:
    # Check all values at once: every start reads thousands of records, and one may have hundreds of
    # thousands of inputs. Keys are strings in JSON.
    texts: list[object] = [record.node, record.job_id, record.builder, record.commit]
    texts += [record.adopted_from, record.instead_of, *record.tools.values(), *record.bases.values()]
    for passed in record.smoke:
        texts += [*passed.argv, passed.launcher]
    truths, sizes = [record.dirty], list[int]()
    if (facts := record.facts) is not None:
        texts += [facts.image_id, facts.architecture, facts.workdir]
        truths.append(facts.sets_entrypoint)
        sizes.append(facts.size_bytes)
    if (artifact := record.artifact) is not None:
        texts += [artifact.sample, artifact.blocks_digest]
        sizes += [artifact.size_bytes, artifact.mtime_ns]
    return (
        {*map(type, texts), *map(type, record.inputs.values())} == {str}
        and set(map(type, truths)) == {bool}
        and all(type(size) is int and 0 <= size < 1 << 63 for size in sizes)
        and 0 <= record.duration_s < _ENDLESS_S
        and _is_time(record.started_at)
        and _is_time(record.ended_at)
    )


def _is_time(text: str) -> bool:
    """Return whether a text is a time with a zone. Raise ValueError or TypeError when it is no time."""
    time = datetime.fromisoformat(text)
    # The first and the last year do not exist in some time zones.
    return time.tzinfo is not None and 1970 <= time.year < 9999


# Read key by key: additional keys of a later version must not make everything stale.
def _facts(document: dict[str, Any]) -> Facts:
    return Facts(
        image_id=document["image_id"],
        architecture=document["architecture"],
        size_bytes=document["size_bytes"],
        workdir=document["workdir"],
        sets_entrypoint=document["sets_entrypoint"],
        entrypoint=_behaviour(document.get("entrypoint", "")),
    )


def _behaviour(name: str) -> Behaviour:
    return Behaviour(name) if name in set(Behaviour) else Behaviour.NOT_TRIED


def _passed(document: dict[str, Any]) -> Passed:
    return Passed(tuple(document["argv"]), document["launcher"], float(document["duration_s"]))


def _artifact(document: dict[str, Any]) -> Artifact:
    sample, blocks_digest = document["sample"], document.get("blocks_digest", "")
    return Artifact(document["size_bytes"], document["mtime_ns"], sample, blocks_digest)
