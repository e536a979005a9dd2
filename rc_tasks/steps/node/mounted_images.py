"""Images of the store on a node without loading them: their squashed layers are mounted.

Loading takes the node's memory and time for each layer of a base; a mount takes neither. root mounts
with loop devices, an ordinary user with squashfuse in podman's user namespace. The mounts are in a mount
namespace of the step's own, so none is left, however the step ends. Where nothing can be mounted, the
layers are unpacked (`unpacked_images.py`). An image whose layers are not all squashed is loaded.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct, field

from rc_tasks.errors import ArtifactError, CommandError
from rc_tasks.model.config.settings import MountMode, Settings
from rc_tasks.squashfs.reader_kinds import Readers
from rc_tasks.squashfs.superblock import SquashfsError, inspect
from rc_tasks.state.adoption.official import official_of, squashed_layers
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.reading import names, status
from rc_tasks.state.disk.trust import NotOfferedError
from rc_tasks.state.store.layer_files import LayerFiles
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.node import podman_storage, unpacked_images
from rc_tasks.tools import additional_store, command
from rc_tasks.tools.additional_store import ArchiveRecipe, StoredImage
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman, rootless

# Lines of FILE and DIRECTORY as arguments; what is mounted stays so if a later one fails.
_MOUNT = 'while [ $# -gt 0 ]; do mount -t squashfs -o loop,ro "$1" "$2" || exit; shift 2; done'
_MOUNT_FUSE = 'while [ $# -gt 1 ]; do "$0" -o ro "$1" "$2" || exit; shift 2; done'
_DAMAGED = (
    "`doit verify --all` names what is damaged, and how to make it again;\nthen run this in a new job"
)
# How programs print that a file cannot be read, or die of a page of it that cannot be loaded.
_UNREAD = re.compile(r"input/output error|bus error|\berrno 5\b|\bEIO\b", re.IGNORECASE)
_UNMOUNT = 'for each; do umount --lazy "$each"; done'


class _Readings(Struct):
    """Comparisons of mounted layers with their digests, by diff ID, which run while podman builds."""

    pool: ThreadPoolExecutor
    stop: threading.Event
    files: dict[str, LayerFiles] = field(default_factory=dict)
    right: dict[str, Future[bool]] = field(default_factory=dict)

    def begin(self, diff_id: str, files: LayerFiles) -> None:
        if diff_id in self.right:
            return
        # What is mounted may be replaced in the store meanwhile: this is the file that is mounted.
        descriptor = os.open(files.file, os.O_RDONLY)
        self.files[diff_id] = files
        self.right[diff_id] = self.pool.submit(self._is_right, files, descriptor)

    def _is_right(self, files: LayerFiles, descriptor: int) -> bool:
        try:
            return files.is_as_written(self._go_on, f"/proc/self/fd/{descriptor}")
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def _go_on(self, _bytes: int) -> None:
        if self.stop.is_set():
            raise CancelledError


# Those of this step, if it builds.
_readings: list[_Readings] = []


@contextlib.contextmanager
def comparing() -> Iterator[None]:
    """Compare the layers that are mounted in the body with their digests, beside it.

    `damaged` waits for the results.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        _readings.append(_Readings(pool, stop))
        try:
            yield
        finally:
            _readings.pop()
            stop.set()


def damaged(checkout: Checkout) -> dict[str, ArtifactError]:
    """Return the errors of the layers that were mounted in `comparing` and are damaged, by diff ID.

    The kernel does not notice damage in what is not compressed: RUN may have copied it to a new layer,
    which no digest shows later.
    """
    errors = {}
    for readings in _readings:
        for diff_id, right in readings.right.items():
            if not right.result():
                files = readings.files[diff_id]
                why = _damage(files)
                if not why.startswith("has other"):
                    # It was replaced or removed since.
                    why = "had other content when it was mounted"
                errors[diff_id] = _damaged(checkout, files, why)
    return errors


