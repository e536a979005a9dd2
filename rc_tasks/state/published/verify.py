"""Verification of published images against their records: damages, and how to fix them.

It covers published images only; the judge decides whether an image is stale.
"""

import contextlib
import os
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from msgspec import DecodeError, Struct, field

from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import ARTIFACT, EDF, IMAGE_JSON
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import locks, reading
from rc_tasks.state.disk.files import refused
from rc_tasks.state.history import image_id as image_id_of
from rc_tasks.state.records.digests import sample_digest
from rc_tasks.state.records.records import Artifact, Record, Step
from rc_tasks.state.records.rollback import rolled_back_from
from rc_tasks.state.rights import closed_files, is_official, shown
from rc_tasks.state.store.block_digest import blocks_digest, file_digests
from rc_tasks.state.store.layer_files import LayerFiles, is_layer
from rc_tasks.state.store.store import Store
from rc_tasks.util.json_decode import load
from rc_tasks.util.safe_read import read_bytes, read_text

_SHORT_ID = 12


class Damage(Struct, frozen=True):
    """A file that differs from what was published; `where` is relative to the checkout.

    The commands in `hint` work in every directory.
    """

    where: str
    what: str
    hint: str


class Verdict(StrEnum):
    """The result of a verification; `building`: a step is publishing the image, so it is unknown.

    `unreadable`: this user may not read a part of the image.
    """

    WHOLE = "whole"
    DAMAGED = "damaged"
    UNPUBLISHED = "is not published yet"
    BUILDING = "is being built: verify it again later"
    UNREADABLE = "cannot be verified"


class Verified(Struct, frozen=True):
    """An image that was verified. `notes` say what could only be verified in part."""

    name: str
    verdict: Verdict
    damages: tuple[Damage, ...] = ()
    notes: tuple[str, ...] = ()


