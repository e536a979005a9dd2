"""Built images on the shared file system, so that no node's podman has to keep them.

    store/blobs/sha256/DIGEST    layers (uncompressed: the digest is the diff ID) and configurations
    store/images/IMAGE_ID/       skopeo's `dir:` form: manifest.json, and links to the blobs

The manifest is Docker's, not OCI's: an OCI layout would convert the configuration, which loses SHELL
and HEALTHCHECK and gives the image another ID (seen with skopeo 1.9.3).
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.errors import ArtifactError
from rc_tasks.tools import command, skopeo
from rc_tasks.tools.podman import Image, Podman

_MANIFEST = "manifest.json"
_DOCKER = "application/vnd.docker"


@dataclass(frozen=True, slots=True)
class Store:
    """The image store of one checkout."""

    directory: Path

    def has(self, image_id: str) -> bool:
        """Whether the image is here; one `stat`."""
        return os.path.exists(f"{self.directory}/images/{image_id}/{_MANIFEST}")

    def put(self, podman: Podman, image: Image) -> None:
        """Bring an image in from a podman storage; layers that are here already are not copied."""
        if self.has(image.id):
            return
        blobs = self.directory / "blobs"
        images = self.directory / "images"
        for directory in (blobs / "sha256", images):
            directory.mkdir(parents=True, exist_ok=True)
        self.sweep()
        source = podman.storage_reference(image.id)
        with tempfile.TemporaryDirectory(prefix=".put.", dir=self.directory) as scratch:
            # An intermediate image has no layer that the one built on it has not.
            if any(not self._blob(_hex(layer)).exists() for layer in image.layers):
                layout = Path(scratch) / "layout"
                _copy(skopeo.copy_to_layout(source, layout, blobs), to=self.directory)
            config = skopeo.raw_config(source).encode()
            if hashlib.sha256(config).hexdigest() != image.id:
                raise ArtifactError(
                    f"podman gives image {image.id[:12]} a configuration with another digest",
                    hint="`podman system reset` on that node, then build again",
                )
            blob = Path(scratch) / "config"
            blob.write_bytes(config)
            os.replace(blob, self._blob(image.id))
            # Not of TemporaryDirectory's mode 0700: others read the store.
            view = Path(scratch) / "view"
            view.mkdir()
            self._write_view(view, image, len(config))
            # Another node may have been quicker with the same image: then there is nothing left to do.
            with contextlib.suppress(OSError):
                os.rename(view, self._image(image.id))
        if not self.has(image.id):
            raise ArtifactError(f"cannot write image {image.id[:12]} to the store", where=images)

    def bring(self, podman: Podman, image_id: str) -> bool:
        """Make sure that a podman storage holds the image; false when it is neither there nor here.

        Raises ArtifactError when a part of it is missing here; the image then counts as not here.
        """
        if podman.exists(image_id):
            return True
        if not self.has(image_id):
            return False
        self._require_whole(image_id)
        copy = skopeo.copy_from_directory(self._image(image_id), podman.storage_reference(image_id))
        _copy(copy, to=podman.root or "podman's storage")
        return podman.exists(image_id)

    def sweep(self) -> None:
        """Remove what killed writers left, once it is a day old."""
        for left in self.directory.glob(".put.*"):
            with contextlib.suppress(OSError):
                if left.stat().st_mtime < self.directory.stat().st_mtime - 86_400:
                    shutil.rmtree(left)

    def _require_whole(self, image_id: str) -> None:
        view = self._image(image_id)
        manifest = json.loads((view / _MANIFEST).read_bytes())
        for part in (manifest["config"], *manifest["layers"]):
            blob = self._blob(_hex(part["digest"]))
            if blob.exists() and blob.stat().st_size == part["size"]:
                continue
            # Gone with its manifest, the image is stale: the next run builds it instead of failing here.
            shutil.rmtree(view, ignore_errors=True)
            blob.unlink(missing_ok=True)
            raise ArtifactError(
                f"image {image_id[:12]} in the store lacks a part or has one that was cut short",
                where=blob,
                hint="run the same command again: it builds that image anew",
            )

    def _write_view(self, view: Path, image: Image, config_size_bytes: int) -> None:
        layers = []
        for digest in image.layers:
            blob = self._blob(_hex(digest))
            try:
                size_bytes = blob.stat().st_size
            except FileNotFoundError:
                raise ArtifactError(
                    f"skopeo did not write layer {digest[:19]} of image {image.id[:12]}", where=blob
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
        # skopeo reads a directory as an image when this line stands in it (containers-transports(5)).
        (view / "version").write_text("Directory Transport Version: 1.1\n")
        (view / _MANIFEST).write_text(json.dumps(manifest))

    def _image(self, image_id: str) -> Path:
        return self.directory / "images" / image_id

    def _blob(self, digest: str) -> Path:
        return self.directory / "blobs" / "sha256" / digest


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _copy(wanted: command.Command, *, to: object) -> None:
    done = command.capture(wanted, check=False)
    if done.returncode == 0:
        return
    lines = done.stderr.splitlines()
    if any(words in done.stderr for words in ("no space left on device", "disk quota exceeded")):
        raise ArtifactError(
            "no space left while copying an image",
            where=to,
            quote=tuple(lines[-1:]),
            hint="free space or ask for more quota there, then run the same command again",
        )
    raise command.failure(wanted, done.returncode, lines)
