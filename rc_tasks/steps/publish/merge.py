"""Publishing by merging: the image is made of the files of its layers in the store, without podman.

The data of the layers is copied as it is, and `rc_tasks/squashfs` writes new metadata. Meanwhile the
bytes of the layers are compared with their digests, and the packages of the image are listed. Layers
that the store lacks, or has with other settings or damaged, are squashed into it from podman's storage
first.
"""

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

from msgspec import Struct

from rc_tasks.errors import ArtifactError
from rc_tasks.model.manifest.manifest import Contents
from rc_tasks.squashfs.data import ChangedLayerError
from rc_tasks.squashfs.edit import Edit, edited
from rc_tasks.squashfs.merge import stack
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import SquashfsError, not_whole
from rc_tasks.squashfs.tree import Directory, Layer, Tree
from rc_tasks.squashfs.write import FullError, write
from rc_tasks.state.store.layer_files import LayerFiles
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.steps.container import rootfs
from rc_tasks.steps.publish import enroot_tree
from rc_tasks.steps.publish.contents import ContentsWalk
from rc_tasks.steps.publish.image_files import MergedFiles
from rc_tasks.steps.save import mksquashfs
from rc_tasks.steps.save.layers import Squasher
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Image

# The same changes as with mksquashfs on the mounted image (`rootfs.ACTIONS`).
_EDIT = Edit(
    drop=rootfs.EXCLUDE,
    owner_reads=True,
    owner_writes_depth=rootfs.WRITABLE_DEPTH,
    all_root=True,
    xattrs=False,
)
# Another node, or `doit gc`, may take a layer away while it is copied.
_ATTEMPTS = 3


def merge(
    image: Image,
    destination: Path,
    *,
    layers: SquashedLayers,
    directories: Callable[[], Mapping[str, Path]],
    make: partial[Command],
    wrap: Callable[[Command], Command],
    provenance: tuple[str, ...],
    log: IO[bytes] | None = None,
) -> Contents | None:
    """Merge an image's layers, and what Enroot needs, into `destination`.

    `directories` loads the image into podman's storage, and returns the directories of its layers there
    by diff ID; it is called if a layer has to be squashed. `make` and `wrap` are those of `Squasher`,
    with the compressor and the block size that the image shall have. `provenance` lines go to the
    beginning of /etc/rc.
    Return what is in the image, or None if these layers cannot be merged; then the log says why, and
    nothing was written. Raise ArtifactError or CommandError.
    """
    layers.store.sweep()
    stacker = _Stacker(Squasher(layers, make, image.size_bytes, log, wrap=wrap), directories)
    # The cyclic garbage collector looks at the inodes of an image again and again, and frees nothing.
    with layers.store.writing(image.id, image.layers) as scratch, _without_garbage_collection():
        for attempt in range(_ATTEMPTS):
            place = scratch / str(attempt)
            place.mkdir()
            try:
                with stacker.stack(image.layers, place) as stacked:
                    tree = stack(stacked.layers)
                    contents = place / "contents"
                    like = stacked.layers[0].source
                    root = enroot_tree.add(tree.root, image, provenance, like, contents)
                    tree = Tree(tree.form, edited(root, _EDIT))
                    with _listing(tree.root) as listed:
                        copied_bytes = write(tree, destination, made_at=int(time.time())).copied_bytes
                        stacked.require_verified()
                        listed_contents = listed.result()
            except (ChangedLayerError, _DamagedLayerError) as error:
                destination.unlink(missing_ok=True)
                mksquashfs.say(log, f"{error.headline}; the layers are read again")
                continue
            except FullError as error:
                # Nor is there space for the image squashed whole.
                raise ArtifactError(
                    error.what,
                    where=destination.parent,
                    hint="free space or ask for more quota there, then run again;\n"
                    "the image that was there before is untouched",
                ) from None
            except SquashfsError as error:
                destination.unlink(missing_ok=True)
                mksquashfs.say(log, f"the image is squashed whole: {error.what}")
                return None
            copied = f"{copied_bytes / 1e6:.1f} MB copied"
            new = f", {stacked.new} of them squashed now" if stacked.new else ""
            mksquashfs.say(log, f"merged {len(image.layers)} layers{new}: {copied}")
            return listed_contents
    why = f"its layers changed {_ATTEMPTS} times while they were merged"
    mksquashfs.say(log, f"the image is squashed whole: {why}")
    return None