@contextlib.contextmanager
def available(checkout: Checkout) -> Iterator[Podman]:
    """Let podman mount images during a step, if the settings want it; return podman.

    Call it in `nodes.prepared`, whose temporary directory holds the mount points. It removes the
    containers of killed steps: podman cannot list those on mounted images before it knows the images.
    """
    storage = podman_storage.directory(checkout.settings.podman)
    with contextlib.ExitStack() as stack:
        if storage is not None and _wanted(checkout.settings, storage):
            _begin(checkout, stack, storage)
        engine = nodes.storage(checkout.settings.podman)
        stack.enter_context(nodes.cleared(engine))
        yield engine


def _begin(checkout: Checkout, stack: contextlib.ExitStack, storage: Path) -> None:
    engine = nodes.storage(checkout.settings.podman)
    why = _lacking()
    if not why:
        try:
            images = stack.enter_context(nodes.mounting_images(engine))
        except CommandError as error:
            why = error.what
    if why:
        print(f"layers are unpacked, as they cannot be mounted here: {why}", flush=True)
        stack.enter_context(nodes.unpacking_images(engine))
        return
    find = squashed_layers(checkout).find
    # What earlier steps built is built on images that they had mounted.
    for image_id in names(podman_storage.images(storage)):
        if image := stored_image(checkout, image_id):
            _add(images, engine, image, map(find, image.diff_ids))


def mount(checkout: Checkout, podman: Podman, image_ids: Iterable[str]) -> None:
    """Mount those images whose layers are all squashed, from this store or the official one; say which.

    Of an image that podman has built on mounted layers, these are mounted. What cannot be mounted is
    left to be loaded; a message says why, unless a layer is not squashed yet.
    """
    images = nodes.mounted_images()
    if images is None:
        return
    seen = podman_storage.mounted(Path(podman.root).parent)
    if additional_store.option(seen) not in podman.options:
        return
    find = squashed_layers(checkout).find
    # What podman has is unpacked already.
    for image_id in podman.lacking(image_ids) if images == seen else dict.fromkeys(image_ids):
        image = stored_image(checkout, image_id)
        if image is None:
            continue
        known = additional_store.known_layers(images, image.diff_ids)
        by_id = dict(zip(additional_store.layer_ids(image.diff_ids), image.diff_ids, strict=True))
        stored = {diff_id: find(diff_id) for diff_id in image.diff_ids}
        files = {layer_id: _mountable(podman, stored[diff_id]) for layer_id, diff_id in by_id.items()}
        whole = bool(files) and None not in files.values()
        if images == seen:
            if whole:
                _unpack(podman, images, image, files, _recipes(stored.values()))
            continue
        if known and any(files[layer_id] is None for layer_id in known):
            raise _lost(checkout, image_id, "a layer that was mounted here before is gone or damaged")
        try:
            layers = files if whole else dict.fromkeys(known)
            _compare({by_id[key]: stored[by_id[key]] for key in layers})
            _mount(images, seen, {key: file for key in layers if (file := files[key]) is not None})
        except (CommandError, SquashfsError) as error:
            if known:
                # podman counts on these layers: it would not load them, and fail in its own words.
                raise _lost(checkout, image_id, error.what) from None
            print(f"{image_id[:12]} cannot be mounted, so it is loaded: {error.what}", flush=True)
            continue
        if whole and image.id not in additional_store.image_ids(images):
            _add(images, podman, image, stored.values())
            registered = podman_storage.images(Path(podman.root).parent)
            registered.mkdir(exist_ok=True)
            (registered / image.id).touch()
            print(f"mounted {image.id[:12]}: {len(files)} layers", flush=True)


def _compare(stored: Mapping[str, LayerFiles | None]) -> None:
    for readings in _readings:
        for diff_id, files in stored.items():
            if files is not None:
                with contextlib.suppress(OSError):  # then it cannot be mounted either
                    readings.begin(diff_id, files)


