"""Inodes and directories of a new image, in the table of each; children before their directory.

The types of inodes are chosen as mksquashfs does (create_inode and add_dir in its mksquashfs.c).
"""

import struct

from rc_tasks.squashfs.compression import METADATA_BYTES, Codec
from rc_tasks.squashfs.data import Layout
from rc_tasks.squashfs.metadata import MetadataWriter
from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.squashfs.tree import (
    NO_FRAGMENT,
    BlockDevice,
    CharacterDevice,
    Directory,
    File,
    Kind,
    Node,
    Symlink,
    shown,
)
from rc_tasks.squashfs.xattrs import NO_XATTR_LIST, XattrWriter

# The superblock counts owners in 16 bits.
MOST_IDS = 65_535
_MOST_LISTING_BYTES = 1 << 28
_MOST_WORD = _MOST_TIME_S = 0xFFFFFFFF
_EXTENDED = 7
_DOTS_BYTES = 3
_MOST_HEADER_ENTRIES = 256
_MOST_NAME_BYTES = 256
_MOST_TARGET_BYTES = 4095

_COMMON = "<4HII"
_PLAIN = struct.Struct(f"{_COMMON}I")
_PLAIN_WORD = struct.Struct(f"{_COMMON}II")
_PLAIN_TWO_WORDS = struct.Struct(f"{_COMMON}III")
_FILE = struct.Struct(f"{_COMMON}4I")
_LONG_FILE = struct.Struct(f"{_COMMON}3Q4I")
_DIRECTORY = struct.Struct(f"{_COMMON}2I2HI")
_LONG_DIRECTORY = struct.Struct(f"{_COMMON}4I2HI")
_HEADER = struct.Struct("<3I")
_ENTRY = struct.Struct("<HhHH")
_INDEX = struct.Struct("<3I")
_WORD = struct.Struct("<I")

_Entries = list[tuple[bytes, Node]]
# A directory, what is in it in the order of its listing, and how many of these are directories.
_Listed = tuple[Directory, _Entries, int]


class _OwnerNumbers(dict[int, int]):
    """Numbers of owners, by their IDs, in the order in which they are first asked for."""

    def __missing__(self, owner: int) -> int:
        if len(self) == MOST_IDS:
            raise SquashfsError(
                f"the files belong to more than {MOST_IDS} different users and groups,"
                " which is all that SquashFS can hold",
                hint="give the files of the image fewer owners (RUN chown), or all the same one",
            )
        number = self[owner] = len(self)
        return number


