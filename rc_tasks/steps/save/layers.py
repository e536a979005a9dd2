"""Layers in podman's storage, squashed into the store side by side."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from msgspec import Struct

from rc_tasks.model.config.settings import Compression, Squash
from rc_tasks.squashfs import superblock
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.readers import readers
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.squashfs.tree import Layer
from rc_tasks.state.store.block_digest import blocks_digest, fast_digest
from rc_tasks.state.store.layer_files import LayerFiles, LayerRecord, hex_digest
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.steps.save import mksquashfs
from rc_tasks.tools import command, squashfs, tar_split
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman, rootless
from rc_tasks.tools.tar_split import Archive, RecipeError
from rc_tasks.util.json_decode import encode

_MEMORY_BYTES = 1 << 30
_MEMORY_PER_PROCESSOR_BYTES = 16 << 20
# So many layers are squashed at once: each mksquashfs uses all CPUs, but reads with one thread.
_AT_ONCE = 4


def options(settings: Squash, log: IO[bytes] | None) -> functools.partial[Command]:
    """Return mksquashfs of this node with the options of the settings; the log gets a workaround."""
    processors = settings.processors or len(os.sched_getaffinity(0))
    automatic = settings.compression is Compression.AUTO
    preferred = Compressor.ZSTD if automatic else Compressor(settings.compression)
    compression = squashfs.best(preferred, squashfs.probe())
    version = squashfs.version()
    if avoiding := squashfs.workaround_options(version):
        does = squashfs.WRONG_CONTENT.does
        mksquashfs.say(log, f"mksquashfs {version} {does}: {' '.join(avoiding)} avoids it")
    return functools.partial(
        squashfs.mksquashfs,
        compression=compression,
        # Each compressor has its own levels.
        level=settings.level if compression is preferred else 0,
        block_size_bytes=settings.block_size_bytes,
        processors=processors,
        memory_bytes=_MEMORY_BYTES + processors * _MEMORY_PER_PROCESSOR_BYTES,
        options=avoiding,
    )


class Squasher(Struct, frozen=True):
    """Squashes layers into a store.

    `make` returns mksquashfs of a directory into a file. `wrap` puts it into podman's namespace where
    that is needed. `unpacked_bytes` is the size of the image, for messages. `draws`: the log gets the
    percentage of mksquashfs when it squashes one directory.
    """

    layers: SquashedLayers
    make: functools.partial[Command]
    unpacked_bytes: int
    log: IO[bytes] | None
    draws: bool = True
    wrap: Callable[[Command], Command] = lambda invocation: invocation

    def add(
        self,
        directories: Mapping[str, Path],
        scratch: Path,
        replaced: Mapping[str, LayerFiles] | None = None,
    ) -> dict[str, Path]:
        """Squash layers, given by diff ID with their directories, into the store; return their files.

        `scratch` is a temporary directory of the store. `replaced` are files of some layers there,
        which the new ones replace, unless only the old ones give the archive again: then the new ones
        stay in `scratch`. Raise ArtifactError when the disk is full, CommandError.
        """
        replaced = replaced or {}
        made = {digest: LayerFiles(scratch / f"{hex_digest(digest)}.new") for digest in directories}

        def one(digest: str) -> None:
            files, directory = made[digest], directories[digest]
            files.directory.mkdir()
            self._run(directory, files.file, draws=self.draws and len(directories) == 1)
            old = replaced.get(digest)
            recipe = old.recipe if old is not None and old.archive_bytes() else None
            self._describe(digest, files, recipe or tar_split.recipe_of(directory))

        _side_by_side(functools.partial(one, digest) for digest in directories)
        return {
            digest: self._put(digest, files, replaced.get(digest), scratch)
            for digest, files in made.items()
        }

    def _put(self, digest: str, files: LayerFiles, old: LayerFiles | None, scratch: Path) -> Path:
        # With lz4 or lzo the new ones alone could not be loaded by a node that cannot mount them.
        if old is not None and old.archive_bytes() and not files.archive_bytes():
            return files.file
        return self.layers.put(digest, files.directory, scratch, replace=old)

    def _run(self, directory: Path, file: Path, *, draws: bool) -> None:
        def make_layer(compares: bool) -> Command:
            return self.wrap(self.make(directory, file, compares=compares, keeps_owners=True))

        # Not the temporary directory: a message names it.
        place = self.layers.store.directory
        mksquashfs.run(make_layer, place, self.unpacked_bytes, self.log, draws=draws)

    def _describe(self, digest: str, files: LayerFiles, recipe: Path) -> None:
        """Write the record of new files, and the recipe if it gives the layer's archive again."""
        # Its digest counts as right from now on.
        superblock.inspect(files.file)
        layer = read_layer(files.file)
        archive = _archive(digest, layer, recipe)
        recipe_sha256 = ""
        if archive is not None:
            content = recipe.read_bytes()
            files.recipe.write_bytes(content)
            recipe_sha256 = hashlib.sha256(content).hexdigest()
        record = LayerRecord(
            files.file.stat().st_size,
            blocks_digest(str(files.file)),
            squashfs.version(),
            readers(layer),
            archive.size_bytes if archive is not None else 0,
            recipe_sha256,
            fast_digest(str(files.file)),
        )
        files.record_file.write_text(encode(record))


def in_namespace(podman: Podman) -> Callable[[Command], Command]:
    """Return what lets a command read podman's files: rootless, their owners are its namespace's."""
    return podman.unshare if rootless() else lambda invocation: invocation


def _archive(digest: str, layer: Layer, recipe: Path) -> Archive | None:
    """Return a layer's archive if it can be made again from its files."""
    try:
        archive = tar_split.measured(recipe, layer)
    except RecipeError:
        return None
    return archive if archive.sha256 == hex_digest(digest) else None


def _side_by_side(jobs: Iterable[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            for future in running:
                future.result()
        except BaseException:
            for future in running:
                future.cancel()
            command.end_all()
            raise
