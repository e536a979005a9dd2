"""Images of the store on a node without loading them: their squashed layers are mounted.

Loading takes the node's memory and time for each layer of a base; a mount takes neither. The mounts
belong to podman's private storage on the node and end with it. An image whose layers are not all
squashed yet is loaded.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rc_tasks.errors import CommandError
from rc_tasks.model.config.settings import MountMode, Settings
from rc_tasks.squashfs.superblock import SquashfsError, inspect
from rc_tasks.state.adoption.official import official_of, squashed_layers
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.trust import NotOfferedError
from rc_tasks.steps.node import podman_storage
from rc_tasks.tools import additional_store, command, skopeo
from rc_tasks.tools.additional_store import StoredImage
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman, rootless

# Beside a layer's mount point: the file that is mounted there.
_SOURCE = "source"


def prepare(settings: Settings) -> None:
    """Make podman's storage on this node ready for mounted images, if the settings want them.

    Layers that a reboot has unmounted are mounted again. Raise CommandError if one cannot be.
    """
    storage = podman_storage.directory(settings.podman)
    if storage is None or not _wanted(settings, storage):
        return
    images = podman_storage.images(storage)
    if not additional_store.exists(images):
        additional_store.create(images)
    with _locked(images):
        for place in additional_store.mount_points(images):
            if not os.path.ismount(place):
                _mount(Path((place.parent / _SOURCE).read_text()), place)


def mount(checkout: Checkout, podman: Podman, image_ids: Iterable[str]) -> None:
    """Mount those images whose layers are all squashed, from this store or the official one; say which.

    What cannot be mounted is left to be loaded; a message says why, unless a layer is not squashed yet.
    """
    images = podman_storage.images(Path(podman.root).parent) if podman.root else None
    if images is None or additional_store.option(images) not in podman.options:
        return
    find = squashed_layers(checkout).find
    with _locked(images):
        for image_id in dict.fromkeys(image_ids):
            if additional_store.has_image(images, image_id):
                continue
            image = _stored(checkout, image_id)
            files = list(map(find, image.diff_ids)) if image is not None else []
            if image is None or not files or None in files:
                continue
            try:
                _add(images, image, [file for file in files if file is not None])
            except (CommandError, SquashfsError) as error:
                print(f"{image_id[:12]} cannot be mounted, so it is loaded: {error.what}", flush=True)


def _wanted(settings: Settings, storage: Path) -> bool:
    mode = settings.store.mount
    if mode is MountMode.NEVER or not settings.store.enabled or rootless():
        return False
    # podman itself can only write all layers of an image, and lacks what it needs for mounted ones.
    if not skopeo.available():
        return False
    if podman_storage.driver(settings.podman, storage).name != "overlay":
        return False
    # Another storage may outlive the node's memory, so that images are loaded into it once.
    return mode is MountMode.ALWAYS or storage == podman_storage.of_this_job(settings.podman)


def _add(images: Path, image: StoredImage, files: list[Path]) -> None:
    for layer_id, file in zip(additional_store.layer_ids(image.diff_ids), files, strict=True):
        place = additional_store.mount_point(images, layer_id)
        if not os.path.ismount(place):
            inspect(file)
            place.mkdir(parents=True, exist_ok=True)
            (place.parent / _SOURCE).write_text(str(file))
            _mount(file, place)
    additional_store.add_layers(images, image.diff_ids)
    additional_store.add_image(images, image)
    print(f"mounted {image.id[:12]}: {len(files)} layers", flush=True)


def _mount(file: Path, place: Path) -> None:
    command.capture(Command(("mount", "-t", "squashfs", "-o", "loop,ro", str(file), str(place))))


def _stored(checkout: Checkout, image_id: str) -> StoredImage | None:
    """Return an image of this store or the official one; None if there is none, or a damaged one."""
    store, official = checkout.store, official_of(checkout)
    try:
        if not store.has(image_id) and official is not None and official.has(image_id):
            store = official.store
        config, manifest = store.config(image_id), store.manifest(image_id)
        if config is None or manifest is None or hashlib.sha256(config).hexdigest() != image_id:
            return None
        diff_ids = tuple(map(str, json.loads(config)["rootfs"]["diff_ids"]))
    except (NotOfferedError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return StoredImage(image_id, config, manifest, diff_ids)


@contextlib.contextmanager
def _locked(images: Path) -> Iterator[None]:
    """Let one step at a time change the mounted images; the lock is local to the node."""
    with (images / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
