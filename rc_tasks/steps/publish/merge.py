"""Publishing by merging: only new layers are squashed, and the image is made of all layers' files.

The data of the layers is copied as it is, and `rc_tasks/squashfs` writes new metadata.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from msgspec import Struct

from rc_tasks.squashfs.data import ChangedLayerError
from rc_tasks.squashfs.edit import Edit
from rc_tasks.squashfs.merge import merge as merge_layers
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import SquashfsError, not_whole
from rc_tasks.squashfs.tree import Layer, Tree
from rc_tasks.squashfs.write import write
from rc_tasks.state.store.block_digest import blocks_digest
from rc_tasks.state.store.layer_files import LayerFiles
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.steps.container import rootfs
from rc_tasks.steps.save import mksquashfs
from rc_tasks.steps.save.layers import Squasher
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Image, Podman

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
    podman: Podman,
    image: Image,
    container: str,
    destination: Path,
    *,
    layers: SquashedLayers,
    make: Callable[..., Command],
    log: IO[bytes] | None,
) -> Tree | None:
    """Merge an image's layers, and what was written in its container, into `destination`.

    Layers without a file in the store, or with a damaged one, get one there. `make` returns mksquashfs
    of a directory into a file.
    Return what was merged, or None if these layers cannot be merged; then the log says why, and nothing
    was written. Raise ArtifactError or CommandError.
    """
    *directories, written = podman.layer_directories(container) or (Path(),)
    if len(directories) != len(image.layers):
        _not_merged("podman's storage has no directory for each layer", log)
        return None
    by_digest = dict(zip(image.layers, directories, strict=True))
    layers.store.sweep()
    squasher = Squasher(layers, make, image.size_bytes, log)
    stacker = _Stacker(squasher)
    with layers.store.writing(image.id, by_digest) as scratch:
        top_file = scratch / "written.sqsh"
        squasher.squash(written, top_file)
        for attempt in range(_ATTEMPTS):
            place = scratch / str(attempt)
            place.mkdir()
            try:
                top = read_layer(top_file)
                stack, new = stacker.stack(by_digest, top, place)
                tree = merge_layers((*(stack[digest] for digest in image.layers), top), _EDIT)
            except SquashfsError as error:
                _not_merged(error.what, log)
                return None
            try:
                copied_bytes = write(tree, destination, made_at=int(time.time())).copied_bytes
            except ChangedLayerError as error:
                mksquashfs.say(log, f"{error.headline}; the layers are read again")
                continue
            copied = f"{copied_bytes / 1e6:.1f} MB copied"
            mksquashfs.say(log, f"merged {len(image.layers)} layers, {new} of them new: {copied}")
            return tree
    _not_merged(f"its layers changed {_ATTEMPTS} times while they were merged", log)
    return None


def _not_merged(why: str, log: IO[bytes] | None) -> None:
    mksquashfs.say(log, f"the image is squashed whole: {why}")


@contextlib.contextmanager
def _reading(stored: Mapping[str, LayerFiles]) -> Iterator[dict[str, Future[Layer]]]:
    """Read and verify layers' files while the body squashes others."""
    stop = threading.Event()

    def go_on(_bytes: int) -> None:
        if stop.is_set():
            raise CancelledError

    with ThreadPoolExecutor(1) as pool:
        try:
            yield {digest: pool.submit(_verified, files, go_on) for digest, files in stored.items()}
        finally:
            stop.set()


def _verified(files: LayerFiles, go_on: Callable[[int], None]) -> Layer:
    """Read a layer whose bytes are those that were written. Raise SquashfsError for any other."""
    layer = read_layer(files.file)
    try:
        record = files.record
        if record is None:
            raise not_whole(files.file, "its record is missing or damaged")
        digest = blocks_digest(str(files.file), go_on)
    except OSError as error:
        raise not_whole(files.file, f"it cannot be read: {error.strerror}") from None
    if digest != record.blocks_digest:
        raise not_whole(files.file, "its bytes have changed since it was written")
    return layer


class _Stacker(Struct, frozen=True):
    """Reads the layers of an image; those that the store lacks are squashed into it."""

    squasher: Squasher

    def stack(
        self, directories: Mapping[str, Path], like: Layer, scratch: Path
    ) -> tuple[dict[str, Layer], int]:
        """Return layers by their digests, and how many of them are new. Raise SquashfsError."""
        find = self.squasher.layers.find
        stored = {digest: files for digest in directories if (files := find(digest))}
        with _reading(stored) as readings:
            lacking = {digest: path for digest, path in directories.items() if digest not in stored}
            new = self.squasher.add(lacking, scratch)
            stack = {
                digest: layer
                for digest, files in stored.items()
                if (layer := self._usable(files, readings[digest], like))
            }
        replaced = {digest: files for digest, files in stored.items() if digest not in stack}
        again = {digest: directories[digest] for digest in replaced}
        new |= self.squasher.add(again, scratch, replaced)
        return stack | {digest: read_layer(file) for digest, file in new.items()}, len(new)

    def _usable(self, files: LayerFiles, reading: Future[Layer], like: Layer) -> Layer | None:
        """Return a layer that can be merged with `like`."""
        try:
            layer = reading.result()
            theirs, ours = layer.source.form, like.source.form
            if (theirs.compressor, theirs.block_size_bytes) == (ours.compressor, ours.block_size_bytes):
                return layer
            why = (
                f"{files.file} has {theirs.compressor} and blocks of {theirs.block_size_bytes} bytes,"
                f" the settings say {ours.compressor} and {ours.block_size_bytes}"
            )
        except SquashfsError as error:
            why = error.headline
        mksquashfs.say(self.squasher.log, f"{why}; this layer is squashed again")
        return None
