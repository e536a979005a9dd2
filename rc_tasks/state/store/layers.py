"""Layers of a store as SquashFS files, from which images are published without squashing them again.

    store/layers/DIFF_ID/layer.sqsh    the layer: whiteouts, owners and attributes as podman keeps them
    store/layers/DIFF_ID/layer.json    what `doit verify` compares it with

A directory gets its name when both files are whole. A layer that podman makes again may have other bytes
as a SquashFS file, with the same content.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.squashfs.readers import Readers
from rc_tasks.state.disk import reading
from rc_tasks.state.store.block_digest import blocks_digest
from rc_tasks.state.store.store import LAYERS, Store
from rc_tasks.util.json_decode import Size, encode, parse

_FILE = "layer.sqsh"
_RECORD = "layer.json"


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What was written: `blocks_digest` is defined in docs/reference/image-json.md.

    `readers` says who can mount it.
    """

    size_bytes: Size
    blocks_digest: str
    mksquashfs: str
    readers: Readers = Readers.NOBODY


@dataclass(frozen=True, slots=True)
class SquashedLayers:
    """The SquashFS files of a store's layers; `official` finds those of the official store."""

    store: Store
    official: Callable[[str], Path | None] = lambda _digest: None

    def find(self, digest: str) -> Path | None:
        """Return the file of a layer, given by its diff ID (`sha256:…`), or None."""
        path = layer_file(self.store, digest)
        if reading.status(path) is None:
            return self.official(digest)
        # It may belong to another member: then it keeps its age.
        with contextlib.suppress(OSError):
            os.utime(path.parent)
        return path

    def put(self, digest: str, made: Path, record: LayerRecord, scratch: Path) -> Path:
        """Put a file in place unless the layer has one, and return the path.

        `made` is in `scratch`, a temporary directory of the store.
        """
        final = layer_file(self.store, digest).parent
        final.parent.mkdir(parents=True, exist_ok=True)
        new = scratch / f"{final.name}.new"
        new.mkdir()
        (new / _RECORD).write_text(encode(record))
        with made.open("rb") as file:
            os.fsync(file.fileno())
        os.rename(made, new / _FILE)
        try:
            os.rename(new, final)
        except OSError:
            # Another node may have put its file there meanwhile, and copies from it now.
            if reading.status(final / _FILE) is None:
                self.discard(final / _FILE, scratch)
                os.rename(new, final)
        return final / _FILE

    def discard(self, path: Path, scratch: Path) -> None:
        """Remove the file of a layer, if it is in the store of this checkout."""
        if path.is_relative_to(self.store.directory):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path.parent, scratch / f"{path.parent.name}.old")


def layer_record(file: Path) -> LayerRecord | None:
    """Return the record of a layer's file; None for one that is missing or damaged."""
    return parse(LayerRecord, reading.content(record_file(file)))


def damage(file: Path, read: Callable[[int], None] = lambda _bytes: None) -> str:
    """Return why a layer's file is not what was written, or an empty string; read all of it.

    `read` is called as by `blocks_digest`.
    """
    record = layer_record(file)
    if record is None:
        return "its record is missing or damaged"
    try:
        digest = blocks_digest(str(file), read)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "" if digest == record.blocks_digest else "its bytes have changed since it was written"


def record_file(file: Path) -> Path:
    """Return where the record of a layer's file is."""
    return file.with_name(_RECORD)


def layer_file(store: Store, digest: str) -> Path:
    """Return where the file of a layer is, or would be."""
    return store.directory / LAYERS / digest.removeprefix("sha256:") / _FILE
