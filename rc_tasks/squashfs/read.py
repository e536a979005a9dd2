"""Reading an image: all inodes and directories, and where the data of files is.

A file may come from anybody: all offsets, counts and sizes are compared with it before they are used,
and no part of it is read more than once in a way that would multiply its size.
"""

import os
import struct
from pathlib import Path

from rc_tasks.squashfs.compression import METADATA_BYTES
from rc_tasks.squashfs.metadata import MetadataReader, Table
from rc_tasks.squashfs.superblock import (
    NO_TABLE,
    SUPERBLOCK_BYTES,
    Flag,
    SquashfsError,
    Superblock,
    damaged,
    not_whole,
)
from rc_tasks.squashfs.tree import (
    BLOCK_BYTES_MASK,
    FRAGMENT,
    NO_FRAGMENT,
    NO_XATTRS,
    PLAIN_BLOCK,
    BlockDevice,
    CharacterDevice,
    Directory,
    Fifo,
    File,
    Kind,
    Layer,
    LayerFile,
    Node,
    Socket,
    Symlink,
    Xattrs,
    identity,
)
from rc_tasks.squashfs.xattrs import NO_XATTR_LIST, XattrReader

# Linux' PATH_MAX and SQUASHFS_NAME_LEN.
_MOST_TARGET_BYTES = 4096
_MOST_NAME_BYTES = 256
_MOST_HEADER_ENTRIES = 256

_INODE = struct.Struct("<4HII")
# Files are most of an image: their common fields and their own are read at once.
_FILE = struct.Struct("<4HII4I")
_LONG_FILE = struct.Struct("<4HII3Q4I")
_DIRECTORY = struct.Struct("<2I2HI")
_LONG_DIRECTORY = struct.Struct("<4I2HI")
_LINKS = struct.Struct("<I")
_LINKS_AND_WORD = struct.Struct("<2I")
_LINKS_AND_TWO_WORDS = struct.Struct("<3I")
_HEADER = struct.Struct("<3I")
_ENTRY = struct.Struct("<HhHH")
_WORD = struct.Struct("<I")
_PLACE = struct.Struct("<Q")
# Listings begin with `.` and `..` for Linux, which counts three bytes for them.
_DOTS_BYTES = 3
_WRONG_ENTRY = "a directory has an entry without a valid name or place"


