"""Metadata blocks: reading tables of them from an image, and writing them.

A table is a run of blocks of 8 KiB, each with its length before it and compressed if that is shorter. A
lookup table is found through a list of its blocks' offsets. Source: Linux'
Documentation/filesystems/squashfs.rst and fs/squashfs/cache.c.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct, field

from rc_tasks.squashfs.compression import METADATA_BYTES, Codec, CompressionError, decompressor
from rc_tasks.squashfs.superblock import SquashfsError, Superblock, damaged

# The inodes of eight million files. The few megabytes of a hostile image may decompress to any size.
MOST_TABLE_BYTES = 256 << 20
_PLAIN = 0x8000


class Table(Struct, frozen=True):
    """A decompressed table that begins at byte `at`; `starts` maps a block's offset to a position."""

    at: int
    content: bytes
    starts: dict[int, int]


class MetadataReader:
    """Read tables of an open image. Every method raises SquashfsError."""

    def __init__(self, descriptor: int, path: Path, superblock: Superblock) -> None:
        self.path = path
        self._descriptor = descriptor
        self._superblock = superblock
        self._decompress = decompressor(superblock.compression)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return `size_bytes` from `offset` on."""
        if offset + size_bytes > self._superblock.used_bytes or size_bytes > MOST_TABLE_BYTES:
            raise damaged(self.path, offset, f"{size_bytes} bytes of a table are not in the image")
        content = os.pread(self._descriptor, size_bytes, offset)
        if len(content) != size_bytes:
            raise damaged(self.path, offset, "the file ends too early")
        return content

    def run(self, start: int, end: int) -> Table:
        """Return the table of all blocks between two offsets."""
        if end < start:
            raise damaged(self.path, start, f"a table ends at byte {end}, before it begins")
        stored = self.read(start, end - start)
        blocks, starts = [], {}
        offset = position = 0
        while offset < len(stored):
            starts[offset] = position
            content, offset = self._block(stored, offset, start)
            position += len(content)
            if position > MOST_TABLE_BYTES:
                raise damaged(self.path, start, "a table has more than 256 MiB")
            blocks.append(content)
        return Table(start, b"".join(blocks), starts)

    def lookup(self, offset: int, count: int, entry: struct.Struct) -> tuple[int, bytes]:
        """Return where a lookup table's first block begins, and the bytes of its `count` entries.

        `offset` is that of the list of its blocks.
        """
        size_bytes = count * entry.size
        if size_bytes > MOST_TABLE_BYTES:
            raise damaged(self.path, offset, f"a table is said to have {count} entries")
        blocks = -(-size_bytes // METADATA_BYTES)
        places = struct.unpack(f"<{blocks}Q", self.read(offset, 8 * blocks))
        content = bytearray()
        for number, place in enumerate(places, 1):
            header = self.read(place, 2)
            length = int.from_bytes(header, "little") & ~_PLAIN
            block, _ = self._block(self.read(place, 2 + length), 0, place)
            content += block
            if len(content) != min(size_bytes, number * METADATA_BYTES):
                raise damaged(self.path, place, "a table has another length than it should")
        return min(places, default=offset), bytes(content)

    def plain_block(self, offset: int) -> tuple[bytes, int]:
        """Return a block that is not compressed, and the offset behind it."""
        header = int.from_bytes(self.read(offset, 2), "little")
        length = header & ~_PLAIN
        if not header & _PLAIN or length > METADATA_BYTES:
            raise damaged(self.path, offset, "the options of the compressor cannot be read")
        return self.read(offset + 2, length), offset + 2 + length

    def _block(self, stored: bytes, offset: int, start: int) -> tuple[bytes, int]:
        header = int.from_bytes(stored[offset : offset + 2], "little")
        end = offset + 2 + (header & ~_PLAIN)
        content = stored[offset + 2 : end]
        if end > len(stored) or not content:
            raise damaged(self.path, start + offset, "a block of a table ends too early")
        if not header & _PLAIN:
            if self._decompress is None:
                name = self._superblock.compression
                raise SquashfsError(
                    f"the lists of files in this image are compressed with {name}, which Python lacks",
                    where=self.path,
                    hint="squash it again with zstd or gzip, or with the options -noI -noF -noX, which\n"
                    "leave these lists and the ends of files uncompressed",
                )
            try:
                content = self._decompress(content)
            except CompressionError as error:
                raise damaged(self.path, start + offset, str(error)) from None
        if len(content) > METADATA_BYTES:
            raise damaged(self.path, start + offset, "a block of a table has more than 8 KiB")
        return content, end


class MetadataWriter(Struct):
    """A table that grows at its end; `stored` is what is finished of it."""

    compress: Codec | None
    stored: bytearray = field(default_factory=bytearray)
    # Where each block begins in `stored`; the last one is not finished.
    starts: list[int] = field(default_factory=lambda: [0])
    _content: bytearray = field(default_factory=bytearray)

    def tell(self) -> int:
        """Return how many bytes the table has, before compression."""
        return (len(self.starts) - 1) * METADATA_BYTES + len(self._content)

    def append(self, content: bytes) -> None:
        """Append bytes."""
        self._content += content
        while len(self._content) >= METADATA_BYTES:
            self._store(bytes(self._content[:METADATA_BYTES]))
            del self._content[:METADATA_BYTES]

    def place(self, position: int) -> tuple[int, int]:
        """Return the offset of the block at a position, and the position in the block."""
        number, offset = divmod(position, METADATA_BYTES)
        return self.starts[number], offset

    def finish(self) -> bytearray:
        """Return the table."""
        if self._content:
            self._store(bytes(self._content))
            self._content.clear()
        return self.stored

    def _store(self, content: bytes) -> None:
        self.stored += stored_block(content, self.compress)
        self.starts.append(len(self.stored))


def stored_block(content: bytes, compress: Codec | None) -> bytes:
    """Return one metadata block with its length before it."""
    packed = content if compress is None else compress(content)
    if len(packed) >= len(content):
        return (len(content) | _PLAIN).to_bytes(2, "little") + content
    return len(packed).to_bytes(2, "little") + packed


def lookup_table(entries: Iterable[bytes], at: int, compress: Codec | None) -> tuple[int, bytes]:
    """Return the offset of the list of blocks, and the blocks with the list, of a table at byte `at`."""
    writer = MetadataWriter(compress)
    writer.append(b"".join(entries))
    stored = writer.finish()
    places = [start for start in writer.starts if start < len(stored)]
    listed = struct.pack(f"<{len(places)}Q", *(at + start for start in places))
    return at + len(stored), bytes(stored) + listed
