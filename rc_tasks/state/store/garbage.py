"""Garbage collection of an image store while steps write to it.

Steps on other nodes read and write at the same time. There is no lock: a lock that a whole checkout
shares would make every step wait for the slowest. Instead:

- Images and blobs that were written, loaded or replaced within a day stay. So a step has a day between
  the check for an image and the record that refers to it, of which it needs seconds. A clone has a day
  to notice that the official image was replaced.
- `doit gc --now` does without that day: only what was used since the oldest running step began stays. So
  the times of the images are read first (`last_used`), then the locks of steps, and then the references.
  A step that began after that touches an image before it relies on it.
- A writer notes the blobs that it relies on before it checks for them (`Store.wanted`).
- Garbage is first renamed out of its place. Then the store is read again, and what was touched or noted
  meanwhile is put back. A writer that checked in between has missed it, and writes it again.

A blob goes, too, once there is a squashed layer from which it can be made again.

A link to a blob of another store is removed as a link. Files whose names are not those of images or
blobs stay.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from rc_tasks.state.disk import reading
from rc_tasks.state.store.layer_files import LAYERS
from rc_tasks.state.store.store import Store

REST_S = 86_400.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IMAGES = "images"
_BLOBS = "blobs/sha256"
# A layer is a blob, and a directory of the same name here once it was squashed.
_PARTS = (_BLOBS, LAYERS)


class Unneeded(Struct, frozen=True):
    """Images that nothing refers to, each with its time of `last_used`, and parts of no other image.

    `blobs` are blobs and squashed layers.
    """

    images: Mapping[Path, int]
    blobs: tuple[Path, ...]


def last_used(store: Store) -> dict[Path, int]:
    """Return all images of a store, with the time at which each was last used, in ns since 1970."""
    times_ns = {}
    for path in _entries(store.directory / _IMAGES):
        with contextlib.suppress(OSError):
            times_ns[path] = os.lstat(path).st_mtime_ns
    return times_ns


def unneeded(
    store: Store, used_ns: Mapping[Path, int], referenced: Collection[str], before_s: float
) -> Unneeded:
    """Return what may be removed of the images and blobs that were last used before a time.

    `used_ns` is what `last_used` returned before the references were read; `referenced` are the IDs of
    all needed images.
    """
    noted = store.wanted()
    images = {
        path: time_ns
        for path, time_ns in used_ns.items()
        if path.name not in referenced and path.name not in noted and time_ns < before_s * 1e9
    }
    needed = noted | _blobs_of(set(_entries(store.directory / _IMAGES)) - images.keys())
    blobs = [
        path
        for part in _PARTS
        for path in _entries(store.directory / part)
        if (path.name not in needed or _is_superseded(store, path)) and _is_older(path, before_s)
    ]
    return Unneeded(images, tuple(blobs))


def remove(store: Store, garbage: Unneeded) -> list[Path]:
    """Remove what is still not needed; return the removed paths."""
    removed = []
    with store.scratch() as trash:
        taken = _take_out(garbage.images, trash / "images")
        for place, path in taken.items():
            if _is_untouched(path, garbage.images[place]):
                removed.append(place)
            else:
                _put_back(path, place)
        taken = _take_out(garbage.blobs, trash / "blobs")
        # Keep this order: a writer puts its image in place before it removes its note.
        noted = store.wanted()
        needed = noted | _blobs_of(_entries(store.directory / _IMAGES))
        for place, path in taken.items():
            if place.name in needed and not _is_superseded(store, place):
                _put_back(path, place)
            else:
                removed.append(place)
    return removed


def foreign(store: Store) -> list[Path]:
    """Return files that are neither images nor blobs, or the parts of the store that are symlinks."""
    linked = linked_parts(store)
    if linked:
        return linked
    return [
        place / name
        for place in (store.directory / part for part in (_IMAGES, *_PARTS))
        for name in reading.names(place)
        if not _DIGEST.fullmatch(name)
    ]


def linked_parts(store: Store) -> list[Path]:
    """Return the directories of a store that are symlinks, which another checkout may share."""
    parts = (store.directory, *(store.directory / part for part in (_IMAGES, "blobs", *_PARTS)))
    return [part for part in parts if part.is_symlink()]


def _take_out(places: Iterable[Path], trash: Path) -> dict[Path, Path]:
    trash.mkdir()
    taken = {}
    for place in places:
        # It may be gone, or belong to another member.
        with contextlib.suppress(OSError):
            # A blob and a squashed layer have the same name.
            path = trash / f"{place.parent.name}.{place.name}"
            os.rename(place, path)
            taken[place] = path
    return taken


def _is_superseded(store: Store, path: Path) -> bool:
    """Return whether a path is that of a blob that can be made again from a squashed layer."""
    return path.parent.name != LAYERS and store.layer(path.name).archive_bytes() > 0


def _put_back(path: Path, place: Path) -> None:
    try:
        os.rename(path, place)
    except OSError:
        # It was written again meanwhile.
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _blobs_of(views: Iterable[Path]) -> set[str]:
    # A view has a link for each blob, which remains when its manifest is damaged.
    return {name for view in views for name in reading.names(view) if _DIGEST.fullmatch(name)}


def _is_older(path: Path, before_s: float) -> bool:
    try:
        return os.lstat(path).st_mtime < before_s
    except OSError:
        return False


def _is_untouched(path: Path, time_ns: int) -> bool:
    try:
        return os.lstat(path).st_mtime_ns == time_ns
    except OSError:
        return False


def _entries(directory: Path) -> list[Path]:
    return [directory / name for name in reading.names(directory) if _DIGEST.fullmatch(name)]
