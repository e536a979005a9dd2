"""Official checkout, from which a clone adopts images; it is read and never written.

Its files may be damaged, or changed by another user: their owner, mode and form are checked before use.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.model.graph.pin import Pin
from rc_tasks.model.graph.project import ARTIFACT, Project
from rc_tasks.state.bases.pins import comparable
from rc_tasks.state.checkout import GENERATED, Checkout
from rc_tasks.state.disk.reading import denied
from rc_tasks.state.disk.trust import AbsentError, NotOfferedError, RefusedError, Trust
from rc_tasks.state.records.digests import Digests
from rc_tasks.state.records.records import Artifact, Facts, Record, Step, Task, parse
from rc_tasks.state.records.rollback import rolled_back_from
from rc_tasks.state.records.status import Cause, changed
from rc_tasks.state.store.catalogue import Cached, Pulled
from rc_tasks.state.store.layer_files import LAYERS, LayerFiles
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.store import Store

if TYPE_CHECKING:
    from rc_tasks.tools.podman import Podman

# A record has a line for each file of the context.
_RECORD_BYTES = 16 << 20
_TEXT_LENGTH = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Offer(Struct, frozen=True):
    """A published official image of the same inputs: its file, and the records that a clone writes."""

    artifact: str
    facts: Facts
    records: Mapping[Step, Record]


class OtherInputsError(NotOfferedError):
    """The official image was built from other inputs; `causes` are the differences."""

    def __init__(self, causes: tuple[Cause, ...]) -> None:
        super().__init__("it was built from other inputs")
        self.causes = causes


class Official:
    """The official checkout, seen from a clone; `root` is its real path."""

    def __init__(self, root: str, trust: Trust) -> None:
        self.root = root
        self._trust = trust
        self._trusted: set[str] = set()

    def offer(
        self,
        project: Project,
        inputs: Mapping[str, str],
        pins: Mapping[str, Pin],
        digests: Digests,
        *,
        frozen: bool = False,
    ) -> Offer:
        """Return the image, if it was built there from these inputs and is published.

        `pins` are the clone's own: where it has none, it accepts the pin of the official checkout. A
        `frozen` image is offered whatever its inputs are now.

        Raise NotOfferedError, or RefusedError when an untrusted user could have changed it.
        """
        path = f"{self.root}/{project.path}/{ARTIFACT}"
        try:
            built = self._record(Step.PODMAN, project.name)
            if built.facts is None:
                raise AbsentError("it was never built there")
            recorded = comparable(built.inputs, inputs, pins)
            if recorded != inputs and not frozen:
                raise OtherInputsError(tuple(_differences(recorded, inputs)))
            published = self._record(Step.ENROOT, project.name)
            status = self._file(path)
            if rolled_back_from(published, built):
                raise NotOfferedError("an older image replaces it there (doit rollback)")
            if published.inputs.get("image") != built.facts.image_id or published.artifact is None:
                raise NotOfferedError("it is not published there yet")
            if not _is_same(path, status, published.artifact, digests):
                raise NotOfferedError("its image.sqsh there is not as it was published")
            _require_readable(path)
            if not self.has(built.facts.image_id):
                raise NotOfferedError("it is not in the image store there")
        except FileNotFoundError as error:
            raise NotOfferedError(f"there is no {error.filename}") from None
        except OSError as error:
            raise _unreadable(error) from None
        artifact = replace(published.artifact, mtime_ns=status.st_mtime_ns)
        records = {
            Step.PODMAN: replace(built, adopted_from=self.root),
            Step.ENROOT: replace(published, artifact=artifact, adopted_from=self.root),
        }
        try:
            environment = self._record(Step.ENV, project.name)
        except (NotOfferedError, OSError):
            return Offer(path, built.facts, records)
        return Offer(
            path, built.facts, records | {Step.ENV: replace(environment, adopted_from=self.root)}
        )

    def gone(
        self, project: Project, image_id: str, artifact: Artifact | None, digests: Digests
    ) -> str | None:
        """Return why an adopted image is no longer the official one, or None."""
        path = f"{self.root}/{project.path}/{ARTIFACT}"
        try:
            status = self._file(path)
            if artifact is not None and not _is_same(path, status, artifact, digests):
                return "the official image changed"
            if not self.has(image_id):
                return f"the official image is no longer in the store of {self.root}"
        except NotOfferedError as error:
            return f"the official image is refused: {str(error).partition(chr(10))[0]}"
        except FileNotFoundError:
            return f"the official image is gone: {path}"
        except OSError as error:
            return f"the official image cannot be reached: {path}: {error.strerror}"
        return None

    def has(self, image_id: str) -> bool:
        """Return whether the image is in the official store. Raise RefusedError."""
        directory = self.store.directory
        try:
            self._file(f"{directory}/images/{image_id}/manifest.json")
            # A missing blob is noticed when the image is loaded.
            with contextlib.suppress(FileNotFoundError):
                self._directory(f"{directory}/blobs/sha256")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unreadable(error) from None
        return True

    @property
    def store(self) -> Store:
        """The official store."""
        return Store(Path(f"{self.root}/{GENERATED}/store"), read_only=True)

    def layer(self, digest: str) -> LayerFiles | None:
        """Return the files of a layer in the official store, if only trusted users wrote them."""
        files = self.store.layer(digest)
        try:
            self._require_own(files)
        except (NotOfferedError, OSError):
            return None
        return files

    @property
    def trusted(self) -> bool:
        """Whether only trusted users could write blobs to the official store."""
        try:
            self._directory(f"{self.store.directory}/blobs/sha256")
        except (NotOfferedError, OSError):
            return False
        return True

    def refusals(self, projects: Iterable[Project]) -> Iterator[RefusedError]:
        """Yield an error for each path of the official checkout that a clone would refuse."""
        store = self.store.directory
        places = [f"{self.root}/{GENERATED}/state", f"{store}/images", f"{store}/blobs/sha256"]
        places.append(f"{store}/{LAYERS}")
        places += [f"{self.root}/{project.path}/{ARTIFACT}" for project in projects]
        reported = set()
        for place in places:
            try:
                _require_readable(place)
                self._status(place)
            except (FileNotFoundError, NotADirectoryError):
                continue  # not built there yet
            except RefusedError as refused:
                error = refused
            except OSError as unread:
                error = _unreadable(unread)
            else:
                continue
            if str(error) not in reported:
                reported.add(str(error))
                yield error

    def base(self, reference: str, architecture: str) -> Pulled | None:
        """Return the base for a registry reference in the official checkout, if it has the image."""
        path = self.store.catalogue.base_file(reference, architecture)
        try:
            if self._file(str(path)).st_size > _RECORD_BYTES:
                return None
            pulled = self.store.catalogue.base(reference, architecture)
            sound = pulled is not None and _is_digest(pulled.image_id) and self.has(pulled.image_id)
        except (NotOfferedError, OSError, RecursionError):
            return None
        return pulled if sound else None

    def load(self, podman: "Podman", *image_ids: str) -> tuple[str, ...]:
        """Load images of the official store into podman; return the IDs of those that it lacks."""
        from rc_tasks.state.store.loading import load_images

        here = []
        for image_id in image_ids:
            try:
                if self.has(image_id):
                    self._require_manifest(image_id)
                    self._require_layers(image_id)
                    here.append(image_id)
            except (RefusedError, OSError) as error:
                print(f"not loaded from the official store: {error}", flush=True)
        if not here:
            return image_ids
        shown = ", ".join(image_id[:12] for image_id in here)
        print(f"loading {shown} from the store of {self.root}", flush=True)
        not_loaded = load_images(self.store, podman, *here)
        return tuple(
            image_id for image_id in image_ids if image_id in not_loaded or image_id not in here
        )

    def cache(self, name: str) -> tuple[Cached, ...]:
        """Return podman's cache of the image in the official store; leave out damaged parts."""
        try:
            if self._file(f"{self.store.directory}/cache/{name}.json").st_size > _RECORD_BYTES:
                return ()
            cached = self.store.catalogue.cache(name)
        except (NotOfferedError, OSError, RecursionError):
            return ()
        return tuple(image for image in cached if _is_digest(image.image_id))

    def files(self, directory: str) -> dict[str, bytes]:
        """Return the small files in a directory of `.rc`, except unreadable and refused ones."""
        path = f"{self.root}/{GENERATED}/{directory}"
        texts = {}
        with contextlib.suppress(NotOfferedError, OSError):
            self._directory(path)
            for name in sorted(os.listdir(path)):
                with contextlib.suppress(NotOfferedError, OSError):
                    texts[name] = self._text(f"{path}/{name}")
        return texts

    def _require_manifest(self, image_id: str) -> None:
        path = self.store.directory / "images" / image_id / "manifest.json"
        try:
            manifest = json.loads(self._text(str(path)))
            config, layers = manifest["config"], manifest["layers"]
            parts = [config, *layers]
            sound = config["digest"] == f"sha256:{image_id}" and all(
                _is_digest(part["digest"].removeprefix("sha256:")) and _is_size(part["size"])
                for part in parts
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise RefusedError("is not the manifest of this image", where=path)

    def _require_layers(self, image_id: str) -> None:
        """Raise RefusedError for a squashed layer that others could write: we would parse it."""
        for digest in self.store.layers(image_id):
            files = self.store.layer(digest)
            if files.exist and not self.store.blob(digest).exists():
                self._require_own(files)

    def _require_own(self, files: LayerFiles) -> None:
        for path in (files.file, files.record_file):
            self._file(str(path))
        with contextlib.suppress(FileNotFoundError):
            self._file(str(files.recipe))

    def _record(self, step: Step, name: str) -> Record:
        task = Task(step, name)
        path = f"{self.root}/{GENERATED}/state/{task}.json"
        try:
            self._directory(os.path.dirname(path))
            record = parse(self._text(path), task)
        except FileNotFoundError:
            if not os.path.isdir(self.root):
                raise NotOfferedError("images_root does not exist here") from None
            raise AbsentError(f"{task} never ran there") from None
        if record is None or not all(_plausible(record)):
            raise RefusedError(
                "is damaged, or of another version of this tool",
                where=path,
                hint=f"in the official checkout: doit forget {task} && doit build:{name}",
            )
        return record

    def _text(self, path: str) -> bytes:
        """Return the content of a small file in a directory that was checked before."""
        # Refuse symlinks, which do not belong there. O_NONBLOCK: a pipe must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            self._trust.require(path, status)
            if not stat.S_ISREG(status.st_mode):
                raise RefusedError("is not a file", where=path)
            with open(descriptor, "rb", closefd=False) as file:
                text = file.read(_RECORD_BYTES + 1)
        finally:
            os.close(descriptor)
        if len(text) > _RECORD_BYTES:
            raise RefusedError(f"is larger than {_RECORD_BYTES >> 20} MiB", where=path)
        return text

    def _file(self, path: str) -> os.stat_result:
        status = self._status(path)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError("is not a file", where=path)
        return status

    def _directory(self, path: str) -> None:
        """Raise RefusedError when untrusted users can write to this directory; check once per run."""
        if path not in self._trusted:
            self._status(path)
            self._trusted.add(path)

    def _status(self, path: str) -> os.stat_result:
        """Return the status of a path below the root. Raise RefusedError for it or a directory above."""
        if path != self.root:
            self._directory(os.path.dirname(path))
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            real = os.path.realpath(path, strict=True)
            if not real.startswith(f"{self.root}/"):
                raise RefusedError(
                    f"is a symlink that leads out of the official checkout, to {real}",
                    where=path,
                    hint="put what it leads to in its place",
                )
            return self._status(real)
        self._trust.require(path, status)
        return status


def official_of(checkout: Checkout) -> Official | None:
    """Return the official checkout of this clone, or None when this is the official one itself."""
    if not checkout.settings.images_root:
        return None
    root = os.path.realpath(checkout.settings.images_root)
    try:
        # The same directory may be mounted in two places.
        same = os.path.samefile(root, checkout.root)
    except OSError:
        same = False
    return None if same else Official(root, Trust(checkout.settings.images_owners))


def stored_config(checkout: Checkout, image_id: str) -> bytes | None:
    """Return the configuration of an image in this store or the official one; None if it is damaged."""
    store, official = checkout.store, official_of(checkout)
    with contextlib.suppress(NotOfferedError, OSError):
        if not store.has(image_id) and official is not None and official.has(image_id):
            store = official.store
        config = store.config(image_id)
        if config is not None and hashlib.sha256(config).hexdigest() == image_id:
            return config
    return None


def squashed_layers(checkout: Checkout) -> SquashedLayers:
    """Return the squashed layers that a checkout may use: its own, and those of the official store."""
    official = official_of(checkout)
    return SquashedLayers(checkout.store, official.layer) if official else SquashedLayers(checkout.store)


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Cause]:
    for part in {**old, **new}:
        before, now = old.get(part), new.get(part)
        if before != now:
            yield Cause(part, changed(part, before, now), before or "", now or "")


