"""The values of an image: inodes, directories, and where the data of files is.

An inode that several names of a tree share is one object: these names are hard links.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from msgspec import Struct, field

from rc_tasks.squashfs.superblock import Compressor, Superblock

NO_FRAGMENT = 0xFFFFFFFF
FRAGMENT = struct.Struct("<QII")
# In the size of a data block or fragment block: it is stored as it is.
PLAIN_BLOCK = 1 << 24
BLOCK_BYTES_MASK = PLAIN_BLOCK - 1

Xattrs = Mapping[bytes, bytes]
NO_XATTRS: Xattrs = MappingProxyType({})


class Kind(IntEnum):
    """Kinds of inodes, by their basic type in the format; extended types are 7 higher."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3
    BLOCK_DEVICE = 4
    CHARACTER_DEVICE = 5
    FIFO = 6
    SOCKET = 7


# eq=False: inodes are compared by identity, which is what a hard link is. gc=False: they are in no
# cycles, and the garbage collector would look at hundreds of thousands of them again and again.
class Inode(Struct, frozen=True, eq=False, gc=False):
    """What all kinds have; `mode` holds the 12 permission bits, `mtime_s` seconds since the epoch."""

    kind: ClassVar[Kind]

    mode: int
    uid: int
    gid: int
    mtime_s: int
    xattrs: Xattrs


class Directory(Inode, frozen=True, eq=False, gc=False):
    """A directory; `children` by name, in no certain order."""

    kind = Kind.DIRECTORY

    children: "dict[bytes, Node]" = field(default_factory=dict)


class File(Inode, frozen=True, eq=False, gc=False):
    """A regular file; its data is in the file of `source`, or nowhere when it is empty or all zeros.

    `blocks` has the size of each data block as in the format: 32 bits, little endian, 0 for a block of
    zeros, PLAIN_BLOCK set for one that is not compressed. The blocks follow one another from byte
    `start` on and take `stored_bytes`. The end of the file, shorter than a block, is at
    `fragment_offset` in the decompressed block number `fragment` of the source's fragments.
    """

    kind = Kind.FILE

    size_bytes: int = 0
    source: "LayerFile | None" = None
    start: int = 0
    stored_bytes: int = 0
    blocks: bytes = b""
    fragment: int = NO_FRAGMENT
    fragment_offset: int = 0
    sparse_bytes: int = 0


class Symlink(Inode, frozen=True, eq=False, gc=False):
    """A symlink."""

    kind = Kind.SYMLINK

    target: bytes = b""


class BlockDevice(Inode, frozen=True, eq=False, gc=False):
    """A block device; `device` is encoded as in the format."""

    kind = Kind.BLOCK_DEVICE

    device: int = 0


class CharacterDevice(Inode, frozen=True, eq=False, gc=False):
    """A character device; `device` is encoded as in the format, and 0 for 0:0, overlay's whiteout."""

    kind = Kind.CHARACTER_DEVICE

    device: int = 0


class Fifo(Inode, frozen=True, eq=False, gc=False):
    """A FIFO."""

    kind = Kind.FIFO


class Socket(Inode, frozen=True, eq=False, gc=False):
    """A socket."""

    kind = Kind.SOCKET


Device = BlockDevice | CharacterDevice
Node = Directory | File | Symlink | BlockDevice | CharacterDevice | Fifo | Socket


class Form(Struct, frozen=True):
    """What all files of one image share; `options` is the block that sets the compressor's options."""

    compressor: Compressor
    block_size_bytes: int
    options: bytes = b""
    flags: int = 0


class LayerFile(Struct, frozen=True, eq=False):
    """The file of an image that was read; `fragments` is its table of them, decompressed.

    `identity` recognizes the file when it is opened again: device, inode, size and time of change.
    """

    path: Path
    superblock: Superblock
    options: bytes
    fragments: bytes
    identity: tuple[int, int, int, int]

    @property
    def form(self) -> Form:
        """What the image shares with those that it can be merged with."""
        superblock = self.superblock
        return Form(superblock.compression, superblock.block_size_bytes, self.options, superblock.flags)

    def fragment(self, number: int) -> tuple[int, int]:
        """Return where a fragment block begins, and its size as in `File.blocks`."""
        start, size, _ = FRAGMENT.unpack_from(self.fragments, number * FRAGMENT.size)
        return start, size


class Layer(Struct, frozen=True, eq=False):
    """An image that was read: its file and its tree."""

    source: LayerFile
    root: Directory


class Tree(Struct, frozen=True, eq=False):
    """A tree that can be written as one image."""

    form: Form
    root: Directory


# The name of a node and, before it, the trail of its directory; None is the root. A hostile tree is
# millions of directories deep: to join all their paths would take hours.
Trail = tuple["Trail", bytes] | None


def shown(trail: Trail) -> str:
    """Return a path of a tree as a message shows it."""
    names: list[bytes] = []
    while trail is not None:
        trail, name = trail
        names.append(name)
    return "/" + b"/".join(reversed(names)).decode(errors="backslashreplace")


def walk(root: Directory) -> Iterator[tuple[bytes, Node]]:
    """Yield each path below `root` with its node, such as `b"usr/bin"`, a directory before its content.

    No directory is too deep. Directories may be changed once they have been yielded.
    """
    stack: list[tuple[bytes, Directory]] = [(b"", root)]
    while stack:
        prefix, directory = stack.pop()
        for name, node in directory.children.items():
            path = prefix + name
            yield path, node
            if isinstance(node, Directory):
                stack.append((path + b"/", node))


def files(root: Directory) -> Iterator[File]:
    """Yield the files below `root`, one with several names as often, in no certain order."""
    stack = [root]
    while stack:
        for node in stack.pop().children.values():
            if isinstance(node, File):
                yield node
            elif isinstance(node, Directory):
                stack.append(node)


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return what recognizes an open file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