class Verification(Struct):
    """Verifies images of a checkout; a blob that several images need is read once.

    `read` is called with the size in bytes of each piece that was read. `at_once` threads read.
    """

    checkout: Checkout
    read: Callable[[int], None]
    at_once: int
    _parts: dict[Path, str] = field(default_factory=dict)

    def size_bytes(self, names: Iterable[str]) -> int:
        """Return how many bytes there are to read."""
        total = 0
        parts: set[Path] = set()
        for name in names:
            record = self._record(name)
            if record is not None and record.artifact is not None:
                total += record.artifact.size_bytes if record.artifact.blocks_digest else 0
                for store, image_id in self._chain(name, record):
                    with contextlib.suppress(OSError, ValueError):
                        parts.update(_parts(store, image_id))
        return total + sum(map(_size_bytes, parts))

    def verify(self, name: str) -> Verified:
        """Re-read one image."""
        node = self.checkout.graph.images[name]
        for _ in range(2):
            version = self.checkout.records.version(Step.ENROOT, name)
            self.checkout.records.reread(Step.ENROOT, name)
            record = self._record(name)
            if record is None or record.artifact is None:
                return Verified(name, Verdict.UNPUBLISHED)
            notes: list[str] = []
            try:
                damages = [
                    *self._artifact(node, record, record.artifact, notes),
                    *self._image_json(node, record, record.artifact),
                    *self._edf(node),
                    *self._stored(node, record, notes),
                ]
            except PermissionError as error:
                return Verified(name, Verdict.UNREADABLE, self._denied(error))
            holder = locks.holder(self.checkout.lock(name))
            if not damages or (
                holder is None and version == self.checkout.records.version(Step.ENROOT, name)
            ):
                verdict = Verdict.DAMAGED if damages else Verdict.WHOLE
                notes += self._closed(name)
                return Verified(name, verdict, tuple(damages), tuple(notes))
            if holder is not None:
                break
        # A step is running: the damage may be gone in a moment.
        return Verified(name, Verdict.BUILDING)

    def _denied(self, error: PermissionError) -> tuple[Damage, ...]:
        error_told = refused(error)
        return (
            (Damage(str(error_told.where), error_told.what, error_told.hint or ""),)
            if error_told is not None
            else ()
        )

    def _closed(self, name: str) -> Iterator[str]:
        """Yield a note for each file of an official image that only its owner may read."""
        for path in closed_files(self.checkout, name) if is_official(self.checkout) else ():
            yield (
                f"{shown(path, self.checkout.shown(path))} locks everybody else out:"
                f" chmod go+r {shlex.quote(str(path))}"
            )

    def _record(self, name: str) -> Record | None:
        return self.checkout.records.get(Step.ENROOT, name)

    def _artifact(
        self, node: ImageNode, record: Record, published: Artifact, notes: list[str]
    ) -> Iterator[Damage]:
        path = node.project.artifact
        where = node.project.shown(ARTIFACT)
        name = node.project.name
        # Remove the file: the samples of every start may miss the damage, so it would count as fresh.
        hint = f"{_remove(path)}doit build:{name}    (it is squashed again)"
        if record.adopted_from:
            hint = f"ask those who own it to `doit verify {name}` in {record.adopted_from}"
        elif self._is_put_back(name, record):
            hint = (
                f"doit rollback {name} --list    (another one can be put back;"
                f" `{_remove(path)}doit build:{name}` would publish the newest)"
            )
        try:
            size_bytes = path.stat().st_size
            if size_bytes != published.size_bytes:
                yield Damage(
                    where, f"has {size_bytes} bytes, and {published.size_bytes} when published", hint
                )
            elif published.blocks_digest:
                digest_now = blocks_digest(str(path), self.read, self.at_once)
                if digest_now != published.blocks_digest:
                    digests = f"{digest_now[:_SHORT_ID]}, and was {published.blocks_digest[:_SHORT_ID]}"
                    yield Damage(
                        where, f"has another content than when published: digest {digests}", hint
                    )
            else:
                notes.append(
                    "published before digests of the whole file were kept: only 1 MiB of it was read"
                )
                if sample_digest(str(path)) != published.sample:
                    yield Damage(where, "has another content than when published", hint)
        except FileNotFoundError:
            yield Damage(where, "is missing", hint)
        except PermissionError:
            raise
        except OSError as error:
            first = f"verify it on another node first; if that cannot read it either: {hint}"
            yield Damage(where, f"cannot be read: {error.strerror}", first)

    def _image_json(self, node: ImageNode, record: Record, published: Artifact) -> Iterator[Damage]:
        where = node.project.shown(IMAGE_JSON)
        remove = _remove(node.project.image_json)
        hint = f"{remove}doit build:{node.project.name}    (it is written again)"
        try:
            document = load(read_bytes(node.project.image_json))
            expected = {
                "name": node.project.name,
                "image_id": record.inputs.get("image", ""),
                "size_bytes": published.size_bytes,
                "sample": published.sample,
            }
            if published.blocks_digest:
                expected["blocks_digest"] = published.blocks_digest
            differ = [key for key, value in expected.items() if document.get(key) != value]
        except FileNotFoundError:
            yield Damage(where, "is missing", hint)
        except PermissionError:
            raise
        except OSError as error:
            yield Damage(where, f"cannot be read: {error.strerror}", hint)
        except DecodeError:
            yield Damage(where, "is no JSON object", hint)
        else:
            if differ:
                yield Damage(where, f"says something else than the record: {', '.join(differ)}", hint)

    def _edf(self, node: ImageNode) -> Iterator[Damage]:
        if self.checkout.records.get(Step.ENV, node.project.name) is None:
            return
        where = node.project.shown(EDF)
        hint = f"doit env:{node.project.name}    (what people changed in it stays)"
        expected = f"{self.checkout.images_root}/{node.project.path}/{ARTIFACT}"
        try:
            image = tomllib.loads(read_text(node.project.edf)).get("image")
        except FileNotFoundError:
            yield Damage(where, "is missing", hint)
        except PermissionError:
            raise
        except OSError as error:
            yield Damage(where, f"cannot be read: {error.strerror}", hint)
        except (ValueError, RecursionError) as error:
            yield Damage(where, f"is no TOML: {error}", f"correct it, then doit env:{node.project.name}")
        else:
            if image != expected:
                yield Damage(where, f"names {image!r} as the image, and not {expected}", hint)

    def _stored(self, node: ImageNode, record: Record, notes: list[str]) -> Iterator[Damage]:
        if not self.checkout.settings.store.enabled:
            notes.append("the store is switched off: no layers were verified")
            return
        name = node.project.name
        put_back = {image_id_of(record)} if self._is_put_back(name, record) else set()
        for having, damage in self._lost(name, record):
            if having <= put_back:
                # A build would make the newest image, on which all others are built.
                why = "needed only by the image of a rollback, which nothing is built on"
                notes.append(f"{damage.where} {damage.what}: {why}")
            else:
                yield damage

    def _lost(self, name: str, record: Record) -> Iterator[tuple[set[str], Damage]]:
        """Yield each damage in the stores, with the IDs of the images concerned."""
        users: dict[Path, list[tuple[Store, str]]] = {}
        for store, image_id in self._chain(name, record):
            path = store.image(image_id)
            where = self.checkout.shown(path)
            try:
                for part in _parts(store, image_id):
                    users.setdefault(part, []).append((store, image_id))
            except FileNotFoundError:
                yield {image_id}, Damage(where, "is no longer in the store", _rebuild(store, name))
            except PermissionError:
                raise
            except (OSError, ValueError, RecursionError):
                hint = _rebuild(store, name, path)
                yield {image_id}, Damage(where, "cannot be read as an image", hint)
        new = [path for path in users if path not in self._parts]
        blobs = [str(path) for path in new if not is_layer(path)]
        for file, result in file_digests(blobs, self.read, self.at_once):
            self._parts[Path(file)] = _words(Path(file).name, result)
        for path in filter(is_layer, new):
            self._parts[path] = self._layer_words(LayerFiles(path.parent))
        for path, having in users.items():
            if self._parts[path]:
                # Remove their images too: a build does not make an image that the store has.
                images = [store.image(image_id) for store, image_id in having]
                shown = ", ".join(image_id[:_SHORT_ID] for _, image_id in having)
                part = path.parent if is_layer(path) else path
                hint = _rebuild(having[0][0], name, part, *images)
                what = f"{self._parts[path]}; it is a part of {shown}"
                yield {image_id for _, image_id in having}, Damage(self.checkout.shown(path), what, hint)

    def _layer_words(self, files: LayerFiles) -> str:
        """Return what is wrong with a squashed layer, or an empty string. Raise PermissionError."""
        try:
            return files.damage(self.read, self.at_once)
        except OSError as error:
            return _words("", error)

    def _is_put_back(self, name: str, record: Record) -> bool:
        """Return whether an older image is published, so that a build would publish another one."""
        newest = rolled_back_from(record, self.checkout.records.get(Step.PODMAN, name))
        return newest not in {"", image_id_of(record)}

    def _chain(self, name: str, published: Record) -> dict[tuple[Store, str], None]:
        """Return the published image and the images that it is built on, each with its store."""
        checkout = self.checkout
        official = official_of(checkout)
        chain: dict[tuple[Store, str], None] = {}
        for image in reversed(checkout.graph.with_bases([name])):
            built = checkout.records.get(Step.PODMAN, image)
            # It may have been rebuilt since, so use the published record.
            record = published if image == name else built
            image_id = image_id_of(record)
            adopted = official is not None and record is not None and record.adopted_from
            if image_id:
                chain[official.store if official and adopted else checkout.store, image_id] = None
            node = checkout.graph.images[image]
            for reference in node.remote:
                base = checkout.store.catalogue.base(reference, checkout.machine(node.project))
                # A base that is not in the store is pulled when it is needed.
                if base is not None and checkout.store.has(base.image_id):
                    chain[checkout.store, base.image_id] = None
        return chain


