"""Image store on the shared file system, so that no node's podman has to keep the images.

    store/layers/DIFF_ID/        a layer as a SquashFS file (`layer_files.py`)
    store/blobs/sha256/DIGEST    configurations, and layers of which there is no such file: those that
                                 cannot be squashed, and those that earlier versions stored (tar
                                 archives without compression: the digest is the diff ID)
    store/images/IMAGE_ID/       podman's `dir:` form: manifest.json, and links to where the blobs are or
                                 would be

The manifest is Docker's, not OCI's: an OCI layout would convert the configuration, which loses SHELL
and HEALTHCHECK and gives the image another ID.

podman loads an image from blobs. Of a squashed layer the blob is made again for that.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from rc_tasks.errors import ArtifactError
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import open_up, sweep_temporaries, temporary_directory
from rc_tasks.state.store.catalogue import Catalogue
from rc_tasks.state.store.layer_files import LAYERS, LayerFiles, hex_digest, layer_files

MANIFEST = "manifest.json"
# This line makes a directory an image (containers-transports(5)).
VERSION = "Directory Transport Version: 1.1\n"
_DOCKER = "application/vnd.docker"
_SCRATCH = "put"
# The file that names the blobs a writer relies on, one digest a line: `store/garbage.py` keeps those.
_WANTED = "wanted"


class LayerGoneError(ArtifactError):
    """A layer of an image is not in the store."""


class Store(Struct, frozen=True):
    """The image store of a checkout; a `read_only` one belongs to another checkout."""

    directory: Path
    read_only: bool = False

    @property
    def catalogue(self) -> Catalogue:
        """The references to the images."""
        return Catalogue(self.directory)

    def has(self, image_id: str) -> bool:
        """Return whether the store has the image; one `stat`. Raise OSError when it cannot be read."""
        return reading.status(f"{self.directory}/images/{image_id}/{MANIFEST}") is not None

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

    def has_layer(self, digest: str) -> bool:
        """Return whether the store has a layer, given by its diff ID, in a form that can be loaded."""
        return self._archive_bytes(digest) is not None

    def put_image(self, image_id: str, config: bytes, layers: Iterable[str], scratch: Path) -> None:
        """Put an image in place, whose layers the store has.

        `scratch` is the directory of `writing`. Raise ArtifactError, LayerGoneError when a layer is not
        there.
        """
        (self.directory / "images").mkdir(parents=True, exist_ok=True)
        blob = scratch / "config"
        blob.write_bytes(config)
        self.put_blob(image_id, blob)
        # Temporary directories have the mode 0700, but others read the store.
        view = scratch / "view"
        view.mkdir(exist_ok=True)
        self._write_view(view, image_id, len(config), tuple(layers))
        self._put_view(view, image_id)

    def put_blob(self, digest: str, made: Path) -> None:
        """Put a blob in place; `made` is in the directory of `writing`."""
        self._blob(digest).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, self._blob(digest))

    def remove(self, *paths: Path) -> None:
        """Remove parts of the store; a missing one is fine."""
        with self.scratch() as scratch:
            # Rename first: a half removed image must not look like an image.
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, scratch / f"{path.parent.name}.{path.name}")

    def sweep(self) -> None:
        """Remove what killed writers left."""
        sweep_temporaries(self.directory, _SCRATCH)

    def sizes(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield every image here, with its parts and what these take on the disk, in bytes."""
        known: dict[str, int] = {}
        for entry in reading.names(self.directory / "images"):
            with contextlib.suppress(OSError, ValueError):
                digests = dict.fromkeys(map(hex_digest, self.digests(entry)))
                for digest in digests.keys() - known.keys():
                    known[digest] = self._stored_bytes(digest)
                yield entry, {digest: known[digest] for digest in digests}

    def layers(self, image_id: str) -> tuple[str, ...]:
        """Return the diff IDs of an image's layers, lowest first. Raise OSError or ValueError."""
        return self.digests(image_id)[1:]

    def digests(self, image_id: str) -> tuple[str, ...]:
        """Return the digest of an image's configuration and its diff IDs. Raise OSError, ValueError."""
        try:
            digests = tuple(str(part["digest"]) for part in self.parts(image_id))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(repr(error)) from None
        if not all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in digests):
            raise ValueError("a part has no digest")
        return digests

    def layer(self, digest: str) -> LayerFiles:
        """Return the files of a squashed layer, which need not exist."""
        return layer_files(self.directory, digest)

    def config(self, image_id: str) -> bytes | None:
        """Return an image's configuration; None when it is not here. Raise OSError."""
        return reading.content(self._blob(image_id))

    def manifest(self, image_id: str) -> bytes | None:
        """Return an image's manifest; None when it is not here. Raise OSError."""
        return reading.content(self._image(image_id) / MANIFEST)

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

    def _put_view(self, view: Path, image_id: str) -> None:
        final = self._image(image_id)
        try:
            os.rename(view, final)
        except OSError as error:
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

    def _write_view(self, view: Path, image_id: str, config_bytes: int, layers: tuple[str, ...]) -> None:
        parts = []
        for digest in layers:
            size_bytes = self._archive_bytes(digest)
            if size_bytes is None:
                raise LayerGoneError(
                    f"layer {digest[:19]} of image {image_id[:12]} was not written",
                    where=self._blob(digest),
                )
            parts.append(
                {"mediaType": f"{_DOCKER}.image.rootfs.diff.tar", "size": size_bytes, "digest": digest}
            )
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_DOCKER}.distribution.manifest.v2+json",
            "config": {
                "mediaType": f"{_DOCKER}.container.image.v1+json",
                "size": config_bytes,
                "digest": f"sha256:{image_id}",
            },
            "layers": parts,
        }
        for digest in (image_id, *map(hex_digest, layers)):
            with contextlib.suppress(FileExistsError):  # an image may hold the same layer twice
                os.symlink(f"../../blobs/sha256/{digest}", view / digest)
        (view / "version").write_text(VERSION)
        # Keep the bytes that podman has where the image was built: podman 5's cache identifies a RUN
        # that mounts it by this file's digest (getCreatedBy in buildah's stage_executor.go).
        (view / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))

    def _archive_bytes(self, digest: str) -> int | None:
        """Return the size of a layer as a tar archive, or None if it is in no form here."""
        status = reading.status(self._blob(digest))
        if status is not None:
            return status.st_size
        return self.layer(digest).archive_bytes() or None

    def _stored_bytes(self, digest: str) -> int:
        paths = (self._blob(digest), self.layer(digest).file, self.layer(digest).recipe)
        there = (reading.status(path) for path in paths)
        return sum(status.st_size for status in there if status is not None)

    def parts(self, image_id: str) -> list[dict[str, Any]]:
        """Return the entries of a manifest for the configuration and for each layer, as they are.

        Raise OSError, ValueError, KeyError, TypeError or RecursionError.
        """
        manifest = json.loads((self._image(image_id) / MANIFEST).read_bytes())
        return [manifest["config"], *manifest["layers"]]

    @contextlib.contextmanager
    def writing(self, image_id: str, layers: Iterable[str]) -> Iterator[Path]:
        """Make a temporary directory for a writer of an image, whose parts `doit gc` keeps meanwhile."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.scratch() as scratch:
            # Announce them before checking for them, so that `doit gc` keeps those that exist.
            (scratch / _WANTED).write_text("\n".join((image_id, *map(hex_digest, layers))))
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
        return self.directory / "blobs" / "sha256" / hex_digest(digest)