def _is_same(path: str, status: os.stat_result, published: Artifact, digests: Digests) -> bool:
    return status.st_size == published.size_bytes and (
        status.st_mtime_ns == published.mtime_ns or digests.sample(path, status) == published.sample
    )


def _require_readable(path: str) -> None:
    """Raise RefusedError when this user may not read what is at a path."""
    denial = denied(Path(path))
    if denial is not None:
        raise RefusedError(denial.what, where=denial.where, hint=denial.hint)


def _unreadable(error: OSError) -> RefusedError:
    try:
        _require_readable(os.fsdecode(error.filename or ""))
    except RefusedError as refusal:
        return refusal
    return RefusedError(
        f"cannot be read: {error.strerror}",
        where=error.filename,
        hint="`ls -ld` that path, and ask its owner",
    )


def _plausible(record: Record) -> Iterator[bool]:
    """Yield for each value whether it is plausible, as another user may have changed it."""
    texts = (record.node, record.job_id, record.builder, record.commit)
    tables = (record.tools, record.bases)
    yield all(map(_is_text, (*texts, *(word for table in tables for word in (*table, *table.values())))))
    for test in record.smoke:
        yield _is_text(test.launcher) and math.isfinite(test.duration_s)
    if record.facts is not None:
        facts = record.facts
        yield _is_digest(facts.image_id)
        yield _is_text(facts.architecture) and _is_text(facts.workdir)
    if record.artifact is not None:
        artifact = record.artifact
        yield _is_digest(artifact.sample)
        yield artifact.blocks_digest == "" or _is_digest(artifact.blocks_digest)


def _is_text(value: str) -> bool:
    return len(value) <= _TEXT_LENGTH and value.isprintable()


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 63