def unread(checkout: Checkout, bases: Mapping[str, str], lines: Iterable[str]) -> ArtifactError | None:
    """Return the error for a mounted layer that is damaged, if a build's lines are about one, else None.

    `bases` maps the names of images to their IDs; the layer may also be one of the cache.
    """
    images = nodes.mounted_images()
    if images is None or not any(_UNREAD.search(line) for line in lines):
        return None
    find = squashed_layers(checkout).find
    named = {f"image {image_id[:12]}": image_id for image_id in additional_store.image_ids(images)}
    for name, image_id in {**bases, **named}.items():
        image = stored_image(checkout, image_id)
        diff_ids = image.diff_ids if image is not None else ()
        for diff_id, layer_id in zip(diff_ids, additional_store.layer_ids(diff_ids), strict=True):
            is_mounted = additional_store.mount_point(images, layer_id).exists()
            files = find(diff_id) if is_mounted else None
            if files is not None and (why := _damage(files)):
                return ArtifactError(
                    f"a layer of {name} could not be read: {checkout.shown(files.file)} ({why})",
                    where=nodes.this_node().name,
                    hint=_DAMAGED,
                )
    return None


def _unpack(
    podman: Podman,
    images: Path,
    image: StoredImage,
    files: Mapping[str, Path | None],
    recipes: Mapping[str, ArchiveRecipe],
) -> None:
    whole = {layer_id: file for layer_id, file in files.items() if file is not None}
    try:
        for file in whole.values():
            _require_written(LayerFiles(file.parent))
        if unpacked_images.unpack(podman, images, image, whole, recipes):
            print(f"unpacked {image.id[:12]}: {len(whole)} layers", flush=True)
    except CommandError as error:
        print(f"{image.id[:12]} cannot be unpacked, so it is loaded: {error.what}", flush=True)


def _require_written(files: LayerFiles) -> None:
    # unsquashfs does not notice damage in what is not compressed; loading does, and removes the layer.
    if not files.is_as_written(lambda _bytes: None):
        raise CommandError(f"{files.file} has other content than was written")


def _recipes(layers: Iterable[LayerFiles | None]) -> dict[str, ArchiveRecipe]:
    """Return the recipes of layers, by diff ID."""
    return {
        f"sha256:{files.directory.name}": ArchiveRecipe(files.recipe, archive_bytes)
        for files in layers
        if files is not None and (archive_bytes := files.archive_bytes())
    }


def _damage(files: LayerFiles) -> str:
    try:
        return files.damage()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def require_whole(checkout: Checkout, podman: Podman, directories: Mapping[str, Path]) -> None:
    """Compare the files of layers that are mounted here with their digests, before they are squashed.

    podman compares what it loads, and the kernel what is compressed. `directories` are podman's by diff
    ID. Raise ArtifactError: podman may have built on a damaged one, which cannot be replaced here then.
    """
    find = squashed_layers(checkout).find
    for diff_id, directory in directories.items():
        is_mounted = podman_storage.is_mounted_image(podman, directory)
        files = find(diff_id) if is_mounted else None
        if files is not None and (why := _damage(files)):
            raise _damaged(checkout, files, why)
        if is_mounted and files is None:
            raise _damaged(checkout, checkout.store.layer(diff_id), "is gone from the store")


def _damaged(checkout: Checkout, files: LayerFiles, why: str) -> ArtifactError:
    return ArtifactError(
        f"a layer that is mounted here is damaged: it {why}",
        where=checkout.shown(files.file),
        hint=_DAMAGED,
    )


def _add(images: Path, podman: Podman, image: StoredImage, layers: Iterable[LayerFiles | None]) -> None:
    root = Path(podman.root)
    additional_store.add_image(images, image, _recipes(layers))
    additional_store.link_layers(images, podman_storage.mounted(root.parent), root)


def _lost(checkout: Checkout, image_id: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"image {image_id[:12]}, on which this node has built before, cannot be mounted again: {why}",
        where=checkout.shown(checkout.store.directory),
        hint=_DAMAGED,
    )


def _mountable(podman: Podman, files: LayerFiles | None) -> Path | None:
    """Return the file of a layer if podman's overlay shows what it deletes."""
    record = files.record if files is not None else None
    if files is None or record is None:
        return None
    if record.archive_bytes and status(files.recipe) is None:
        return None  # podman could not save what is built on it; loading finds that, and removes it
    able = {Readers.EVERYBODY}
    if not any("mount_program" in option for option in podman.options):
        able.add(Readers.USERS if rootless() else Readers.ROOT)
    return files.file if record.readers in able else None


