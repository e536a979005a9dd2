"""What each step made, and from what: one small JSON file per step, written the moment it ends."""

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

# What is another whenever a record is written: its inode and time.
Version = tuple[int, int]


class Step(StrEnum):
    """The steps of an image, in order; each is a doit task `STEP:NAME`."""

    PODMAN = "podman"
    ENROOT = "enroot"
    ENV = "env"


class Task(NamedTuple):
    """A step of an image. As text, `STEP:NAME`: the name of its doit task and of its record's file."""

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
    """What an EDF and a listing need to know of a built image.

    `sets_entrypoint`: a Dockerfile of this checkout, its own or a base's, has an ENTRYPOINT;
    `entrypoint` is what that does.
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

    `blocks_digest` is from `blocks_digest`, of all bytes; empty when it was published before that was
    kept.
    """

    size_bytes: int
    mtime_ns: int
    sample: str
    blocks_digest: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """A smoke test that a published image has passed, and what started the container for it."""

    argv: tuple[str, ...]
    launcher: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """A finished step. Times are UTC, ISO 8601; `inputs` are digests by part.

    `commit` is empty outside git, `dirty` says that the project's directory differed from it;
    `tools` holds versions by program; `bases` the digests of a built image's registry bases, and `smoke`
    what a published image has passed.
    `adopted_from`: the official checkout whose image this is; empty for one that was built here.
    `instead_of`: an older image was put back in place of this image ID; empty for the newest.
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
        """The smoke tests that need not be run again where `launcher` is what the settings say."""
        # Another one starts a container otherwise. Where the official checkout tests is its affair.
        every = launcher is Launcher.AUTO or self.adopted_from
        return {each.argv for each in self.smoke if every or each.launcher == launcher}


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that failed: from which inputs, why, and where the log is (relative to the checkout)."""

    inputs: Mapping[str, str]
    failed_at: str
    message: str
    log: str


class _Unread:
    """A record that was not looked for yet; None is one that is not there."""


_UNREAD = _Unread()


