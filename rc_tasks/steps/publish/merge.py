"""Publishing by merging: only new layers are squashed, and the image is made of all layers' files.

The data of the layers is copied as it is, and `rc_tasks/squashfs` writes new metadata.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from rc_tasks.errors import ArtifactError
from rc_tasks.squashfs.edit import Edit
from rc_tasks.squashfs.merge import merge as merge_layers
from rc_tasks.squashfs.neutral import is_neutral, neutral
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.squashfs.tree import NO_XATTRS, Directory, Layer, Tree
from rc_tasks.squashfs.write import write
from rc_tasks.state.store.block_digest import blocks_digest
from rc_tasks.state.store.layers import LayerRecord, SquashedLayers
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

    Layers without a file get one in the store. `make` returns mksquashfs of a directory into a file.
    Return what was merged, or None if these layers cannot be merged; then the log says why, and nothing
    was written. Raise ArtifactError or CommandError.
    """
    *directories, written = podman.layer_directories(container) or (Path(),)
    if len(directories) != len(image.layers):
        _not_merged("podman's storage has no directory for each layer", log)
        return None
    by_digest = dict(zip(image.layers, directories, strict=True))
    layers.store.sweep()
    with layers.store.writing(image.id, by_digest) as scratch:

        def squash(directories_by_file: Mapping[Path, Path]) -> None:
            _squash(directories_by_file, make, image.size_bytes, log)

        top_file = scratch / "written.sqsh"
        squash({top_file: written})
        try:
            top = read_layer(top_file)
            known = {digest: _known(layers, digest, top, scratch, log) for digest in by_digest}
            new = {
                digest: scratch / f"{digest.removeprefix('sha256:')}.sqsh"
                for digest, layer in known.items()
                if layer is None
            }
            squash({made: by_digest[digest] for digest, made in new.items()})
            stack: list[Layer] = []
            for digest in image.layers:
                layer = known[digest]
                if layer is None:
                    layer = _neutral(read_layer(new[digest]), stack)
                    layer = known[digest] = read_layer(_put(layers, digest, layer.source.path, scratch))
                stack.append(layer)
            tree = merge_layers((*stack, top), _EDIT)
        except SquashfsError as error:
            _not_merged(error.what, log)
            return None
        copied_bytes = write(tree, destination, made_at=int(time.time())).copied_bytes
    mksquashfs.say(
        log, f"merged {len(stack)} layers, {len(new)} of them new: {copied_bytes / 1e6:.1f} MB copied"
    )
    return tree


def _not_merged(why: str, log: IO[bytes] | None) -> None:
    mksquashfs.say(log, f"the image is squashed whole: {why}")


def _known(
    layers: SquashedLayers, digest: str, like: Layer, scratch: Path, log: IO[bytes] | None
) -> Layer | None:
    """Return a layer's file in the store, if it can be merged with `like`; remove a damaged one."""
    path = layers.find(digest)
    if path is None:
        return None
    try:
        layer = read_layer(path)
    except ArtifactError as error:
        mksquashfs.say(log, f"{path}: {error.what}; this layer is squashed again")
        layers.discard(path, scratch)
        return None
    theirs, ours = layer.source.form, like.source.form
    if (theirs.compressor, theirs.block_size_bytes) != (ours.compressor, ours.block_size_bytes):
        mksquashfs.say(
            log,
            f"{path} has {theirs.compressor} and blocks of {theirs.block_size_bytes} bytes, the settings"
            f" say {ours.compressor} and {ours.block_size_bytes}; this layer is squashed again",
        )
        return None
    return layer


def _neutral(layer: Layer, below: list[Layer]) -> Layer:
    """Return a new layer in the form that root and users can mount; `below` are the layers below it."""
    if is_neutral(layer):
        return layer
    lower = merge_layers(below).root if below else Directory(0o755, 0, 0, 0, NO_XATTRS)
    file = layer.source.path.with_suffix(".neutral")
    write(neutral(layer, lower), file, made_at=layer.source.superblock.made_at)
    return read_layer(file)


def _put(layers: SquashedLayers, digest: str, file: Path, scratch: Path) -> Path:
    digest_of_file = blocks_digest(str(file))
    record = LayerRecord(file.stat().st_size, digest_of_file, squashfs.version())
    return layers.put(digest, file, record, scratch)


def _squash(
    directories: Mapping[Path, Path],
    make: Callable[..., Command],
    unpacked_bytes: int,
    log: IO[bytes] | None,
) -> None:
    """Squash directories, by the file that each becomes, side by side."""

    def one(file: Path, directory: Path) -> None:
        def make_layer(compares: bool) -> Command:
            return make(directory, file, compares=compares, keeps_owners=True)

        mksquashfs.run(make_layer, file.parent, unpacked_bytes, log, draws=len(directories) == 1)

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
