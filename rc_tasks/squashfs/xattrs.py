"""Extended attributes in an image: lists of them, which inodes name by number.

Source: struct squashfs_xattr_entry and squashfs_xattr_id in Linux' fs/squashfs/squashfs_fs.h, and
squashfs-tools' xattr.c.
"""

import struct

from msgspec import Struct, field

from rc_tasks.squashfs.compression import METADATA_BYTES, Codec
from rc_tasks.squashfs.metadata import MetadataReader, MetadataWriter, Table, lookup_table
from rc_tasks.squashfs.superblock import NO_TABLE, SquashfsError, Superblock, damaged
from rc_tasks.squashfs.tree import NO_XATTRS, Xattrs

NO_XATTR_LIST = 0xFFFFFFFF
# Linux allows no longer names and values (include/uapi/linux/limits.h).
_MOST_NAME_BYTES = 255
_MOST_VALUE_BYTES = 1 << 16

_PREFIXES = {0: b"user.", 1: b"trusted.", 2: b"security."}
# The value is elsewhere in the table.
_ELSEWHERE = 0x100

_NAME = struct.Struct("<HH")
_SIZE = struct.Struct("<I")
_PLACE = struct.Struct("<Q")
_LIST = struct.Struct("<QII")
_HEAD = struct.Struct("<QII")


class XattrReader:
    """Read an image's lists of attributes, each once. Methods raise SquashfsError."""

    def __init__(self, reader: MetadataReader, superblock: Superblock) -> None:
        self._reader = reader
        self._lists = b""
        self._table = Table(0, b"", {})
        self._cache: dict[int, Xattrs] = {NO_XATTR_LIST: NO_XATTRS}
        self._values: dict[int, bytes] = {}
        self._read_bytes = 0
        # Where the first of the tables begins.
        self.begin = superblock.used_bytes
        if superblock.xattr_table == NO_TABLE:
            return
        at, count, _ = _HEAD.unpack(reader.read(superblock.xattr_table, _HEAD.size))
        begin, self._lists = reader.lookup(superblock.xattr_table + _HEAD.size, count, _LIST)
        self._table = reader.run(at, begin) if count else self._table
        self.begin = at

    def get(self, number: int) -> Xattrs:
        """Return the list with this number."""
        known = self._cache.get(number)
        if known is None:
            known = self._cache[number] = self._read(number)
        return known

    def _read(self, number: int) -> Xattrs:
        # mksquashfs -no-xattrs removes the table from an image whose inodes still name lists.
        if not self._lists:
            return NO_XATTRS
        if number >= len(self._lists) // _LIST.size:
            raise self._damaged(f"an inode names list {number} of extended attributes")
        place, count, _ = _LIST.unpack_from(self._lists, number * _LIST.size)
        position = self._position(place)
        xattrs = {}
        for _ in range(count):
            kind, length = _NAME.unpack(self._bytes(position, _NAME.size))
            prefix = _PREFIXES.get(kind & ~_ELSEWHERE)
            name = self._bytes(position + _NAME.size, length)
            position += _NAME.size + length
            if prefix is None or not 0 < length <= _MOST_NAME_BYTES or b"\0" in name:
                raise self._damaged("an extended attribute has no valid name")
            value, position = self._value(position)
            if kind & _ELSEWHERE:
                if len(value) != _PLACE.size:
                    raise self._damaged("an extended attribute has no valid value")
                at = self._position(_PLACE.unpack(value)[0])
                if at not in self._values:
                    self._values[at] = self._value(at)[0]
                value = self._values[at]
            xattrs[prefix + name] = value
        return xattrs

    def _value(self, position: int) -> tuple[bytes, int]:
        (length,) = _SIZE.unpack(self._bytes(position, _SIZE.size))
        position += _SIZE.size
        if length > _MOST_VALUE_BYTES:
            raise self._damaged(f"an extended attribute has {length} bytes")
        return self._bytes(position, length), position + length

    def _position(self, place: int) -> int:
        start = self._table.starts.get(place >> 16)
        if start is None or place & 0xFFFF >= METADATA_BYTES:
            raise self._damaged("a list of extended attributes is not in the table")
        return start + (place & 0xFFFF)

    def _bytes(self, position: int, length: int) -> bytes:
        content = self._table.content[position : position + length]
        # Each byte is read once in its place, and once more as a shared value. Lists of a hostile image
        # overlap: ever more of them would be read from few bytes.
        self._read_bytes += length
        if len(content) != length or self._read_bytes > 2 * len(self._table.content):
            raise self._damaged("an extended attribute ends too late")
        return content

    def _damaged(self, why: str) -> SquashfsError:
        return damaged(self._reader.path, self._table.at, why)


class XattrWriter(Struct):
    """The lists of attributes of the inodes of a new image; equal lists have one number."""

    compress: Codec | None
    _numbers: dict[tuple[tuple[bytes, bytes], ...], int] = field(default_factory=dict)
    _known: dict[int, tuple[int, Xattrs]] = field(default_factory=dict)

    def number(self, xattrs: Xattrs) -> int:
        """Return the number of a list."""
        if not xattrs:
            return NO_XATTR_LIST
        known = self._known.get(id(xattrs))
        if known is None:
            number = self._numbers.setdefault(tuple(sorted(xattrs.items())), len(self._numbers))
            # It holds the mapping, so that no other one gets its id.
            known = self._known[id(xattrs)] = number, xattrs
        return known[0]

    def tables(self, at: int) -> tuple[int, bytes]:
        """Return the offset that the superblock names, and the tables to be written at byte `at`."""
        if not self._numbers:
            return NO_TABLE, b""
        writer = MetadataWriter(self.compress)
        # They are compressed first: a list is named by the offset of its compressed block.
        values: dict[bytes, int] = {}
        lists = []
        for xattrs in self._numbers:
            begin = writer.tell()
            for name, value in xattrs:
                _append(writer, name, value, values)
            # Linux derives st_blocks from this size.
            size = sum(len(name) + 1 + len(value) for name, value in xattrs)
            lists.append((begin, len(xattrs), size))
        stored = bytes(writer.finish())
        entries = [_LIST.pack(_place(writer, begin), count, size) for begin, count, size in lists]
        behind = at + len(stored)
        offset, blocks = lookup_table(entries, behind, self.compress)
        listed = blocks[offset - behind :]
        head = _HEAD.pack(at, len(lists), 0)
        return offset, stored + blocks[: offset - behind] + head + listed


def _append(writer: MetadataWriter, name: bytes, value: bytes, values: dict[bytes, int]) -> None:
    kind, prefix = next(
        ((kind, prefix) for kind, prefix in _PREFIXES.items() if name.startswith(prefix)), (None, b"")
    )
    if kind is None:
        shown = name.decode(errors="backslashreplace")
        raise SquashfsError(
            f"SquashFS cannot hold the extended attribute {shown}",
            hint="only names that begin with user., trusted. or security. can be stored",
        )
    short = name[len(prefix) :]
    place = values.get(value)
    if place is not None and len(value) > _PLACE.size:
        writer.append(
            _NAME.pack(kind | _ELSEWHERE, len(short))
            + short
            + _SIZE.pack(_PLACE.size)
            + _PLACE.pack(place)
        )
        return
    writer.append(_NAME.pack(kind, len(short)) + short)
    values.setdefault(value, _place(writer, writer.tell()))
    writer.append(_SIZE.pack(len(value)) + value)


def _place(writer: MetadataWriter, position: int) -> int:
    start, offset = writer.place(position)
    return start << 16 | offset