@dataclass(slots=True)
class Records:
    """The records of a checkout, in `.rc/state`."""

    directory: Path
    _seen: dict[Task, Record | None] = field(default_factory=dict)
    _versions: dict[Task, Version | None] = field(default_factory=dict)

    def get(self, step: Step, name: str) -> Record | None:
        """The record of a step, or None when it never ended well; a damaged file counts as none.

        Raises OSError when it is there and cannot be read.
        """
        task = Task(step, name)
        # One look-up: another thread may make us `reread` in between.
        found = self._seen.get(task, _UNREAD)
        if isinstance(found, _Unread):
            # Before it is read: what is written meanwhile must not pass for what was read.
            self._versions[task] = self.version(step, name)
            found = self._seen[task] = self._read(task)
        return found

    def put(self, step: Step, name: str, record: Record) -> None:
        """Write down that a step is done; nothing before it is lost when this is interrupted."""
        task = Task(step, name)
        write_atomically(self._path(task), as_text(record, task))
        self._versions[task] = None
        self._seen[task] = record
        self._remove(self._failure_path(task))

    def version_read(self, step: Step, name: str) -> Version | None:
        """The version of what `get` has read, or None when it read none."""
        return self._versions.get(Task(step, name))

    def version(self, step: Step, name: str) -> Version | None:
        """Something that is another whenever the record has been written, though it says the same."""
        # As a string: thousands are asked for at every start.
        status = reading.status(f"{self.directory}/{step}:{name}.json")
        return (status.st_ino, status.st_mtime_ns) if status is not None else None

    def forget(self, step: Step, name: str) -> None:
        """Remove what is known of a step."""
        task = Task(step, name)
        self._seen.pop(task, None)
        self._remove(self._path(task))
        self._remove(self._failure_path(task))

    def files(self, step: Step, name: str) -> tuple[Path, ...]:
        """Where what is known of a step is written down."""
        task = Task(step, name)
        return self._path(task), self._failure_path(task)

    def reread(self, step: Step, name: str) -> None:
        """Another process may have written: look again at the next `get`."""
        self._seen.pop(Task(step, name), None)

    def failure(self, step: Step, name: str) -> Failure | None:
        """How the step failed since it last ended well, or None."""
        text = reading.content(self._failure_path(Task(step, name)))
        if text is None:
            return None
        try:
            found = json.loads(text)
            inputs = {str(part): str(value) for part, value in found["inputs"].items()}
            return Failure(
                recorded(inputs), *(str(found[key]) for key in ("failed_at", "message", "log"))
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def put_failure(self, step: Step, name: str, failure: Failure) -> None:
        """Write down that a step failed; the record of its last success stays."""
        write_atomically(
            self._failure_path(Task(step, name)), json.dumps(asdict(failure), indent=1) + "\n"
        )

    def _read(self, task: Task) -> Record | None:
        text = reading.content(f"{self.directory}/{task}.json")
        return parse(text, task) if text is not None else None

    def _path(self, task: Task) -> Path:
        return self.directory / f"{task}.json"

    def _failure_path(self, task: Task) -> Path:
        # Not `.failed.json`: that would be the record of an image whose name ends in `.failed`.
        return self.directory / f"{task}.failed"

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def as_text(record: Record, task: Task) -> str:
    """A record as a file of a task's; `parse` reads it."""
    return json.dumps({"schema": SCHEMA, "task": str(task), **asdict(record)}, indent=1) + "\n"


def edition(record: Record | None) -> str:
    """A short digest that tells a record from those of all other endings of its step."""
    return hashlib.sha256(repr(record).encode()).hexdigest()[:16]


def parse(text: bytes, task: Task) -> Record | None:
    """The record in a file of a task's; None when it is damaged or another one's.

    Every value is of its type then: what follows does not look again.
    """
    try:
        found = json.loads(text)
        if found["schema"] != SCHEMA or found["task"] != str(task):
            return None
        facts, artifact = found["facts"], found["artifact"]
        record = Record(
            inputs=recorded(found["inputs"], dict(found.get("tools", {})).get("podman", "")),
            started_at=found["started_at"],
            ended_at=found["ended_at"],
            duration_s=float(found["duration_s"]),
            node=found["node"],
            job_id=found["job_id"],
            builder=found.get("builder", ""),
            commit=found.get("commit", ""),
            dirty=found.get("dirty", False),
            tools=dict(found.get("tools", {})),
            adopted_from=found.get("adopted_from", ""),
            bases=dict(found.get("bases", {})),
            smoke=tuple(_passed(each) for each in found.get("smoke", ())),
            instead_of=found.get("instead_of", ""),
            facts=_facts(facts) if facts else None,
            artifact=_artifact(artifact) if artifact else None,
        )
        return record if _is_sound(record) else None
    # An endless nesting, a number without end: JSON holds more than a record.
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _is_sound(record: Record) -> bool:
    # Few questions of all values at once: thousands of records are read at every start, and one may
    # have hundreds of thousands of inputs. Keys are texts in JSON.
    texts: list[object] = [record.node, record.job_id, record.builder, record.commit]
    texts += [record.adopted_from, record.instead_of, *record.tools.values(), *record.bases.values()]
    for each in record.smoke:
        texts += [*each.argv, each.launcher]
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
    """Whether a text is a time with a zone; raises ValueError, or TypeError, when it is no time."""
    found = datetime.fromisoformat(text)
    # The first and the last year have no time in some time zones.
    return found.tzinfo is not None and 1970 <= found.year < 9999


# Key by key: a later version may write more, and must not make everything stale by that.
def _facts(found: dict[str, Any]) -> Facts:
    return Facts(
        image_id=found["image_id"],
        architecture=found["architecture"],
        size_bytes=found["size_bytes"],
        workdir=found["workdir"],
        sets_entrypoint=found["sets_entrypoint"],
        entrypoint=_behaviour(found.get("entrypoint", "")),
    )


def _behaviour(found: str) -> Behaviour:
    return Behaviour(found) if found in set(Behaviour) else Behaviour.NOT_TRIED


def _passed(found: dict[str, Any]) -> Passed:
    return Passed(tuple(found["argv"]), found["launcher"], float(found["duration_s"]))


def _artifact(found: dict[str, Any]) -> Artifact:
    sample, blocks_digest = found["sample"], found.get("blocks_digest", "")
    return Artifact(found["size_bytes"], found["mtime_ns"], sample, blocks_digest)
