"""What of a store nothing needs any more, and its removal beside steps that write.

Steps on other nodes read and write at the same time, and there is no lock: one that a whole checkout
shares would make every step wait for the slowest. Instead:

- What was written, brought to a node or replaced within a day stays. So a step has a day from the look
  at an image to the record that refers to it, of which it needs seconds; and a clone has a day to notice
  that the official image is another one.
- A writer notes what it relies on before it looks what is there (`Store.wanted`).
- What is to go is renamed out of its place first, then the store is looked at again, and what has been
  wanted meanwhile is put back. A writer that looked in between has missed it, and writes it anew.

A link to a blob of another store is removed as a link. What is no image and no blob by its name is left
alone.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.state.disk import reading
from rc_tasks.state.store.store import Store

REST_S = 86_400.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IMAGES = "images"
_BLOBS = "blobs/sha256"


@dataclass(frozen=True, slots=True)
class Unneeded:
    """Images that nothing refers to, and the blobs that no other image has.

    `young` counts the images that nothing refers to, and which stay for now.
    """

    images: tuple[Path, ...]
    blobs: tuple[Path, ...]
    young: int = 0


def unneeded(store: Store, referenced: Iterable[str], now_s: float) -> Unneeded:
    """What may go of a store, `referenced` being the IDs of all images that are needed."""
    keep = set(referenced)
    views = _entries(store.directory / _IMAGES)
    images = [each for each in views if each.name not in keep and _rests(each, now_s)]
    needed = store.wanted() | _blobs_of(set(views) - set(images))
    blobs = [
        each
        for each in _entries(store.directory / _BLOBS)
        if each.name not in needed and _rests(each, now_s)
    ]
    young = sum(each.name not in keep for each in views) - len(images)
    return Unneeded(tuple(images), tuple(blobs), young)


def remove(store: Store, found: Unneeded, now_s: float) -> list[Path]:
    """Remove what is still not needed; returns what was removed."""
    removed = []
    with store.scratch() as trash:
        taken = _take_out(found.images, trash / "images")
        for place, path in taken.items():
            if _rests(path, now_s):
                removed.append(place)
            else:
                _put_back(path, place)
        taken = _take_out(found.blobs, trash / "blobs")
        # In this order: a writer first puts its image in place, then forgets what it wanted.
        wanted = store.wanted()
        needed = wanted | _blobs_of(_entries(store.directory / _IMAGES))
        for place, path in taken.items():
            if place.name in needed:
                _put_back(path, place)
            else:
                removed.append(place)
    return removed


def foreign(store: Store) -> list[Path]:
    """What lies among images and blobs and is neither, and parts of the store that lie elsewhere."""
    linked = linked_parts(store)
    if linked:
        return linked
    return [
        place / name
        for place in (store.directory / _IMAGES, store.directory / _BLOBS)
        for name in reading.names(place)
        if not _DIGEST.fullmatch(name)
    ]


def linked_parts(store: Store) -> list[Path]:
    """The directories of a store that are symlinks: what is there may be another checkout's too."""
    parts = (store.directory, *(store.directory / part for part in (_IMAGES, "blobs", _BLOBS)))
    return [part for part in parts if part.is_symlink()]


def _take_out(places: Iterable[Path], trash: Path) -> dict[Path, Path]:
    trash.mkdir()
    taken = {}
    for place in places:
        # Gone, or another member's that we may not move.
        with contextlib.suppress(OSError):
            os.rename(place, trash / place.name)
            taken[place] = trash / place.name
    return taken


def _put_back(path: Path, place: Path) -> None:
    try:
        os.rename(path, place)
    except OSError:
        # Written anew meanwhile.
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _blobs_of(views: Iterable[Path]) -> set[str]:
    # A view has a link of each blob's name, which tells more of a damaged one than its manifest.
    return {name for view in views for name in reading.names(view) if _DIGEST.fullmatch(name)}


def _rests(path: Path, now_s: float) -> bool:
    try:
        return os.lstat(path).st_mtime < now_s - REST_S
    except OSError:
        return False


def _entries(directory: Path) -> list[Path]:
    return [directory / name for name in reading.names(directory) if _DIGEST.fullmatch(name)]
