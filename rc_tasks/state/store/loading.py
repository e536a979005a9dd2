"""Loading of images from a store into a podman storage, which verifies every byte."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rc_tasks.errors import ArtifactError, RcError
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import refused
from rc_tasks.state.store.layer_files import hex_digest
from rc_tasks.state.store.store import MANIFEST, VERSION, Store
from rc_tasks.tools import command, tar_split
from rc_tasks.tools.command import Completed
from rc_tasks.tools.podman import Podman

# Returns whether a part of an image, given by its path in the image's directory, is right.
Right = Callable[[Path, dict[str, Any]], bool]


def load_images(store: Store, podman: Podman, *image_ids: str) -> tuple[str, ...]:
    """Load images into a podman storage that lacks them; return the IDs of those not in this store.

    A damaged image is reported and removed, and its ID returned. Raise CommandError when podman
    fails for another reason, and ArtifactError when its storage is full or this one cannot be read.
    """
    missing = podman.lacking(image_ids)
    here = [image_id for image_id in missing if _usable(store, image_id, partial(_size_is_right, store))]
    for image_id in here if not store.read_only else ():
        store.use(image_id)
    if here:
        done = _pull(store, podman, here)
        for image_id in podman.lacking(here) if done.returncode != 0 else ():
            # podman compares every digest, but reports no mismatch that a program could parse.
            if _usable(store, image_id, partial(_content_is_right, store)):
                raise failure(done, podman.root or "podman's storage")
            here.remove(image_id)
    return tuple(image_id for image_id in missing if image_id not in here)


def _pull(store: Store, podman: Podman, image_ids: Iterable[str]) -> Completed:
    """Let podman pull images, for which the blobs of squashed layers are made again."""
    # On the node, in the directory of the step.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        made = Path(scratch, "blobs")
        made.mkdir()
        for last in (False, True):
            views = [_whole_view(store, image_id, Path(scratch), made) for image_id in image_ids]
            done = command.capture(podman.pull_directories(views), check=False)
            links = [link for view in views for link in view.iterdir()]
            if done.returncode == 0 or last or all(map(os.path.exists, links)):
                break
            # `doit gc` has taken blobs away of which there are squashed layers.
            for path in Path(scratch).iterdir():
                if path != made:
                    shutil.rmtree(path)
        return done


def _whole_view(store: Store, image_id: str, scratch: Path, made: Path) -> Path:
    """Return an image in podman's `dir:` form with all its blobs; those missing go to `made`."""
    view = store.image(image_id)
    with _reading(view / MANIFEST):
        layers = store.layers(image_id)
    squashed = [digest for digest in layers if not store.blob(digest).exists()]
    if not squashed:
        return view
    whole = scratch / image_id
    whole.mkdir()
    (whole / "version").write_text(VERSION)
    shutil.copyfile(view / MANIFEST, whole / MANIFEST)
    for digest in (image_id, *layers):
        blob = made / hex_digest(digest) if digest in squashed else store.blob(digest)
        with contextlib.suppress(FileExistsError):  # an image may hold the same layer twice
            os.symlink(blob, whole / hex_digest(digest))
        if digest in squashed and not blob.exists():
            _unsquash(store, digest, blob)
    return whole


def _unsquash(store: Store, digest: str, blob: Path) -> None:
    """Write the archive of a squashed layer. What is damaged is written in part, if at all."""
    files = store.layer(digest)
    with blob.open("wb") as file, contextlib.suppress(SquashfsError, tar_split.RecipeError):
        try:
            for piece in tar_split.archive(files.recipe, read_layer(files.file)):
                file.write(piece)
        except OSError as error:
            raise refused(error, blob) or error from None


def _usable(store: Store, image_id: str, right: Right) -> bool:
    """Return whether an image is here and all its parts are right; report and remove wrong parts.

    Raise ArtifactError when this node cannot read it, as the image may still be good.
    """
    view = store.image(image_id)
    try:
        with _reading(view / MANIFEST):
            parts = store.parts(image_id)
        wrong = [part["digest"] for part in parts if _is_wrong(view, part, right)]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, RecursionError):
        wrong = [MANIFEST]
    for name in dict.fromkeys(map(hex_digest, wrong)):
        _discard(store, view / name)
    return not wrong


def _size_is_right(store: Store, path: Path, part: dict[str, Any]) -> bool:
    """Return whether a part has its size. Raise FileNotFoundError for a missing one, or OSError."""
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        files = store.layer(path.name)
        files.file.stat()
        size_bytes = files.archive_bytes()
    return bool(size_bytes == part["size"])


def _content_is_right(store: Store, path: Path, part: dict[str, Any]) -> bool:
    """Return whether a part has its content. Raise as above."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == hex_digest(part["digest"])
    except FileNotFoundError:
        return not store.layer(path.name).damage()


def _discard(store: Store, damaged: Path) -> None:
    """Report and remove a part of an image, and every image that has it.

    `damaged` is the path of the part in the image's directory.
    """
    files = store.layer(damaged.name)
    is_manifest = damaged.name == MANIFEST
    state = "damaged"
    with _reading(damaged):
        squashed = not is_manifest and files.exist and reading.status(damaged) is None
    place = files.file if squashed else damaged.resolve()
    try:
        with _reading(place):
            place.stat()
    except FileNotFoundError:
        state = "missing"
    message = f"image {damaged.parent.name[:12]} in the store cannot be used, {place} is {state}"
    if store.read_only:
        print(f"{message}; nothing is removed, as that store belongs to another checkout", flush=True)
        return
    images = {damaged.parent}
    if not is_manifest:
        views = store.directory.glob("images/*")
        images |= {image for image in views if os.path.lexists(image / damaged.name)}
    print(f"{message}; removed, with every image that has it ({len(images)})", flush=True)
    # Remove only our link: it may lead to another store.
    part = files.directory if squashed else damaged if is_manifest else store.blob(damaged.name)
    store.remove(part, *images)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise ArtifactError for a file that cannot be read, but FileNotFoundError for a missing one."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArtifactError(
            f"cannot be read: {error.strerror}",
            where=path,
            hint="nothing was removed: run the same command again, on a node that can read it,\n"
            "or ask those who own it (`ls -lL`) or run the file server",
        ) from None


def _is_wrong(view: Path, part: dict[str, Any], right: Right) -> bool:
    path = view / hex_digest(part["digest"])
    try:
        with _reading(path):
            return not right(path, part)
    except FileNotFoundError:
        return True


def failure(done: Completed, to: object) -> RcError:
    """Return the error of a podman that could not copy an image to a place."""
    lines = done.stderr.splitlines()
    if any(words in done.stderr for words in ("no space left on device", "disk quota exceeded")):
        return ArtifactError(
            "no space left while copying an image",
            where=to,
            quote=tuple(lines[-1:]),
            hint="free space or ask for more quota there, then run the same command again",
        )
    return command.failure(done.command, done.returncode, lines)
