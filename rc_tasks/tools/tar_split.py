"""The archive of a layer, made again from the layer's files byte for byte.

Next to each layer podman keeps a recipe of the tar archive that the layer came as: its headers and
padding, and the names of the files whose contents stand between them (`overlay-layers/ID.tar-split.gz`).
Source: github.com/vbatts/tar-split, tar/storage/entry.go: gzip, a JSON object a line.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from rc_tasks.errors import ArtifactError
from rc_tasks.squashfs.contents import FileReader
from rc_tasks.squashfs.superblock import Compressor, SquashfsError
from rc_tasks.squashfs.tree import Directory, File, Layer, Node, Symlink
from rc_tasks.tools import links

_FILE = 1
_BYTES = 2
# lz4 would take minutes a gigabyte in Python, and Python has no lzo.
_READ = frozenset({Compressor.GZIP, Compressor.XZ, Compressor.ZSTD})


class RecipeError(ArtifactError):
    """The archive of a layer cannot be made again."""


class Archive(Struct, frozen=True):
    """A layer's archive: its size in bytes and its SHA-256 in hex, which is the diff ID."""

    size_bytes: int
    sha256: str


def recipe_of(directory: Path) -> Path:
    """Return where podman has the recipe of a layer, given by its directory (`…/overlay/ID/diff`)."""
    layer = directory.parent
    return layer.parent.parent / "overlay-layers" / f"{layer.name}.tar-split.gz"


def measured(recipe: Path, layer: Layer) -> Archive:
    """Make an archive and keep nothing of it. Raise RecipeError."""
    digest = hashlib.sha256()
    size_bytes = 0
    for piece in archive(recipe, layer):
        digest.update(piece)
        size_bytes += len(piece)
    return Archive(size_bytes, digest.hexdigest())


def archive(recipe: Path, layer: Layer) -> Iterator[bytes]:
    """Yield the archive of a layer in pieces. Raise RecipeError.

    Nothing says that it is the right one: compare its digest.
    """
    if layer.source.form.compressor not in _READ:
        raise RecipeError(
            f"the files of a layer with {layer.source.form.compressor} are not read here",
            where=layer.source.path,
        )
    decode = Decoder(_Entry).decode
    try:
        with gzip.open(recipe) as lines, FileReader(layer.source) as files:
            for line in lines:
                yield from _pieces(decode(line), layer, files)
    except SquashfsError as error:
        raise RecipeError(error.what, where=error.where) from None
    except (OSError, EOFError, zlib.error, ValueError, DecodeError, RecursionError) as error:
        raise RecipeError(
            f"the archive of the layer cannot be made again: {error}", where=recipe
        ) from None


class _Entry(Struct, frozen=True):
    """A line of a recipe; bytes are in base64, and `name_raw` is for names that are not UTF-8."""

    type: int
    payload: bytes | None = None
    size: int = 0
    name: str = ""
    name_raw: bytes | None = None


def _pieces(entry: _Entry, layer: Layer, files: FileReader) -> Iterator[bytes]:
    if entry.type == _BYTES:
        yield entry.payload or b""
    elif entry.type != _FILE:
        raise ValueError(f"an entry of an unknown type, {entry.type}")
    # The header of a directory, a link or an empty file says all.
    elif entry.size:
        name = os.fsdecode(entry.name_raw) if entry.name_raw else entry.name
        file = _find(layer.root, name)
        if not isinstance(file, File) or file.size_bytes != entry.size:
            raise ValueError(f"{name} is not the file that it was")
        yield from files.pieces(file)


def _find(root: Directory, name: str) -> Node | None:
    """Return what a name leads to; a directory may be a symlink to another one of the layer."""
    if (node := _at(root, name)) is not None:
        return node

    def target_of(path: str) -> str | None:
        node = _at(root, path)
        return os.fsdecode(node.target) if isinstance(node, Symlink) else None

    return _at(root, links.follow(name, target_of))


def _at(root: Directory, name: str) -> Node | None:
    node: Node = root
    for part in os.fsencode(name).split(b"/"):
        if part in (b"", b"."):
            continue
        child = node.children.get(part) if isinstance(node, Directory) else None
        if child is None:
            return None
        node = child
    return node
