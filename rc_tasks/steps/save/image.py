"""An image in podman's storage, saved in the store."""

import contextlib
import hashlib
import os
from pathlib import Path

from rc_tasks.errors import ArtifactError
from rc_tasks.model.config.settings import Squash
from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.state.store.layer_files import hex_digest
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.loading import failure
from rc_tasks.state.store.store import LayerGoneError, Store
from rc_tasks.steps.node import podman_storage
from rc_tasks.steps.save.layers import Squasher, in_namespace, options
from rc_tasks.tools import command
from rc_tasks.tools.podman import Image, Podman


def save(
    podman: Podman,
    image: Image,
    layers: SquashedLayers,
    settings: Squash,
    *,
    beside: Store | None = None,
) -> None:
    """Save an image in the store of `layers`; each layer is squashed once.

    Layers that the store `beside`, or the official one of `layers`, has become symlinks to it. When such
    a link breaks, the image counts as damaged. Raise ArtifactError or CommandError.
    """
    store = layers.store
    store.sweep()
    if store.use(image.id):
        return
    with store.writing(image.id, image.layers) as scratch:
        for digest in dict.fromkeys(image.layers):
            layers.link_official(digest)
            if beside is not None and not store.has_layer(digest):
                _link_blob(store, beside, digest)
        for last in (False, True):
            pushed = scratch / f"pushed.{last}"
            _put_layers(podman, image, layers, settings, scratch, pushed)
            config = _config(podman, image, pushed)
            try:
                store.put_image(image.id, config, image.layers, scratch)
                break
            except LayerGoneError:
                # `doit gc` may have moved a layer away for a moment.
                if last:
                    raise


def _link_blob(store: Store, beside: Store, digest: str) -> None:
    if beside.blob(digest).exists():
        store.blob(digest).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(beside.blob(digest), store.blob(digest))


def _put_layers(
    podman: Podman, image: Image, layers: SquashedLayers, settings: Squash, scratch: Path, pushed: Path
) -> None:
    """Put the layers that the store lacks there: squashed, or as podman writes them."""
    store = layers.store
    missing = [digest for digest in dict.fromkeys(image.layers) if not store.has_layer(digest)]
    if missing and command.which("mksquashfs") is not None:
        directories = podman.layer_directories(image)
        lacking = [digest for digest in missing if digest in directories and not layers.find(digest)]
        # Its mount may show what is damaged, and a file that is made of that gets a record of its own.
        for digest in lacking:
            if podman_storage.is_mounted_image(podman, directories[digest]):
                raise ArtifactError(
                    "a layer that is mounted here was removed from the store while podman built on it",
                    where=store.layer(digest).file,
                    hint="run the same command again, in a new job",
                )
        if new := {digest: directories[digest] for digest in lacking}:
            make, wrap = options(settings, None), in_namespace(podman)
            squasher = Squasher(layers, make, image.size_bytes, None, draws=False, wrap=wrap)
            try:
                files = squasher.add(new, scratch)
            except SquashfsError as error:
                # Such as lzo: nothing here could read these files again.
                print(f"layers are stored as archives: {error.what}", flush=True)
            else:
                size_bytes = sum(file.stat().st_size for file in files.values())
                noun = "layer" if len(files) == 1 else "layers"
                print(f"saved in the store: {len(files)} {noun}, {size_bytes / 1e6:.1f} MB", flush=True)
    missing = [digest for digest in missing if not store.has_layer(digest)]
    if missing:
        _push(podman, image, pushed)
    for digest in missing:
        store.put_blob(digest, pushed / hex_digest(digest))


def _config(podman: Podman, image: Image, pushed: Path) -> bytes:
    config = podman.config(image.id)
    if config is None:
        _push(podman, image, pushed)
        config = (pushed / image.id).read_bytes()
    if hashlib.sha256(config).hexdigest() != image.id:
        raise ArtifactError(
            f"podman gives image {image.id[:12]} a configuration with another digest",
            hint="`podman system reset` on that node, then build again",
        )
    return config


def _push(podman: Podman, image: Image, pushed: Path) -> None:
    if not pushed.exists():
        done = command.capture(podman.push_directory(image.id, pushed), check=False)
        if done.returncode != 0:
            raise failure(done, pushed)