class InodeWriter:
    """The tables of inodes and directories of a tree, and what they name: owners and attributes."""

    def __init__(self, root: Directory, compress: Codec | None, xattrs: XattrWriter) -> None:
        """Number all inodes. Raise SquashfsError for a tree that cannot be written."""
        self.inodes = MetadataWriter(compress)
        self.directories = MetadataWriter(compress)
        self.xattrs = xattrs
        self.ids = _OwnerNumbers()
        self.root = root
        # By inode: its number, how many names it has if it has several, where it begins in the table
        # before compression, and for directories their parent.
        self.numbers: dict[Node, int] = {root: 1}
        self._links: dict[Node, int] = {}
        self.positions: dict[Node, int] = {}
        self._parents: dict[Node, int] = {}
        # Each directory comes before those in it.
        self._order = self._number(root)

    def _number(self, root: Directory) -> list[_Listed]:
        order = []
        numbers, links, parents = self.numbers, self._links, self._parents
        stack = [root]
        while stack:
            directory = stack.pop()
            # Linux' lookup expects the order of the bytes.
            entries = sorted(directory.children.items())
            below = []
            for name, node in entries:
                if node not in numbers:
                    # The numbers of one directory follow one another: listings store differences.
                    numbers[node] = len(numbers) + 1
                    if node.kind is Kind.DIRECTORY:
                        parents[node] = numbers[directory]
                        below.append(node)
                elif node.kind is Kind.DIRECTORY:
                    raise SquashfsError(f"{shown((None, name))}: a directory has two names")
                else:
                    links[node] = links.get(node, 1) + 1
                if not 0 < len(name) <= _MOST_NAME_BYTES:
                    raise SquashfsError(f"{shown((None, name))}: the name has {len(name)} bytes")
            order.append((directory, entries, len(below)))
            # A list of pairs takes only lists of the same pairs for mypy; these have directories.
            stack += reversed(below)  # type: ignore[arg-type]
        # Linux shows the parent of the root as the number that no inode has.
        parents[root] = len(numbers) + 1
        return order

    def write(self, layout: Layout) -> None:
        """Fill the tables, with the places of file data in `layout`. Raise SquashfsError."""
        positions, inodes = self.positions, self.inodes
        end = inodes.tell()
        # The reversed order has the content of a directory before the directory.
        for directory, entries, subdirectories in reversed(self._order):
            new = []
            for _, node in entries:
                if node not in positions:
                    packed = (
                        self._packed_file(node, layout) if isinstance(node, File) else self._packed(node)
                    )
                    positions[node] = end
                    end += len(packed)
                    new.append(packed)
            # The listing needs the blocks in which these are.
            inodes.append(b"".join(new))
            packed = self._packed_directory(directory, entries, subdirectories)
            positions[directory] = end
            end += len(packed)
            inodes.append(packed)

    def places(self) -> bytes:
        """Return where each inode is, as the format says it, in the order of the numbers."""
        starts = self.inodes.starts
        places = (
            starts[position // METADATA_BYTES] << 16 | position % METADATA_BYTES
            for position in map(self.positions.__getitem__, self.numbers)
        )
        return struct.pack(f"<{len(self.numbers)}Q", *places)

    def _head(self, node: Node, extended: bool) -> tuple[int, int, int, int, int, int]:
        mtime = node.mtime_s
        if not 0 <= mtime <= _MOST_TIME_S:
            # mksquashfs takes the nearest time that fits too.
            mtime = min(max(mtime, 0), _MOST_TIME_S)
        ids = self.ids
        kind = node.kind + _EXTENDED if extended else node.kind
        return kind, node.mode & 0o7777, ids[node.uid], ids[node.gid], mtime, self.numbers[node]

    def _packed(self, node: Node) -> bytes:
        links = self._links.get(node, 1)
        xattr = self.xattrs.number(node.xattrs)
        extended = xattr != NO_XATTR_LIST
        head = self._head(node, extended)
        if isinstance(node, Symlink):
            if not 0 < len(node.target) <= _MOST_TARGET_BYTES:
                raise SquashfsError(f"the target of a symlink has {len(node.target)} bytes")
            packed = _PLAIN_WORD.pack(*head, links, len(node.target)) + node.target
            return packed + _WORD.pack(xattr) if extended else packed
        if isinstance(node, BlockDevice | CharacterDevice):
            if extended:
                return _PLAIN_TWO_WORDS.pack(*head, links, node.device, xattr)
            return _PLAIN_WORD.pack(*head, links, node.device)
        return _PLAIN_WORD.pack(*head, links, xattr) if extended else _PLAIN.pack(*head, links)

    def _packed_file(self, node: File, layout: Layout) -> bytes:
        start, fragment = 0, NO_FRAGMENT
        source = node.source
        if source is not None:
            if node.stored_bytes:
                start = layout.starts[source][node.start]
            if node.fragment != NO_FRAGMENT:
                fragment = layout.numbers[source][node.fragment]
        links = self._links.get(node, 1)
        size, sparse, offset = node.size_bytes, node.sparse_bytes, node.fragment_offset
        if links > 1 or sparse or node.xattrs or size > _MOST_WORD or start > _MOST_WORD:
            xattr = self.xattrs.number(node.xattrs)
            fields = (start, size, sparse, links, fragment, offset, xattr)
            return _LONG_FILE.pack(*self._head(node, True), *fields) + node.blocks
        return _FILE.pack(*self._head(node, False), start, fragment, offset, size) + node.blocks

    def _packed_directory(self, directory: Directory, entries: _Entries, subdirectories: int) -> bytes:
        begin = self.directories.tell()
        listing, index = self._listing(entries)
        if len(listing) > _MOST_LISTING_BYTES:
            raise SquashfsError(f"a directory of {len(entries)} entries is too large for SquashFS")
        self.directories.append(listing)
        start, offset = self.directories.place(begin)
        size = len(listing) + _DOTS_BYTES
        links = 2 + subdirectories
        xattr = self.xattrs.number(directory.xattrs)
        extended = bool(index) or xattr != NO_XATTR_LIST or size > 0xFFFF
        head = self._head(directory, extended)
        parent = self._parents[directory]
        if not extended:
            return _DIRECTORY.pack(*head, start, links, size, offset, parent)
        packed = _LONG_DIRECTORY.pack(*head, links, size, start, parent, len(index), offset, xattr)
        for position, name in index:
            block, _ = self.directories.place(begin + position)
            packed += _INDEX.pack(position, block, len(name) - 1) + name
        return packed

    def _listing(self, entries: _Entries) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Return the listing of a directory, and its index: a position and a name for each 8 KiB.

        Linux searches the index first. Without it, a lookup reads the listing from its beginning.
        """
        listing = bytearray()
        index: list[tuple[int, bytes]] = []
        indexed = 0
        header = count = first = 0
        last_block = -1
        numbers, positions, pack = self.numbers, self.positions, _ENTRY.pack
        starts = self.inodes.starts
        for name, node in entries:
            block_number, offset = divmod(positions[node], METADATA_BYTES)
            block = starts[block_number]
            number = numbers[node]
            position = len(listing)
            full = position + _ENTRY.size + len(name) - indexed > METADATA_BYTES
            if (
                block != last_block
                or count == _MOST_HEADER_ENTRIES
                or full
                or not -32768 <= number - first <= 32767
            ):
                if count:
                    _HEADER.pack_into(listing, header, count - 1, last_block, first)
                    if full:
                        index.append((position, name))
                        indexed = position
                header, last_block, first, count = position, block, number, 0
                listing += bytes(_HEADER.size)
            listing += pack(offset, number - first, node.kind, len(name) - 1) + name
            count += 1
        if count:
            _HEADER.pack_into(listing, header, count - 1, last_block, first)
        return bytes(listing), index
