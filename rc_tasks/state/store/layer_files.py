"""Files of a layer in a store.

    store/layers/DIFF_ID/layer.sqsh      its files: whiteouts, owners, attributes as podman keeps them
    store/layers/DIFF_ID/tar-split.gz    podman's recipe of the archive that the layer came as
    store/layers/DIFF_ID/layer.json      what both are compared with

A directory gets its name when all files are whole. A layer that podman makes again may have other bytes
as a SquashFS file, with the same content.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from rc_tasks.squashfs.reader_kinds import Readers
from rc_tasks.state.disk import reading
from rc_tasks.util.json_decode import Size, parse

# The directory of the layers in a store.
LAYERS = "layers"
_FILE = "layer.sqsh"
_RECIPE = "tar-split.gz"
_RECORD = "layer.json"


class LayerRecord(Struct, frozen=True):
    """What was written: `blocks_digest` is defined in docs/reference/image-json.md.

    `fast_digest` is that of the same module, empty in a record of an earlier version.
    `readers` says who can mount it. `archive_bytes` is the size of its tar archive, which can be made
    again from the file and the recipe, whose SHA-256 is `recipe_sha256`; 0 where that is impossible.
    """

    size_bytes: Size
    blocks_digest: str
    mksquashfs: str
    readers: Readers = Readers.NOBODY
    archive_bytes: Size = 0
    recipe_sha256: str = ""
    fast_digest: str = ""


class LayerFiles(Struct, frozen=True):
    """The files of one layer, in its directory, which need not exist."""

    directory: Path

    @property
    def file(self) -> Path:
        """The SquashFS file."""
        return self.directory / _FILE

    @property
    def recipe(self) -> Path:
        """The recipe of the archive."""
        return self.directory / _RECIPE

    @property
    def record_file(self) -> Path:
        """The record."""
        return self.directory / _RECORD

    @property
    def record(self) -> LayerRecord | None:
        """The record; None for one that is missing or damaged. Raise OSError."""
        return parse(LayerRecord, reading.content(self.record_file))

    @property
    def exist(self) -> bool:
        """Whether the SquashFS file exists. Raise OSError when it cannot be reached."""
        return reading.status(self.file) is not None

    def archive_bytes(self) -> int:
        """Return the size of the archive that can be made from the files, or 0. Raise OSError.

        The sizes of the files are compared with the record, but not their contents.
        """
        record = self.record
        status = reading.status(self.file)
        if record is None or status is None or status.st_size != record.size_bytes:
            return 0
        return record.archive_bytes if reading.status(self.recipe) is not None else 0

    def is_as_written(self, read: Callable[[int], None], file: str = "") -> bool:
        """Return whether the SquashFS file has the bytes that were written, as fast as that goes.

        `read` is that of `blocks_digest`; `file` is another name of the file. Raise OSError.
        """
        from rc_tasks.state.store.block_digest import blocks_digest, fast_digest  # with threads: 3 ms

        record = self.record
        if record is None:
            return False
        if record.fast_digest:
            return fast_digest(file or str(self.file), read) == record.fast_digest
        return blocks_digest(file or str(self.file), read) == record.blocks_digest

    def damage(self, read: Callable[[int], None] = lambda _bytes: None, at_once: int = 0) -> str:
        """Return what is wrong with the content of the files, or an empty string.

        `read` and `at_once` are those of `blocks_digest`. Raise OSError, for a missing file too.
        """
        from rc_tasks.state.store.block_digest import blocks_digest  # with threads: 3 ms

        record = self.record
        if record is None:
            return "has no record beside it that can be read"
        digest = blocks_digest(str(self.file), read, at_once)
        if digest != record.blocks_digest:
            return f"has other content, with the digest {digest[:12]}"
        if record.archive_bytes:
            content = reading.content(self.recipe)
            if content is None:
                return f"has no {self.recipe.name} beside it any more"
            recipe = hashlib.sha256(content).hexdigest()
            if recipe != record.recipe_sha256:
                return f"{self.recipe.name} beside it has other content"
        return ""


def layer_files(store: Path, digest: str) -> LayerFiles:
    """Return the files of a layer of a store, given by its diff ID with or without `sha256:`."""
    return LayerFiles(store / LAYERS / hex_digest(digest))


def is_layer(path: Path) -> bool:
    """Return whether a path in a store is that of a squashed layer."""
    return path.name == _FILE


def hex_digest(digest: str) -> str:
    """Return a digest without `sha256:`."""
    return digest.removeprefix("sha256:")