def _words(digest: str, result: str | OSError) -> str:
    """Return what is wrong with a blob, or an empty string. Raise PermissionError."""
    if isinstance(result, FileNotFoundError):
        return "is missing"
    if isinstance(result, PermissionError):
        raise result
    if isinstance(result, OSError):
        return f"cannot be read: {result.strerror}"
    return "" if result == digest else f"has other content, with the digest {result[:_SHORT_ID]}"


def _rebuild(store: Store, name: str, *damaged: Path) -> str:
    if store.read_only:
        return f"that store belongs to another checkout: ask its owners to `doit verify {name}` there"
    return f"{_remove(*damaged)}doit build:{name}    (what is missing is made again)"


def _remove(*paths: Path) -> str:
    """Return the beginning of a command that removes those of the paths that exist."""
    there = [path for path in paths if os.path.lexists(path)]
    recursive = "-r " if any(map(os.path.isdir, there)) else ""
    return f"rm {recursive}{' '.join(shlex.quote(str(path)) for path in there)} && " if there else ""


def _parts(store: Store, image_id: str) -> Iterator[Path]:
    """Yield the files of an image in a store that hold its content. Raise OSError, ValueError.

    A layer that is missing is a missing blob.
    """
    config, *layers = store.digests(image_id)
    yield store.blob(config)
    for digest in layers:
        files, blob = store.layer(digest), store.blob(digest)
        record = files.record
        if files.exist:
            yield files.file
        # Both are there until `doit gc` removes the blob, and where the file does not give the archive.
        alone = files.exist and (record is None or record.archive_bytes)
        if not alone or reading.status(blob) is not None:
            yield blob


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # what is wrong is reported when it is verified
        return 0


def verifiable(checkout: Checkout) -> list[str]:
    """Return the images that have been published, those with a mistake in their project at the end."""
    names = (*checkout.graph.images, *checkout.graph.broken)
    return [name for name in names if checkout.records.get(Step.ENROOT, name) is not None]
