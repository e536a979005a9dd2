"""Garbage collection of a checkout: finds files that nothing needs, then removes them.

Nothing of an image whose lock is held is removed: a step or a rollback is running. Jobs and the steps of
clones hold no lock, so files that they may need stay for a time. `state/store/previous.py` says how long
for images, and `state/store/garbage.py` for the store. Files of a deleted project stay for a month: it
may be back with the next branch.
"""

import contextlib
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field

from rc_tasks.errors import RcError
from rc_tasks.model.graph.project import ARTIFACT, EDF, IMAGE_JSON, PROJECTS, PUBLISHED
from rc_tasks.state import logs
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import files, locks, reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.edf import in_use
from rc_tasks.state.published.references import recorded, references
from rc_tasks.state.records.inputs import is_whole
from rc_tasks.state.records.records import Step
from rc_tasks.state.store import garbage, previous
from rc_tasks.state.store.garbage import Unneeded
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.node import podman_storage
from rc_tasks.steps.publish import squash
from rc_tasks.tools import git
from rc_tasks.util.json_decode import encode, parse

GONE_DAYS = 30
_DAY_S = 86_400.0
_Time = Annotated[datetime, Meta(tz=True)]
# How far the clock of a lock's holder may be from that of the file server.
_CLOCKS_S = 300.0
_LOCKS_AT_ONCE = 16
_MANIFEST = re.compile(r"([0-9a-f]{64})(?:\.origin)?\.json")


class GarbageKind(StrEnum):
    """A kind of garbage, in the words of a table."""

    PREVIOUS = "previous images beyond store.previous"
    GONE = "projects that are gone"
    IMAGE = "images of the store that nothing refers to"
    BLOB = "their layers"
    BASE = "registry bases that no Dockerfile names"
    MANIFEST = "manifests of images that are gone, beyond history.days"
    CONTEXT = "listings of build contexts that no record names"
    LOG = "logs beyond logs.keep and logs.days"
    TEMPORARY = "temporary files of dead processes"
    JOB = "podman's storage of ended jobs on this node"


class Item(Struct, frozen=True):
    """A file or a directory to be removed, and the name of its image, if it belongs to one.

    For an image of the store it is the name that it was built for, if that is known.
    """

    kind: GarbageKind
    path: Path
    image: str = ""