class _DamagedLayerError(SquashfsError):
    """The file of a layer has other bytes than when it was written."""


class _Stacked(Struct, frozen=True):
    """An image's layers, lowest first, and how many of them were squashed now.

    `readings` return whether the files of the others, by diff ID, have the bytes that were written.
    `damaged` gets the diff IDs of those that have not.
    """

    layers: tuple[Layer, ...]
    new: int
    stored: Mapping[str, LayerFiles]
    readings: Mapping[str, Future[bool]]
    damaged: set[str]

    def require_verified(self) -> None:
        """Raise _DamagedLayerError if a layer is damaged; the next attempt replaces it."""
        for digest, reading in self.readings.items():
            if not reading.result():
                self.damaged.add(digest)
        for digest in self.damaged & self.readings.keys():
            raise _DamagedLayerError(
                "its bytes have changed since it was written", where=self.stored[digest].file
            )


class _Stacker:
    """Reads the layers of an image; those that the store lacks are squashed into it."""

    def __init__(self, squasher: Squasher, directories: Callable[[], Mapping[str, Path]]) -> None:
        self._squasher = squasher
        self._directories = directories
        self._damaged: set[str] = set()

    @contextlib.contextmanager
    def stack(self, digests: tuple[str, ...], scratch: Path) -> Iterator[_Stacked]:
        """Return the layers; their bytes are compared with their digests while the body runs.

        Raise SquashfsError if a layer is neither in the store nor in podman's storage.
        """
        find = self._squasher.layers.find
        stored = {digest: files for digest in digests if (files := find(digest))}
        with _verifying(stored) as readings:
            usable = {
                digest: layer
                for digest, files in stored.items()
                if (layer := self._usable(digest, files))
            }
            lacking = [digest for digest in dict.fromkeys(digests) if digest not in usable]
            if lacking:
                there = self._directories()
                if not all(digest in there for digest in lacking):
                    raise SquashfsError("podman's storage has no directory for each layer")
                replaced = {digest: stored[digest] for digest in lacking if digest in stored}
                new = {digest: there[digest] for digest in lacking}
                for digest, file in self._squasher.add(new, scratch, replaced).items():
                    usable[digest] = read_layer(file)
            layers = tuple(usable[digest] for digest in digests)
            used = {digest: readings[digest] for digest in stored if digest not in lacking}
            yield _Stacked(layers, len(lacking), stored, used, self._damaged)

    def _usable(self, digest: str, files: LayerFiles) -> Layer | None:
        """Return a layer if it is whole and has the wanted compressor and block size."""
        options = self._squasher.make.keywords
        compressor, block_bytes = options["compression"], options["block_size_bytes"]
        if digest in self._damaged:
            return None
        try:
            if files.record is None:
                raise not_whole(files.file, "its record is missing or damaged")
            layer = read_layer(files.file)
            form = layer.source.form
            if (form.compressor, form.block_size_bytes) == (compressor, block_bytes):
                return layer
            why = (
                f"{files.file} has {form.compressor} and blocks of {form.block_size_bytes} bytes,"
                f" the settings say {compressor} and {block_bytes}"
            )
        except SquashfsError as error:
            self._damaged.add(digest)
            why = error.headline
        mksquashfs.say(self._squasher.log, f"{why}; this layer is squashed again")
        return None


@contextlib.contextmanager
def _verifying(stored: Mapping[str, LayerFiles]) -> Iterator[dict[str, Future[bool]]]:
    """Compare the bytes of layers with their digests while the body runs."""
    stop = threading.Event()

    def go_on(_bytes: int) -> None:
        if stop.is_set():
            raise CancelledError

    def is_whole(files: LayerFiles) -> bool:
        try:
            return files.is_as_written(go_on)
        except OSError:
            return False

    with ThreadPoolExecutor(1) as pool:
        try:
            yield {digest: pool.submit(is_whole, files) for digest, files in stored.items()}
        finally:
            stop.set()


@contextlib.contextmanager
def _listing(root: Directory) -> Iterator[Future[Contents]]:
    """List what is in a merged tree while the body runs."""
    stop, walk = threading.Event(), ContentsWalk()

    def run() -> Contents:
        with MergedFiles(root) as files:
            walk.run(files, stop)
        return walk.contents

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(run)
        finally:
            stop.set()


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