def described(settings: Settings) -> tuple[str, str]:
    """Return how bases get into podman's storage on this node, and what would make that faster."""
    storage = podman_storage.directory(settings.podman)
    if storage is None or not _asked(settings, storage):
        return "bases are loaded into podman's storage", ""
    if why := _unable(settings, storage):
        return f"bases are loaded into podman's storage: {why}", "with it, they would be mounted at once"
    if why := _lacking():
        return (
            f"the layers of bases are unpacked into podman's storage: {why}",
            "with it, they would be mounted at once, and take no memory",
        )
    by = Path(str(_squashfuse())).name if rootless() else "loop devices"
    return f"the layers of bases are mounted ({by}); what is not squashed yet is loaded", ""


def _wanted(settings: Settings, storage: Path) -> bool:
    return _asked(settings, storage) and not _unable(settings, storage)


def _asked(settings: Settings, storage: Path) -> bool:
    """Return whether the settings want images to be mounted."""
    mode = settings.store.mount
    if mode is MountMode.NEVER or not settings.store.enabled:
        return False
    # Another storage may outlive the node's memory, so that images are loaded into it once.
    return mode is MountMode.ALWAYS or storage == podman_storage.of_this_job(settings.podman)


def _unable(settings: Settings, storage: Path) -> str:
    """Return why layers can be neither mounted nor unpacked on this node, or an empty string."""
    if podman_storage.driver(settings.podman, storage).name != "overlay":
        return "the storage driver is not overlay"
    return _lacking() if not unpacked_images.possible() else ""


def _lacking() -> str:
    """Return what is missing on this node for mounting images, or an empty string."""
    if not rootless():
        return ""
    if _squashfuse() is None:
        return "neither squashfuse_ll nor squashfuse was found on PATH"
    return "" if podman_storage.can_use_fuse() else "/dev/fuse cannot be used"


def _squashfuse() -> str | None:
    return command.which("squashfuse_ll") or command.which("squashfuse")


def _mount(images: Path, seen: Path, files: Mapping[str, Path]) -> None:
    """Mount the files of layers, by the IDs of the layers, as far as they are not mounted yet."""
    new = {
        layer_id: file
        for layer_id, file in files.items()
        if not additional_store.mount_point(images, layer_id).exists()
    }
    for file in new.values():
        inspect(file)
    if not new:
        return
    # Without its directory a layer that is not mounted is an error of podman's, never an empty layer.
    for layer_id in new:
        additional_store.mount_point(images, layer_id).mkdir(parents=True)
    mounting = (_MOUNT_FUSE, str(_squashfuse())) if rootless() else (_MOUNT, "sh")
    pairs = ((str(file), str(additional_store.mount_point(seen, key))) for key, file in new.items())
    argv = ("sh", "-c", *mounting, *itertools.chain.from_iterable(pairs))
    try:
        _run(Command(argv, through=nodes.entering(processes=True)))
    except BaseException:
        _unmount(images, seen, new)
        raise


def _run(mount_all: Command) -> None:
    done = command.capture(mount_all, check=False)
    if done.returncode != 0:
        # The command holds all layers; what is printed first says which of them, and why.
        raise CommandError(next(iter(done.stderr.splitlines()), command.ending(done.returncode)))


def _unmount(images: Path, seen: Path, layer_ids: Iterable[str]) -> None:
    """Unmount layers as far as they are mounted, and remove their mount points."""
    layer_ids = tuple(layer_ids)
    places = (str(additional_store.mount_point(seen, layer_id)) for layer_id in layer_ids)
    unmount = Command(("sh", "-c", _UNMOUNT, "sh", *places), through=nodes.entering())
    command.capture(unmount, check=False)
    for layer_id in layer_ids:
        place = additional_store.mount_point(images, layer_id)
        # It stays if it could not be unmounted.
        with contextlib.suppress(OSError):
            place.rmdir()
            # podman would load a layer of this ID into the directory. It is not empty if podman knows
            # the layer.
            place.parent.rmdir()


def stored_image(checkout: Checkout, image_id: str) -> StoredImage | None:
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
