"""The superblock of a SquashFS 4.0 file, its compressors and its flags.

Source: struct squashfs_super_block in Linux' fs/squashfs/squashfs_fs.h.
"""

import struct
from enum import IntFlag, StrEnum
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import ArtifactError

SUPERBLOCK_BYTES = 96
# An offset that says: this image has no such table.
NO_TABLE = (1 << 64) - 1
# mksquashfs pads the file to a multiple of this, so that a loop device can mount it.
PADDING_BYTES = 4096

_HINT = "remove the file and build again; if it happens again, check free space and quota"
_MAGIC = 0x73717368
_LAYOUT = struct.Struct("<5I6H8Q")


class SquashfsError(ArtifactError):
    """A SquashFS image is damaged, or has something that cannot be read or merged."""


class Compressor(StrEnum):
    """A compressor, by the name that mksquashfs has for it."""

    ZSTD = "zstd"
    LZ4 = "lz4"
    LZO = "lzo"
    GZIP = "gzip"
    XZ = "xz"
    LZMA = "lzma"


_COMPRESSORS = {
    1: Compressor.GZIP,
    2: Compressor.LZMA,
    3: Compressor.LZO,
    4: Compressor.XZ,
    5: Compressor.LZ4,
    6: Compressor.ZSTD,
}
_NUMBERS = {compressor: number for number, compressor in _COMPRESSORS.items()}


class Flag(IntFlag):
    """Flags of a superblock. Linux reads COMPRESSOR_OPTIONS alone; unsquashfs prints the others."""

    PLAIN_INODES = 0x1
    PLAIN_DATA = 0x2
    PLAIN_FRAGMENTS = 0x8
    NO_FRAGMENTS = 0x10
    ALWAYS_FRAGMENTS = 0x20
    DUPLICATES_REMOVED = 0x40
    EXPORTABLE = 0x80
    PLAIN_XATTRS = 0x100
    NO_XATTRS = 0x200
    COMPRESSOR_OPTIONS = 0x400
    PLAIN_IDS = 0x800


class Superblock(Struct, frozen=True):
    """The first 96 bytes of a file; `made_at` is in seconds since the epoch.

    Tables are named by the offset at which a reader begins; `flags` are those of Flag.
    """

    inodes: int
    made_at: int
    block_size_bytes: int
    compression: Compressor
    used_bytes: int
    fragments: int = 0
    flags: int = 0
    ids: int = 0
    root_inode: int = 0
    id_table: int = NO_TABLE
    xattr_table: int = NO_TABLE
    inode_table: int = NO_TABLE
    directory_table: int = NO_TABLE
    fragment_table: int = NO_TABLE
    export_table: int = NO_TABLE

    @classmethod
    def parse(cls, head: bytes, where: Path) -> "Superblock":
        """Parse the superblock in `head`. Raise SquashfsError when it is something else.

        Offsets are not compared with the file: `inspect` and `read_layer` do.
        """
        if len(head) < SUPERBLOCK_BYTES:
            raise not_whole(where, f"it is {len(head)} bytes long, shorter than a SquashFS superblock")
        (
            magic, inodes, made_at, block_size_bytes, fragments,
            compressor, _, flags, ids, major, minor,
            root_inode, used_bytes, *tables,
        ) = _LAYOUT.unpack_from(head)  # fmt: skip
        if magic != _MAGIC:
            raise not_whole(where, "it does not begin like a SquashFS file")
        if (major, minor) != (4, 0):
            raise not_whole(where, f"it is SquashFS version {major}.{minor}, not 4.0")
        if compressor not in _COMPRESSORS:
            raise not_whole(where, f"it names an unknown compressor, number {compressor}")
        return cls(
            inodes, made_at, block_size_bytes, _COMPRESSORS[compressor], used_bytes,
            fragments, flags, ids, root_inode, *tables,
        )  # fmt: skip

    def pack(self) -> bytes:
        """Return the 96 bytes."""
        return _LAYOUT.pack(
            _MAGIC, self.inodes, self.made_at, self.block_size_bytes, self.fragments,
            _NUMBERS[self.compression], self.block_size_bytes.bit_length() - 1, self.flags, self.ids,
            4, 0,
            self.root_inode, self.used_bytes, self.id_table, self.xattr_table, self.inode_table,
            self.directory_table, self.fragment_table, self.export_table,
        )  # fmt: skip


def inspect(path: Path) -> Superblock:
    """Return the superblock of a file, in constant time.

    Raise SquashfsError when the file is missing, is something else, or has another length than its
    superblock says. The data between the beginning and the end is not checked.
    """
    try:
        with path.open("rb") as file:
            superblock = Superblock.parse(file.read(SUPERBLOCK_BYTES), path)
            size_bytes = file.seek(0, 2)
    except OSError as error:
        raise not_whole(path, f"it cannot be read: {error.strerror}") from None
    whole_bytes = padded(superblock.used_bytes)
    if size_bytes != whole_bytes:
        raise not_whole(path, f"it is {size_bytes} bytes long and should be {whole_bytes}")
    return superblock


def padded(used_bytes: int) -> int:
    """Return the length of a file whose superblock names `used_bytes`."""
    return -(-used_bytes // PADDING_BYTES) * PADDING_BYTES


def not_whole(path: Path, why: str) -> SquashfsError:
    """Return the error of a file that is no whole image."""
    return SquashfsError(f"not a whole SquashFS image: {why}", where=path, hint=_HINT)


def damaged(path: Path, offset: int, why: str) -> SquashfsError:
    """Return the error of an image whose part at byte `offset` cannot be right."""
    return not_whole(path, f"{why}, at byte {offset}")
