"""Previously published images: kept by hard link, for `doit rollback`.

    .rc/previous/NAME/PUBLISHED.IMAGE/    image.sqsh (another name of the same file), image.json,
                                          record.json (the record of the step that published it)

An entry is made before its image is replaced, and is complete once it has its name. Settings say how
many of the newest entries stay, and how long others stay for running jobs. Where the file system has no
hard links, image.sqsh there is a copy.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import RcError
from rc_tasks.model.config.settings import StoreSettings
from rc_tasks.model.graph.project import ARTIFACT, IMAGE_JSON, Project
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import (
    copy,
    link,
    open_up,
    put_in_place,
    sweep_temporaries,
    temporary_prefix,
)
from rc_tasks.state.disk.renaming import merge_directories, replace_name, rewrite
from rc_tasks.state.history import stamp
from rc_tasks.state.records.digests import sample_digest
from rc_tasks.state.records.records import Artifact, Record, Step, Task, as_text, parse
from rc_tasks.util.json_decode import load

RECORD = "record.json"
_TEMPORARY = "keep"
_ENTRY = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.[0-9a-f]{12}")
_SHORT_ID = 12
_DAY_S = 86_400.0


class Published(Struct, frozen=True):
    """An image that is or was published; `artifact` describes the file at `path` at that time.

    `current`: this image is published now.
    """

    record: Record
    artifact: Artifact
    path: Path
    current: bool

    @property
    def image_id(self) -> str:
        """The ID of the squashed image."""
        return self.record.inputs.get("image", "")

    @property
    def damaged(self) -> bool:
        """Whether the file has changed since its publication; a write to one hard link changes all."""
        return not is_as_published(self.path, self.record)


class Previous(Struct, frozen=True):
    """The kept images of one checkout, in `.rc/previous`."""

    directory: Path

    def keep(self, project: Project, record: Record | None) -> str:
        """Keep the image that is published now; return why that is impossible, or an empty string.

        `record` is that of the step that published it. An adopted image, which belongs to the official
        checkout, and a damaged one are not kept. The caller holds the image's lock.
        """
        path, place = project.artifact, self.directory / project.name
        with contextlib.suppress(OSError):  # `doit gc` reports what stays
            sweep_temporaries(place, _TEMPORARY)
        try:
            if record is None or path.is_symlink() or not is_as_published(path, record):
                return ""
            entry = place / _entry_name(record)
            if _same_file(entry / ARTIFACT, path):
                # Its age as a previous image starts again now.
                os.utime(entry)
                return ""
            place.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(_TEMPORARY), dir=place))
            try:
                open_up(temporary)
                if not link(path, temporary / ARTIFACT):
                    if is_as_published(entry / ARTIFACT, record):
                        os.utime(entry)
                        return ""
                    copy(path, temporary / ARTIFACT)
                image_json = _image_json(project, record)
                (temporary / IMAGE_JSON).write_text(image_json, encoding="utf-8")
                text = as_text(record, _task(project.name))
                (temporary / RECORD).write_text(text, encoding="utf-8")
                # An entry can only be in the way if its file was exchanged by hand.
                shutil.rmtree(entry, ignore_errors=True)
                put_in_place(temporary, entry)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            return f"{error.strerror}: {error.filename2 or error.filename or place}"
        return ""

    def of(self, project: Project, record: Record | None) -> list[Published]:
        """Return all kept images and the published one, the newest first."""
        place, published = self.directory / project.name, project.artifact
        if record is not None and (published.is_symlink() or not is_as_published(published, record)):
            record = None
        images = []
        for name in self.entries(project.name):
            kept, path = _read(place / name, project.name), place / name / ARTIFACT
            if kept is not None and kept.artifact is not None:
                # In a copy of a checkout, the hard links may have become two files.
                same = record is not None and record.artifact == kept.artifact
                current = same or _same_file(path, published)
                images.append(Published(kept, kept.artifact, path, current))
        known = any(image.current for image in images)
        if record is not None and record.artifact is not None and not known:
            images.append(Published(record, record.artifact, published, current=True))
        return sorted(images, key=lambda image: -image.artifact.mtime_ns)

    def entries(self, name: str) -> list[str]:
        """Return the names of an image's entries, the oldest first."""
        return sorted(filter(_ENTRY.fullmatch, reading.names(self.directory / name)))

    def foreign(self, name: str) -> list[Path]:
        """Return the paths among an image's entries that are not entries."""
        place = self.directory / name
        return [
            place / name_there
            for name_there in reading.names(place)
            if not _ENTRY.fullmatch(name_there) and not name_there.startswith(f".{_TEMPORARY}.")
        ]

    def names(self) -> list[str]:
        """Return the names of images with kept ones."""
        names = reading.names(self.directory)
        return [name for name in names if (self.directory / name).is_dir()]

    def rename(self, old: str, new: str) -> None:
        """Give the kept images of an image to its new name; go on after a kill. Raise OSError."""
        merge_directories(self.directory / old, self.directory / new)
        for name in self.entries(new):
            entry = self.directory / new / name
            record = _read(entry, old)
            if record is not None:
                rewrite(entry / RECORD, as_text(record, _task(new)))
            replace_name(entry / IMAGE_JSON, new, indent=2)

    def image_ids(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield the name of each entry of an image with its image ID, as far as that is known."""
        for entry in self.entries(name):
            record = _read(self.directory / name / entry, name)
            yield entry, record.inputs.get("image", "") if record is not None else ""

    def surplus(self, project: Project, keep: StoreSettings, named: Callable[[str], bool]) -> list[Path]:
        """Return the entries beyond the settings, but for those that an EDF names.

        An entry is as old as its last replacement: a job may have started from it just before.
        """
        place = self.directory / project.name
        candidates = []
        for entry in self.entries(project.name):
            # A hard link to the published file costs nothing, and has its record.
            if not _same_file(place / entry / ARTIFACT, project.artifact):
                candidates.append(entry)
        oldest_s = time.time() - keep.previous_days * _DAY_S
        return [
            place / entry
            for entry in candidates[: max(0, len(candidates) - keep.previous)]
            if _mtime_s(place / entry) < oldest_s and not named(entry)
        ]

    def restore_image_json(self, project: Project, record: Record) -> str:
        """Return the image.json of a kept image, or a short one from its record."""
        entry = self.directory / project.name / _entry_name(record)
        text = reading.content(entry / IMAGE_JSON)
        try:
            return text.decode() if text is not None else _little(project, record)
        except ValueError:
            return _little(project, record)


def remove(entry: Path) -> None:
    """Remove an entry: rename it first, so that a half removed one is no entry."""
    trash = Path(tempfile.mkdtemp(prefix=temporary_prefix(_TEMPORARY), dir=entry.parent))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry, trash / entry.name)
    finally:
        shutil.rmtree(trash, ignore_errors=True)


def is_as_published(path: Path, record: Record) -> bool:
    """Return whether a file is the one that a step published. Raise OSError when it cannot be read."""
    published, status = record.artifact, reading.status(path)
    try:
        return (
            published is not None
            and status is not None
            and status.st_size == published.size_bytes
            and (
                status.st_mtime_ns == published.mtime_ns or sample_digest(str(path)) == published.sample
            )
        )
    except FileNotFoundError:
        return False


def _entry_name(record: Record) -> str:
    mtime_ns = record.artifact.mtime_ns if record.artifact is not None else 0
    published = stamp(datetime.fromtimestamp(mtime_ns / 1e9, UTC))
    return f"{published}.{record.inputs.get('image', '')[:_SHORT_ID]}"


def _task(name: str) -> Task:
    return Task(Step.ENROOT, name)


def _read(entry: Path, name: str) -> Record | None:
    text = reading.content(entry / RECORD)
    record = parse(text, _task(name)) if text is not None else None
    return record if record is not None and record.artifact and entry.is_dir() else None


def _image_json(project: Project, record: Record) -> str:
    """Return the image.json beside an image if it describes it, else a short one from the record."""
    text = reading.content(project.image_json)
    with contextlib.suppress(ValueError):
        if load(text).get("image_id") == record.inputs.get("image"):
            return (text or b"").decode()
    return _little(project, record)


def _little(project: Project, record: Record) -> str:
    published = record.artifact
    document = {
        "schema": 1,
        "name": project.name,
        "image_id": record.inputs.get("image"),
        "size_bytes": published.size_bytes if published else None,
        "sample": published.sample if published else None,
        "published_at": record.ended_at,
    }
    if published and published.blocks_digest:
        document["blocks_digest"] = published.blocks_digest
    return json.dumps(document, indent=2) + "\n"


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def _mtime_s(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return time.time()


def put_back(project: Project, target: Published, temporary: Path) -> None:
    """Replace image.sqsh by a kept image, renaming a new link; `temporary` is a free name beside it.

    Raise RcError when the kept file is damaged or gone.
    """
    if target.damaged:
        raise RcError(
            "is not as it was published any more, so it is not put back",
            where=target.path,
            hint=f"doit rollback {project.name} --list shows the others",
        )
    if target.current:
        # rename(2) does nothing where both names are of one file.
        return
    try:
        if not link(target.path, temporary):
            copy(target.path, temporary)
        put_in_place(temporary, project.artifact)
    finally:
        temporary.unlink(missing_ok=True)
