"""Publishing by merging: only new layers are squashed, and the image is made of all layers' files.

The data of the layers is copied as it is, and `rc_tasks/squashfs` writes new metadata.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rc_tasks.errors import ArtifactError
from rc_tasks.squashfs import superblock
from rc_tasks.squashfs.data import ChangedLayerError
from rc_tasks.squashfs.edit import Edit
from rc_tasks.squashfs.merge import merge as merge_layers
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.readers import readers
from rc_tasks.squashfs.superblock import SquashfsError, not_whole
from rc_tasks.squashfs.tree import Layer, Tree
from rc_tasks.squashfs.write import write
from rc_tasks.state.store.block_digest import blocks_digest
from rc_tasks.state.store.layers import LayerRecord, SquashedLayers, damage
from rc_tasks.steps.container import rootfs
from rc_tasks.steps.publish import mksquashfs
from rc_tasks.tools import command, squashfs
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
# So many layers are squashed at once: each mksquashfs uses all CPUs, but reads with one thread.
_AT_ONCE = 4
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
    squasher = _Squasher(layers, make, image.size_bytes, log)
    with layers.store.writing(image.id, by_digest) as scratch:
        top_file = scratch / "written.sqsh"
        squasher.squash({top_file: written})
        for attempt in range(_ATTEMPTS):
            place = scratch / str(attempt)
            place.mkdir()
            try:
                top = read_layer(top_file)
                stack, new = squasher.stack(by_digest, top, place)
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
def _reading(paths: Mapping[str, Path]) -> Iterator[dict[str, Future[Layer]]]:
    """Read and verify layers' files while the body squashes others."""
    stop = threading.Event()

    def go_on(_bytes: int) -> None:
        if stop.is_set():
            raise CancelledError

    with ThreadPoolExecutor(1) as pool:
        try:
            yield {digest: pool.submit(_verified, path, go_on) for digest, path in paths.items()}
        finally:
            stop.set()


def _verified(path: Path, go_on: Callable[[int], None]) -> Layer:
    """Read a layer whose bytes are those that were written. Raise SquashfsError for any other."""
    layer = read_layer(path)
    if why := damage(path, go_on):
        raise not_whole(path, why)
    return layer


@dataclass(frozen=True, slots=True)
class _Squasher:
    """Squashes the layers of an image that the store lacks; the fields are arguments of `merge`."""

    layers: SquashedLayers
    make: Callable[..., Command]
    unpacked_bytes: int
    log: IO[bytes] | None

    def stack(
        self, directories: Mapping[str, Path], like: Layer, scratch: Path
    ) -> tuple[dict[str, Layer], int]:
        """Return layers by their digests, and how many of them are new. Raise SquashfsError."""
        stored = {digest: path for digest in directories if (path := self.layers.find(digest))}
        with _reading(stored) as readings:
            new = self._new(directories, directories.keys() - stored.keys(), scratch)
            stack = {
                digest: layer
                for digest, path in stored.items()
                if (layer := self._usable(path, directories[digest], readings[digest], like, scratch))
            }
        new |= self._new(directories, stored.keys() - stack.keys(), scratch)
        return stack | {digest: read_layer(file) for digest, file in new.items()}, len(new)

    def _usable(
        self, path: Path, directory: Path, reading: Future[Layer], like: Layer, scratch: Path
    ) -> Layer | None:
        """Return a layer that can be merged with `like`; remove the file of any other.

        Raise ArtifactError for a damaged one whose directory is no copy of the layer, but a mount of it.
        """
        try:
            layer = reading.result()
            theirs, ours = layer.source.form, like.source.form
            if (theirs.compressor, theirs.block_size_bytes) == (ours.compressor, ours.block_size_bytes):
                return layer
            why = (
                f"{path} has {theirs.compressor} and blocks of {theirs.block_size_bytes} bytes, the"
                f" settings say {ours.compressor} and {ours.block_size_bytes}"
            )
        except SquashfsError as error:
            if directory.resolve().is_mount():
                raise ArtifactError(
                    f"a layer that is mounted here is damaged: {error.what}",
                    where=path,
                    hint="`doit verify --all` names what is damaged, and how to make it again",
                ) from None
            why = error.headline
        mksquashfs.say(self.log, f"{why}; this layer is squashed again")
        self.layers.discard(path, scratch)
        return None

    def _new(
        self, directories: Mapping[str, Path], digests: Iterable[str], scratch: Path
    ) -> dict[str, Path]:
        """Squash layers into the store; return their files."""
        made = {digest: scratch / f"{digest.removeprefix('sha256:')}.sqsh" for digest in digests}
        self.squash({file: directories[digest] for digest, file in made.items()})
        return {digest: self._put(digest, file, scratch) for digest, file in made.items()}

    def _put(self, digest: str, file: Path, scratch: Path) -> Path:
        # Its digest counts as right from now on.
        superblock.inspect(file)
        record = LayerRecord(
            file.stat().st_size,
            blocks_digest(str(file)),
            squashfs.version(),
            readers(read_layer(file)),
        )
        return self.layers.put(digest, file, record, scratch)

    def squash(self, directories: Mapping[Path, Path]) -> None:
        """Squash directories, by the file that each becomes, side by side."""

        def one(file: Path, directory: Path) -> None:
            def make_layer(compares: bool) -> Command:
                return self.make(directory, file, compares=compares, keeps_owners=True)

            draws = len(directories) == 1
            mksquashfs.run(make_layer, file.parent, self.unpacked_bytes, self.log, draws=draws)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            running = [pool.submit(one, file, directory) for file, directory in directories.items()]
            try:
                for future in running:
                    future.result()
            except BaseException:
                for future in running:
                    future.cancel()
                command.end_all()
                raise
