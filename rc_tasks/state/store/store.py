"""Image store on the shared file system, so that no node's podman has to keep the images.

    store/blobs/sha256/DIGEST    layers (uncompressed: the digest is the diff ID) and configurations
    store/images/IMAGE_ID/       skopeo's `dir:` form: manifest.json, and links to the blobs

The manifest is Docker's, not OCI's: an OCI layout would convert the configuration, which loses SHELL
and HEALTHCHECK and gives the image another ID (seen with skopeo 1.9.3).

podman reads that form by itself, many images at once. It writes that form too, but every layer each
time. skopeo writes only new layers (403 MB, then 100 MB more: podman 3.2 s and 3.6 s, skopeo 2.6 s and
0.5 s).
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rc_tasks.errors import ArtifactError, RcError
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import open_up, sweep_temporaries, temporary_directory
from rc_tasks.state.store.catalogue import Catalogue

if TYPE_CHECKING:
    from rc_tasks.tools.command import Command, Completed
    from rc_tasks.tools.podman import Image, Podman

_MANIFEST = "manifest.json"
_DOCKER = "application/vnd.docker"
_SCRATCH = "put"
# The directory of the layers as SquashFS files (`store/layers.py`).
LAYERS = "layers"
# The file that names the blobs a writer relies on, one digest a line: `store/garbage.py` keeps those.
_WANTED = "wanted"


@dataclass(frozen=True, slots=True)
class Store:
    """The image store of a checkout; a `read_only` one belongs to another checkout."""

    directory: Path
    read_only: bool = False

    @property
    def catalogue(self) -> Catalogue:
        """The references to the images."""
        return Catalogue(self.directory)

    def has(self, image_id: str) -> bool:
        """Return whether the store has the image; one `stat`. Raise OSError when it cannot be read."""
        return reading.status(f"{self.directory}/images/{image_id}/{_MANIFEST}") is not None

    def use(self, image_id: str) -> bool:
        """Return whether the store has the image; if so, keep it for a day without references."""
        # The image may belong to another member: then it keeps its age.
        with contextlib.suppress(OSError):
            os.utime(self._image(image_id))
        return self.has(image_id)

    def wanted(self) -> set[str]:
        """Return the images and blobs that are being written, which nothing may refer to yet.

        Raise OSError for a note that cannot be read, as it may name any of them.
        """
        noted: set[str] = set()
        for name in reading.names(self.directory):
            if name.startswith(f".{_SCRATCH}."):
                text = reading.content(self.directory / name / _WANTED)
                noted.update((text or b"").decode(errors="replace").split())
        return noted

    def put(self, podman: "Podman", image: "Image", *, beside: "Store | None" = None) -> None:
        """Copy an image from a podman storage; each layer is stored once.

        Layers that the store `beside` has become symlinks to it. When such a link breaks, the image
        counts as damaged. Raise ArtifactError or CommandError.
        """
        self.sweep()
        if self.use(image.id):
            return
        for directory in (self.directory / "blobs/sha256", self.directory / "images"):
            directory.mkdir(parents=True, exist_ok=True)
        for layer in image.layers if beside is not None else ():
            if beside is not None and beside._blob(layer).exists() and not self._blob(layer).exists():
                with contextlib.suppress(FileExistsError):
                    os.symlink(beside._blob(layer), self._blob(layer))
        with self.writing(image.id, image.layers) as scratch:
            # The layers of an intermediate image are here with those of the image built on it.
            if any(not self._blob(layer).exists() for layer in image.layers):
                self._put_layers(podman, image, scratch)
            config = self._config(podman, image, scratch)
            blob = scratch / "config"
            blob.write_bytes(config)
            os.replace(blob, self._blob(image.id))
            # Temporary directories have the mode 0700, but others read the store.
            view = scratch / "view"
            view.mkdir()
            try:
                self._write_view(view, image, len(config))
            except ArtifactError:
                # `doit gc` may have moved a layer away for a moment.
                self._put_layers(podman, image, scratch)
                self._write_view(view, image, len(config))
            self._put_view(view, image.id)

    def load(self, podman: "Podman", *image_ids: str) -> tuple[str, ...]:
        """Load images into a podman storage that lacks them; return the IDs of those not in this store.

        A damaged image is reported and removed, and its ID returned. Raise CommandError when podman
        fails for another reason, and ArtifactError when its storage is full or this one cannot be read.
        """
        missing = podman.lacking(image_ids)
        here = [image_id for image_id in missing if self._usable(image_id, _size_is_right)]
        for image_id in here if not self.read_only else ():
            self.use(image_id)
        if here:
            from rc_tasks.tools import command

            done = command.capture(podman.pull_directories(map(self._image, here)), check=False)
            for image_id in podman.lacking(here) if done.returncode != 0 else ():
                # podman compares every digest, but reports no mismatch that a program could parse.
                if self._usable(image_id, _digest_is_right):
                    raise _failure(done, podman.root or "podman's storage")
                here.remove(image_id)
        return tuple(image_id for image_id in missing if image_id not in here)

    def sweep(self) -> None:
        """Remove what killed writers left."""
        sweep_temporaries(self.directory, _SCRATCH)

    def sizes(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield every image here, with its blobs and their sizes in bytes."""
        for entry in reading.names(self.directory / "images"):
            with contextlib.suppress(
                FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError
            ):
                yield entry, {_hex(part["digest"]): part["size"] for part in self._parts(entry)}

    def blobs(self, image_id: str) -> dict[str, int]:
        """Return the blobs of an image with their sizes in bytes. Raise OSError or ValueError."""
        try:
            sizes = {_hex(part["digest"]): int(part["size"]) for part in self._parts(image_id)}
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(repr(error)) from None
        if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sizes):
            raise ValueError("a blob has no digest")
        return sizes

    def config(self, image_id: str) -> bytes | None:
        """Return an image's configuration; None when it is not here. Raise OSError."""
        return reading.content(self._blob(image_id))

    def manifest(self, image_id: str) -> bytes | None:
        """Return an image's manifest; None when it is not here. Raise OSError."""
        return reading.content(self._image(image_id) / _MANIFEST)

    def blob(self, digest: str) -> Path:
        """Return where a blob of this digest lies, or would lie."""
        return self._blob(digest)

    def image(self, image_id: str) -> Path:
        """Return where an image lies, or would lie."""
        return self._image(image_id)

    def size_bytes(self) -> int:
        """Return the size of all blobs and squashed layers, with what killed writers left."""
        total = 0
        places = (self.directory / "blobs/sha256", self.directory / LAYERS)
        for directory in (*places, *self.directory.glob(f".{_SCRATCH}.*")):
            for parent, _, names in os.walk(directory):
                for name in names:
                    with contextlib.suppress(OSError):
                        total += os.lstat(f"{parent}/{name}").st_size
        return total

    def _put_layers(self, podman: "Podman", image: "Image", scratch: Path) -> None:
        from rc_tasks.tools import skopeo

        if skopeo.available():
            source = podman.storage_reference(image.id)
            blobs = self.directory / "blobs"
            copied = skopeo.copy_to_layout(source, scratch / "layout", blobs, podman.through)
            _run(copied, to=self.directory)
            return
        self._push(podman, image, scratch)
        for layer in image.layers:
            pushed = scratch / "pushed" / _hex(layer)
            if pushed.exists() and not self._blob(layer).exists():
                os.replace(pushed, self._blob(layer))

    def _put_view(self, view: Path, image_id: str) -> None:
        final = self._image(image_id)
        try:
            os.rename(view, final)
        except OSError as error:
            import shutil

            # Another node may have written the same image meanwhile.
            if not self.has(image_id):
                shutil.rmtree(final, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.rename(view, final)
            if not self.has(image_id):
                raise ArtifactError(
                    f"cannot write image {image_id[:12]} to the store: {error.strerror}",
                    where=final,
                    hint="move away what is there, then run the same command again",
                ) from None

    def _config(self, podman: "Podman", image: "Image", scratch: Path) -> bytes:
        from rc_tasks.tools import skopeo

        config = podman.config(image.id)
        if config is None and skopeo.available():
            config = skopeo.raw_config(podman.storage_reference(image.id), podman.through)
        elif config is None:
            self._push(podman, image, scratch)
            config = (scratch / "pushed" / image.id).read_bytes()
        if hashlib.sha256(config).hexdigest() != image.id:
            raise ArtifactError(
                f"podman gives image {image.id[:12]} a configuration with another digest",
                hint="`podman system reset` on that node, then build again",
            )
        return config

    def _push(self, podman: "Podman", image: "Image", scratch: Path) -> None:
        if not (scratch / "pushed").exists():
            _run(podman.push_directory(image.id, scratch / "pushed"), to=self.directory)

    def _write_view(self, view: Path, image: "Image", config_size_bytes: int) -> None:
        layers = []
        for digest in image.layers:
            blob = self._blob(digest)
            try:
                size_bytes = blob.stat().st_size
            except FileNotFoundError:
                raise ArtifactError(
                    f"layer {digest[:19]} of image {image.id[:12]} was not written", where=blob
                ) from None
            layers.append(
                {"mediaType": f"{_DOCKER}.image.rootfs.diff.tar", "size": size_bytes, "digest": digest}
            )
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_DOCKER}.distribution.manifest.v2+json",
            "config": {
                "mediaType": f"{_DOCKER}.container.image.v1+json",
                "size": config_size_bytes,
                "digest": f"sha256:{image.id}",
            },
            "layers": layers,
        }
        for digest in (image.id, *map(_hex, image.layers)):
            with contextlib.suppress(FileExistsError):  # an image may hold the same layer twice
                os.symlink(f"../../blobs/sha256/{digest}", view / digest)
        # This line makes a directory an image (containers-transports(5)).
        (view / "version").write_text("Directory Transport Version: 1.1\n")
        # Keep the bytes that podman has where the image was built: podman 5's cache identifies a RUN
        # that mounts it by this file's digest (getCreatedBy in buildah's stage_executor.go).
        (view / _MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))

    def _parts(self, image_id: str) -> list[dict[str, Any]]:
        manifest = json.loads((self._image(image_id) / _MANIFEST).read_bytes())
        return [manifest["config"], *manifest["layers"]]

    def _usable(self, image_id: str, right: Callable[[Path, dict[str, Any]], bool]) -> bool:
        """Return whether an image is here and all its parts are right; report and remove wrong parts.

        Raise ArtifactError when this node cannot read it, as the image may still be good.
        """
        view = self._image(image_id)
        try:
            with _reading(view / _MANIFEST):
                parts = self._parts(image_id)
            wrong = [part["digest"] for part in parts if _is_wrong(view, part, right)]
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError, RecursionError):
            wrong = [_MANIFEST]
        for name in dict.fromkeys(map(_hex, wrong)):
            self._discard(view / name)
        return not wrong

    def _discard(self, damaged: Path) -> None:
        """Report and remove a part of an image, and every image that has it."""
        state, place = "damaged", damaged.resolve()
        try:
            with _reading(damaged):
                damaged.stat()
        except FileNotFoundError:
            state = "missing"
        # Remove only our link: it may lead to the blob of another store.
        path = damaged if damaged.name == _MANIFEST else self._blob(damaged.name)
        message = f"image {damaged.parent.name[:12]} in the store cannot be used, {place} is {state}"
        if self.read_only:
            print(
                f"{message}; nothing is removed, as that store belongs to another checkout", flush=True
            )
            return
        images = {damaged.parent}
        if damaged.name != _MANIFEST:
            views = self.directory.glob("images/*")
            images |= {image for image in views if os.path.lexists(image / damaged.name)}
        print(f"{message}; removed, with every image that has it ({len(images)})", flush=True)
        path.unlink(missing_ok=True)
        with self.scratch() as scratch:
            for image in images:
                # Rename it first: a half removed image must not look like an image.
                with contextlib.suppress(FileNotFoundError):
                    os.rename(image, scratch / image.name)

    @contextlib.contextmanager
    def writing(self, image_id: str, layers: Iterable[str]) -> Iterator[Path]:
        """Make a temporary directory for a writer of an image, whose parts `doit gc` keeps meanwhile."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.scratch() as scratch:
            # Announce them before checking for them, so that `doit gc` keeps those that exist.
            (scratch / _WANTED).write_text("\n".join((image_id, *map(_hex, layers))))
            yield scratch

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a temporary directory in the store; after a kill, the next `sweep` removes it."""
        with temporary_directory(self.directory, _SCRATCH) as directory:
            # Another member's `doit gc` must be able to read what this writer relies on.
            open_up(directory)
            yield directory

    def _image(self, image_id: str) -> Path:
        return self.directory / "images" / image_id

    def _blob(self, digest: str) -> Path:
        return self.directory / "blobs" / "sha256" / _hex(digest)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


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


def _is_wrong(view: Path, part: dict[str, Any], right: Callable[[Path, dict[str, Any]], bool]) -> bool:
    path = view / _hex(part["digest"])
    try:
        with _reading(path):
            return not right(path, part)
    except FileNotFoundError:
        return True


def _size_is_right(path: Path, part: dict[str, Any]) -> bool:
    return bool(path.stat().st_size == part["size"])


def _digest_is_right(path: Path, part: dict[str, Any]) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == _hex(part["digest"])


def _run(invocation: "Command", *, to: object) -> None:
    from rc_tasks.tools import command

    done = command.capture(invocation, check=False)
    if done.returncode != 0:
        raise _failure(done, to)


def _failure(done: "Completed", to: object) -> RcError:
    from rc_tasks.tools import command

    lines = done.stderr.splitlines()
    if any(words in done.stderr for words in ("no space left on device", "disk quota exceeded")):
        return ArtifactError(
            "no space left while copying an image",
            where=to,
            quote=tuple(lines[-1:]),
            hint="free space or ask for more quota there, then run the same command again",
        )
    return command.failure(done.command, done.returncode, lines)