class Garbage(Struct):
    """All files that can be removed. `left` names paths that stay although they look unneeded, and why.

    `gone` are the deleted projects, with the time when that was first seen. `young` are the images of
    the store that nothing refers to, and their layers, which stay because they are young. `used_ns` has
    the time at which each image of the store was last used.
    """

    items: list[Item] = field(default_factory=list)
    young: list[Item] = field(default_factory=list)
    used_ns: dict[Path, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    gone: dict[str, datetime] = field(default_factory=dict)

    def count(self, kind: GarbageKind) -> int:
        """Return how many there are of a kind."""
        of_kind = [item for item in self.items if item.kind is kind]
        return len({item.image for item in of_kind}) if kind is GarbageKind.GONE else len(of_kind)

    @property
    def young_images(self) -> int:
        """The number of images of the store that stay because they are young."""
        return sum(item.kind is GarbageKind.IMAGE for item in self.young)


class Collector:
    """Finds and removes what one checkout does not need.

    With `now`, images of the store do not stay for a day, but only while a running step may need them.
    """

    def __init__(self, checkout: Checkout, *, now: bool = False) -> None:
        self._checkout = checkout
        self.now = now
        self._generated = checkout.lock("").parent.parent
        self._now_s = files.server_time_s(self._generated) if self._generated.is_dir() else time.time()
        self._named = in_use.naming(checkout)

    @property
    def lock(self) -> Path:
        """The lock that is held during a removal."""
        return self._generated / "gc.json"

    @property
    def serves_clones(self) -> bool:
        """Whether this is the official checkout: clones read its store, and hold no lock here."""
        return bool(self._checkout.settings.images_root) and official_of(self._checkout) is None

    def find(self) -> Garbage:
        """Return all that could be removed now; changes nothing."""
        garbage_found = Garbage(gone=self._gone_since())
        self._projects_gone(garbage_found)
        gone = {item.image for item in garbage_found.items}
        self._previous(garbage_found)
        self._bases(garbage_found)
        self._stored(garbage_found, gone)
        self._contexts(garbage_found)
        self._logs(garbage_found, gone)
        self._temporaries(garbage_found)
        with contextlib.suppress(RcError):
            ended = podman_storage.dead(self._checkout.settings.podman)
            garbage_found.items += [Item(GarbageKind.JOB, path) for path in ended]
        return garbage_found

    def remove(self, unneeded: Garbage) -> list[Item]:
        """Remove the items that are still unneeded and not in use; return the removed ones.

        References to images go before the images. `unneeded.left` gets the paths that could not be
        removed.
        """
        removed: list[Item] = []
        self._note(unneeded.gone)
        by_image: dict[str, list[Item]] = {}
        for item in unneeded.items:
            if item.kind in {GarbageKind.IMAGE, GarbageKind.BLOB, GarbageKind.JOB}:
                continue
            by_image.setdefault(item.image, []).append(item)
        for image, items in by_image.items():
            try:
                with contextlib.ExitStack() as stack:
                    if image:
                        stack.enter_context(locks.held(self._checkout.lock(image), f"gc:{image}"))
                    removed += [item for item in items if self._removed(item, unneeded)]
            except RcError as error:
                unneeded.left.append(f"{image}: {error.what}")
        removed += self._remove_stored(unneeded, removed)
        for item in unneeded.items:
            if item.kind is GarbageKind.JOB:
                podman_storage.remove(item.path, nodes.storage(self._checkout.settings.podman))
                removed += [] if item.path.exists() else [item]
        return removed

    def _previous(self, unneeded: Garbage) -> None:
        kept, graph = self._checkout.previous, self._checkout.graph
        for name, node in graph.images.items():
            surplus = kept.surplus(node.project, self._checkout.settings.store, self._named)
            unneeded.items += [Item(GarbageKind.PREVIOUS, path, name) for path in surplus]
        for name in kept.names():
            unneeded.left += map(self._foreign, kept.foreign(name))

    def _bases(self, unneeded: Garbage) -> None:
        """Find the files of bases that no Dockerfile names; without them, nothing needs their images."""
        graph = self._checkout.graph
        if graph.broken:
            # A Dockerfile that cannot be read may name any base.
            return
        named = {reference for node in graph.images.values() for reference in node.remote}
        for path, base in self._checkout.store.catalogue.base_files():
            if base.reference not in named and self._age_days(path) >= GONE_DAYS:
                unneeded.items.append(Item(GarbageKind.BASE, path))

    def _stored(self, collected: Garbage, gone: Iterable[str]) -> None:
        """Find the images, blobs and manifests that no remaining image refers to."""
        store = self._checkout.store
        leaving = {
            item.path
            for item in collected.items
            if item.kind in {GarbageKind.PREVIOUS, GarbageKind.BASE}
        }
        # Keep this order, see `state/store/garbage.py`.
        collected.used_ns = garbage.last_used(store)
        before_s, why = self._used_before_s()
        needed = references(self._checkout, set(gone), leaving)
        if needed.unreadable:
            collected.left.append(self._unreadable(needed.unreadable[0]))
            return
        collected.left += map(self._foreign, garbage.foreign(store))
        if not garbage.linked_parts(store):
            of_any_age = garbage.unneeded(store, collected.used_ns, needed.words, math.inf)
            unneeded = garbage.unneeded(store, collected.used_ns, needed.words, before_s)
            collected.items += self._stored_items(unneeded)
            going = set(collected.items)
            collected.young = [item for item in self._stored_items(of_any_age) if item not in going]
            count = collected.young_images
            if self.now and count:
                images = "1 image" if count == 1 else f"{count} images"
                collected.left.append(f"{images} of the store that nothing refers to: {why}")
        history_days = self._checkout.settings.history.days
        for directory in self._manifests():
            for path in _listed(directory) if directory.name not in gone else ():
                manifest = _MANIFEST.fullmatch(path.name)
                if manifest is None:
                    collected.left += [] if path.name.startswith(".") else [self._foreign(path)]
                # `doit diff` needs the manifests of the builds in `doit history`.
                elif manifest[1] not in needed.words and self._age_days(path) > history_days:
                    collected.items.append(Item(GarbageKind.MANIFEST, path))

    def _manifests(self) -> list[Path]:
        """Return the directories of manifests, by image."""
        return _listed(self._generated / "manifests")

    def _stored_items(self, unneeded: Unneeded) -> list[Item]:
        names = self._built_for()
        images = [
            Item(GarbageKind.IMAGE, path, names.get(path.name, "")) for path in sorted(unneeded.images)
        ]
        return images + [Item(GarbageKind.BLOB, path) for path in unneeded.blobs]

    def _built_for(self) -> dict[str, str]:
        """Return the names for which images were built, by image ID, as far as manifests say it."""
        return {
            manifest[1]: directory.name
            for directory in self._manifests()
            for path in _listed(directory)
            if (manifest := _MANIFEST.fullmatch(path.name))
        }

    def _used_before_s(self) -> tuple[float, str]:
        """Return a time: images that were used later stay. Return why they stay, too."""
        day_s = self._now_s - garbage.REST_S
        if not self.now:
            return day_s, ""
        if self.serves_clones:
            return day_s, "younger than a day, and a clone of this checkout may be using them"
        directory = self._checkout.lock("").parent
        paths = [path for path in _listed(directory) if path.suffix == ".json" and path.name[0] != "."]
        # It takes some seconds to tell that a holder on another host is dead.
        with ThreadPoolExecutor(_LOCKS_AT_ONCE) as pool:
            holders = [holder for holder in pool.map(locks.living_holder, paths) if holder is not None]
        if not holders:
            return math.inf, ""
        oldest = min(holders, key=_began_s)
        why = f"{oldest.user} has been running {oldest.step} since {oldest.since} (on {oldest.node})"
        return max(day_s, _began_s(oldest) - _CLOCKS_S), f"{why}, and may need them"

    def _remove_stored(self, collected: Garbage, removed_before: list[Item]) -> list[Item]:
        images = {
            item.path: collected.used_ns[item.path]
            for item in collected.items
            if item.kind is GarbageKind.IMAGE
        }
        blobs = tuple(item.path for item in collected.items if item.kind is GarbageKind.BLOB)
        if not images and not blobs:
            return []
        # What refers to an image may have stayed, for example because a rollback is running.
        stayed = set(collected.items) - set(removed_before)
        gone = {item.image for item in collected.items if item.kind is GarbageKind.GONE}
        gone -= {item.image for item in stayed if item.kind is GarbageKind.GONE}
        needed = references(self._checkout, gone)
        if needed.unreadable:
            collected.left.append(self._unreadable(needed.unreadable[0]))
            return []
        images = {path: time_ns for path, time_ns in images.items() if path.name not in needed.words}
        removed = set(garbage.remove(self._checkout.store, Unneeded(images, blobs)))
        return [item for item in collected.items if item.path in removed]

    def _unreadable(self, path: Path) -> str:
        # The file may be of a later version of this tool, and refer to any image.
        return f"the whole store: {self._shown(path)} cannot be read, and may refer to an image"

    def _contexts(self, unneeded: Garbage) -> None:
        """Find listings of contexts; a build writes one before the record that names it."""
        checkout = self._checkout
        records = (checkout.records.get(Step.PODMAN, name) for name in recorded(checkout))
        named = {
            value
            for record in records
            if record is not None
            for part, value in record.inputs.items()
            if is_whole(part)
        }
        for path in _listed(checkout.contexts.directory):
            if path.suffix == ".json" and path.stem not in named and self._age_days(path) >= 1:
                unneeded.items.append(Item(GarbageKind.CONTEXT, path))

    def _logs(self, unneeded: Garbage, gone: Iterable[str]) -> None:
        for image in _listed(self._generated / "logs"):
            for step in _listed(image) if image.name not in gone else ():
                surplus = logs.surplus(step, self._checkout.settings.logs)
                unneeded.items += [Item(GarbageKind.LOG, path) for path in surplus]

    def _temporaries(self, unneeded: Garbage) -> None:
        places = [self._generated, *_listed(self._generated)]
        places += [
            entry
            for part in ("store", "previous", "manifests", "store/references")
            for entry in _listed(self._generated / part)
        ]
        for place in places:
            unneeded.items += [
                Item(GarbageKind.TEMPORARY, path) for path in files.abandoned(place, self._now_s)
            ]
        for name, node in self._checkout.graph.images.items():
            if locks.holder(self._checkout.lock(name)) is None:
                project = node.project
                with contextlib.suppress(OSError):
                    paths = squash.left(project.directory)
                    paths += files.temporaries(project.directory, IMAGE_JSON)
                    paths += files.temporaries(project.directory, EDF)
                    unneeded.items += [Item(GarbageKind.TEMPORARY, path, name) for path in paths]

    def _gone_since(self) -> dict[str, datetime]:
        """Return the projects that are gone but left files, with the time when that was first seen."""
        checkout = self._checkout
        known = set(checkout.graph.names())
        names = recorded(checkout) | {name for name, _ in checkout.store.catalogue.caches()}
        # Skip the logs of nightly runs.
        logged = _listed(self._generated / "logs")
        names |= {path.name for path in logged if any((path / step).is_dir() for step in Step)}
        names |= {*checkout.previous.names(), *(path.name for path in self._manifests())}
        for place in (checkout.root, checkout.root / PROJECTS):
            for path in _listed(place):
                if not path.name.startswith(".") and _only_generated(path):
                    names.add(path.name)
        seen = self._noted()
        now = datetime.fromtimestamp(int(self._now_s), UTC)
        return {name: seen.get(name, now) for name in sorted(names - known)}

    def _projects_gone(self, unneeded: Garbage) -> None:
        """Find the files of projects that were deleted, and not built, for a month."""
        for name, since in unneeded.gone.items():
            paths = list(self._of_project(name))
            age_days = min((self._age_days(path) for path in paths), default=0.0)
            if min(age_days, self._days_since(since)) < GONE_DAYS:
                continue
            for path in paths:
                if self._is_named(path, name):
                    unneeded.left.append(f"{self._shown(path)}: an EDF names it")
                else:
                    unneeded.items.append(Item(GarbageKind.GONE, path, name))

    def _of_project(self, name: str) -> Iterator[Path]:
        checkout = self._checkout
        for path in _listed(checkout.records.directory):
            task, dot, _ = path.name.rpartition(".")
            if dot and task.partition(":")[2] == name:
                yield path
        yield from filter(os.path.lexists, (self._generated / "store/cache" / f"{name}.json",))
        yield from filter(os.path.lexists, (self._generated / "logs" / name / step for step in Step))
        yield from filter(os.path.lexists, (self._generated / "manifests" / name,))
        for entry in checkout.previous.entries(name):
            yield checkout.previous.directory / name / entry
        for place in (checkout.root, checkout.root / PROJECTS):
            if _only_generated(place / name):
                yield from filter(os.path.lexists, (place / name / ARTIFACT, place / name / IMAGE_JSON))
                if self._is_untracked(place / name / EDF):
                    yield place / name / EDF

    def _is_untracked(self, path: Path) -> bool:
        """Return whether a file is there that git does not have, and so cannot bring back or remove."""
        root = self._checkout.root
        changes = git.uncommitted(root, str(path.relative_to(root))) if os.path.lexists(path) else ()
        return any(line.startswith(("?? ", "!! ")) for line in changes or ())

    def _is_named(self, path: Path, name: str) -> bool:
        if path.name in {ARTIFACT, EDF}:
            return self._named(f"/{name}/{path.name}")
        return path.parent.parent == self._checkout.previous.directory and self._named(path.name)

    def _removed(self, item: Item, unneeded: Garbage) -> bool:
        path = item.path
        files.require_locks()
        try:
            if (
                item.kind is GarbageKind.PREVIOUS
                or path.parent.parent == self._checkout.previous.directory
            ):
                previous.remove(path)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            unneeded.left.append(f"{self._shown(path)}: {error.strerror}")
            return False
        if item.kind is GarbageKind.GONE:
            # Remove the parent directory if it is empty now.
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        return True

    def _noted(self) -> dict[str, datetime]:
        with contextlib.suppress(OSError):
            return parse(dict[str, _Time], (self._generated / "gone.json").read_bytes()) or {}
        return {}

    def _note(self, gone: dict[str, datetime]) -> None:
        path = self._generated / "gone.json"
        if gone != self._noted():
            with contextlib.suppress(RcError):
                write_atomically(path, encode(gone))

    def _days_since(self, time: datetime) -> float:
        return (self._now_s - time.timestamp()) / _DAY_S

    def _age_days(self, path: Path) -> float:
        try:
            return (self._now_s - os.lstat(path).st_mtime) / _DAY_S
        except OSError:
            return 0.0

    def _foreign(self, path: Path) -> str:
        words = "is a symlink, and perhaps another checkout's" if path.is_symlink() else "is not ours"
        return f"{self._shown(path)}: {words}"

    def _shown(self, path: Path) -> str:
        return self._checkout.shown(path)


def _began_s(holder: locks.Holder) -> float:
    """Return when the holder of a lock began, in s since 1970; 0 if the lock does not say it."""
    try:
        return datetime.fromisoformat(holder.since).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def measure(items: Iterable[Item]) -> dict[Item, tuple[os.stat_result, ...]]:
    """Return the files of each item as they are now, for `freed_bytes`."""
    return {item: tuple(_walk(item.path)) for item in items}


def freed_bytes(
    measured: Mapping[Item, tuple[os.stat_result, ...]], items: Iterable[Item]
) -> dict[GarbageKind, int]:
    """Return the bytes that the removal of items frees, by kind; a file with another link frees none."""
    links: Counter[tuple[int, int]] = Counter()
    sizes = dict.fromkeys(GarbageKind, 0)
    for item in items:
        for status in measured[item]:
            key = status.st_dev, status.st_ino
            links[key] += 1
            if links[key] == status.st_nlink:
                sizes[item.kind] += status.st_size
    return sizes


def _walk(path: Path) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if not path.is_dir() or path.is_symlink():
            yield status
            return
        for parent, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(OSError):
                    yield os.lstat(f"{parent}/{name}")


def _listed(directory: Path) -> list[Path]:
    """Return the entries of a directory of the state. Raise OSError when it cannot be read."""
    return [directory / name for name in reading.names(directory)]


def _only_generated(directory: Path) -> bool:
    """Return whether a project directory holds only files that steps have made."""
    try:
        names = set(os.listdir(directory)) if not directory.is_symlink() else set[str]()
    except OSError:
        return False
    return bool(names & {ARTIFACT, IMAGE_JSON}) and names <= PUBLISHED