def read_layer(path: Path) -> Layer:
    """Read an image. Raise SquashfsError when it is missing, damaged, or compressed with lzo."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise not_whole(path, f"it cannot be read: {error.strerror}") from None
    try:
        superblock = Superblock.parse(os.pread(descriptor, SUPERBLOCK_BYTES, 0), path)
        status = os.fstat(descriptor)
        if superblock.used_bytes > status.st_size:
            used = superblock.used_bytes
            raise not_whole(path, f"it is {status.st_size} bytes long and should be {used}")
        size = superblock.block_size_bytes
        if size & (size - 1) or not 4096 <= size <= 1 << 20:
            raise damaged(path, 12, f"the block size is {size}")
        return _Reader(descriptor, path, superblock, status).image()
    except struct.error:
        raise not_whole(path, "a table ends too early") from None
    except OSError as error:
        raise not_whole(path, f"it cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


class _Reader:
    def __init__(
        self, descriptor: int, path: Path, superblock: Superblock, status: os.stat_result
    ) -> None:
        self.path = path
        self.superblock = superblock
        reader = MetadataReader(descriptor, path, superblock)
        ids_begin, ids = reader.lookup(superblock.id_table, superblock.ids, _WORD)
        self.ids: list[int] = [value for (value,) in _WORD.iter_unpack(ids)]
        self.xattrs = XattrReader(reader, superblock)
        begins = [ids_begin, self.xattrs.begin]
        fragments = b""
        if superblock.fragments:
            begin, fragments = reader.lookup(superblock.fragment_table, superblock.fragments, FRAGMENT)
            begins.append(begin)
        if superblock.export_table not in (NO_TABLE, 0):
            begins.append(reader.lookup(superblock.export_table, superblock.inodes, _PLACE)[0])
        self.inodes = reader.run(superblock.inode_table, superblock.directory_table)
        self.directories = reader.run(superblock.directory_table, min(begins))
        options = b""
        if superblock.flags & Flag.COMPRESSOR_OPTIONS:
            options, _ = reader.plain_block(SUPERBLOCK_BYTES)
        self.source = LayerFile(path, superblock, options, fragments, identity(status))
        # The numbers of those that are known to be in the image.
        self.fragments: set[int] = set()
        # What lists of blocks, targets and listings have taken of the tables so far.
        self.inode_bytes = self.listing_bytes = 0

    def image(self) -> Layer:
        """Read the tree from its root on, without recursion: no path is too long."""
        root_place = self.superblock.root_inode
        position = self._position(self.inodes, root_place >> 16, root_place & 0xFFFF)
        nodes: dict[int, Node] = {}
        kind = _INODE.unpack_from(self.inodes.content, position)[0]
        if kind not in (Kind.DIRECTORY, Kind.DIRECTORY + 7):
            raise damaged(self.path, 32, "the root is not a directory")
        root, listing = self._directory(position)
        nodes[position] = root
        stack = [(root, listing)]
        while stack:
            self._list(*stack.pop(), nodes, stack)
        return Layer(self.source, root)

    def _list(
        self,
        directory: Directory,
        listing: tuple[int, int],
        nodes: dict[int, Node],
        stack: list[tuple[Directory, tuple[int, int]]],
    ) -> None:
        """Read the entries of a directory; put directories among them on the stack."""
        position, end = listing
        content = self.directories.content
        children = directory.children
        entry_of, starts = _ENTRY.unpack_from, self.inodes.starts
        entries = 0
        while position < end:
            count, start, _ = _HEADER.unpack_from(content, position)
            position += _HEADER.size
            block = starts.get(start)
            if block is None or count >= _MOST_HEADER_ENTRIES:
                raise self._damaged_listing("a directory names inodes that are not there")
            entries += count + 1
            for _ in range(count + 1):
                offset, _, kind, length = entry_of(content, position)
                begin = position + _ENTRY.size
                position = begin + length + 1
                if offset >= METADATA_BYTES or length >= _MOST_NAME_BYTES:
                    raise self._damaged_listing(_WRONG_ENTRY)
                place = block + offset
                node = nodes.get(place)
                if node is None:
                    if kind == 2:
                        node = self._file(place)
                    elif kind == 1:
                        node, below = self._directory(place)
                        stack.append((node, below))
                    else:
                        node = self._node(place, kind)
                    nodes[place] = node
                elif kind == 1 or node.kind != kind:
                    raise self._damaged_inode(place, "a directory has two names, or a link another type")
                children[content[begin:position]] = node
            if position > end:
                raise self._damaged_listing(_WRONG_ENTRY)
        names = b"".join(children)
        if (
            len(children) != entries
            or b"/" in names
            or b"\0" in names
            or b"." in children
            or b".." in children
        ):
            raise self._damaged_listing(_WRONG_ENTRY)

    def _directory(self, position: int) -> tuple[Directory, tuple[int, int]]:
        """Read the inode of a directory; return it with the ends of its listing."""
        content = self.inodes.content
        kind, mode, uid, gid, mtime, _ = _INODE.unpack_from(content, position)
        self._require_kind(position, kind, Kind.DIRECTORY)
        if kind == Kind.DIRECTORY:
            start, _, size, offset, _ = _DIRECTORY.unpack_from(content, position + _INODE.size)
            xattr = NO_XATTR_LIST
        else:
            fields = _LONG_DIRECTORY.unpack_from(content, position + _INODE.size)
            _, size, start, _, _, offset, xattr = fields
        size -= _DOTS_BYTES
        begin = 0
        if size > 0:
            begin = self._position(self.directories, start, offset)
            self.listing_bytes += size
            # Listings do not overlap. In a hostile image they would be read again and again.
            if size > len(self.directories.content) - begin:
                raise self._damaged_listing("the listing of a directory ends too late")
            if self.listing_bytes > len(self.directories.content):
                raise self._damaged_listing("listings of directories overlap")
        xattrs = self.xattrs.get(xattr)
        node = Directory(mode & 0o7777, self._id(uid), self._id(gid), mtime, xattrs)
        return node, (begin, begin + max(size, 0))

    def _node(self, position: int, listed: int) -> Node:
        """Read an inode that is neither a directory nor a file; its listing names its kind too."""
        content = self.inodes.content
        kind, mode, uid, gid, mtime, _ = _INODE.unpack_from(content, position)
        self._require_kind(position, kind, listed)
        mode &= 0o7777
        uid, gid = self._id(uid), self._id(gid)
        position += _INODE.size
        match kind:
            case 3 | 10:
                _, length = _LINKS_AND_WORD.unpack_from(content, position)
                position += _LINKS_AND_WORD.size
                target = content[position : position + length]
                if len(target) != length or not 0 < length <= _MOST_TARGET_BYTES or b"\0" in target:
                    raise self._damaged_inode(position, "a symlink has no valid target")
                self._account(length, position)
                xattrs = self._xattrs(kind == 10, position + length)
                return Symlink(mode, uid, gid, mtime, xattrs, target)
            case 4 | 5 | 11 | 12:
                _, device = _LINKS_AND_WORD.unpack_from(content, position)
                xattrs = self._xattrs(kind > 7, position + _LINKS_AND_WORD.size)
                cls = BlockDevice if kind in (4, 11) else CharacterDevice
                return cls(mode, uid, gid, mtime, xattrs, device)
            case 6 | 7 | 13 | 14:
                xattrs = self._xattrs(kind > 7, position + _LINKS.size)
                pipe = Fifo if kind in (6, 13) else Socket
                return pipe(mode, uid, gid, mtime, xattrs)
            case _:
                raise self._damaged_inode(position, f"it is of unknown type {kind}")

    def _file(self, position: int) -> File:
        content = self.inodes.content
        fields = _FILE.unpack_from(content, position)
        kind, mode, uid, gid, mtime, _, start, fragment, offset, size = fields
        sparse, xattrs = 0, NO_XATTRS
        if kind == 2:
            position += _FILE.size
        else:
            self._require_kind(position, kind, Kind.FILE)
            fields = _LONG_FILE.unpack_from(content, position)
            *_, start, size, sparse, _, fragment, offset, xattr = fields
            sparse = min(sparse, size)
            xattrs = self.xattrs.get(xattr)
            position += _LONG_FILE.size
        block_size = self.superblock.block_size_bytes
        count, tail = divmod(size, block_size)
        if fragment == NO_FRAGMENT:
            count += tail > 0
            offset = 0
        else:
            if fragment not in self.fragments:
                self._check_fragment(fragment, position)
            if offset + tail > block_size:
                raise self._damaged_inode(position, "the end of a file is not in its fragment")
        # Most files are small: all of them is in a fragment.
        blocks, stored = self._blocks(position, start, size, count) if count else (b"", 0)
        return File(
            mode & 0o7777, self._id(uid), self._id(gid), mtime, xattrs, size,
            self.source, start if stored else 0, stored, blocks, fragment, offset, sparse,
        )  # fmt: skip

    def _blocks(self, position: int, start: int, size: int, count: int) -> tuple[bytes, int]:
        """Return the list of a file's data blocks, and how many bytes they take in the image."""
        blocks = self.inodes.content[position : position + 4 * count]
        if len(blocks) != 4 * count:
            raise self._damaged_inode(position, f"a file of {size} bytes has too few blocks")
        self._account(len(blocks), position)
        # A file of terabytes can be all zeros.
        if blocks.count(0) == len(blocks):
            return blocks, 0
        sizes = [word & ~PLAIN_BLOCK for word in struct.unpack(f"<{count}I", blocks)]
        stored = sum(sizes)
        if max(sizes) > self.superblock.block_size_bytes or start + stored > self.superblock.used_bytes:
            raise self._damaged_inode(position, "the data of a file is not in the image")
        return blocks, stored

    def _check_fragment(self, number: int, position: int) -> None:
        if number >= self.superblock.fragments:
            raise self._damaged_inode(position, f"there is no fragment {number}")
        start, word = self.source.fragment(number)
        size = word & BLOCK_BYTES_MASK
        if word & ~(PLAIN_BLOCK | BLOCK_BYTES_MASK) or size > self.superblock.block_size_bytes:
            raise self._damaged_inode(position, f"fragment {number} is too large")
        if start + size > self.superblock.used_bytes:
            raise self._damaged_inode(position, f"fragment {number} is not in the image")
        self.fragments.add(number)

    def _xattrs(self, extended: bool, position: int) -> Xattrs:
        if not extended:
            return self.xattrs.get(NO_XATTR_LIST)
        return self.xattrs.get(_WORD.unpack_from(self.inodes.content, position)[0])

    def _require_kind(self, position: int, kind: int, listed: int) -> None:
        if kind not in (listed, listed + 7):
            raise self._damaged_inode(position, f"it is of type {kind}, not {listed}")

    def _account(self, size_bytes: int, position: int) -> None:
        # Inodes do not overlap. In a hostile image they would take ever more memory.
        self.inode_bytes += size_bytes
        if self.inode_bytes > len(self.inodes.content):
            raise self._damaged_inode(position, "inodes overlap")

    def _id(self, number: int) -> int:
        if number >= len(self.ids):
            raise damaged(self.path, self.superblock.id_table, f"there is no owner number {number}")
        return self.ids[number]

    def _position(self, table: Table, start: int, offset: int) -> int:
        block = table.starts.get(start)
        if block is None or offset >= METADATA_BYTES:
            raise damaged(self.path, table.at, f"there is no block {start} with an offset {offset}")
        return block + offset

    def _damaged_inode(self, position: int, why: str) -> SquashfsError:
        return damaged(
            self.path,
            self.superblock.inode_table,
            f"in the table of inodes, after {position} bytes without compression, {why}",
        )

    def _damaged_listing(self, why: str) -> SquashfsError:
        return damaged(self.path, self.superblock.directory_table, f"in the table of directories, {why}")
