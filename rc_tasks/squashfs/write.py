"""Writing a tree as a SquashFS image: file data is copied from the layers, all tables are made again.

The order of the tables and their exact lengths are what Linux checks when it mounts an image (super.c
and the *_table functions in fs/squashfs).
"""

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from msgspec import Struct

from rc_tasks.squashfs.compression import Codec, compressor
from rc_tasks.squashfs.data import Layout, copy, lay_out
from rc_tasks.squashfs.inodes import InodeWriter
from rc_tasks.squashfs.metadata import lookup_table, stored_block
from rc_tasks.squashfs.superblock import (
    NO_TABLE,
    SUPERBLOCK_BYTES,
    Flag,
    SquashfsError,
    Superblock,
    padded,
)
from rc_tasks.squashfs.tree import Form, Tree, files
from rc_tasks.squashfs.xattrs import XattrWriter

_LATEST_S = 0xFFFFFFFF
_ID = struct.Struct("<I")


class Written(Struct, frozen=True):
    """What was written: the length of the file, how much of it was copied, and its inodes."""

    size_bytes: int
    copied_bytes: int
    inodes: int


class FullError(SquashfsError):
    """There is no space for the image."""


def write(tree: Tree, target: Path, *, made_at: int, exportable: bool = True) -> Written:
    """Write a tree to `target`, a name that does not exist; leave nothing on failure.

    `made_at` is the time in the superblock, in seconds since the epoch. `exportable` adds the table that
    NFS servers need, as mksquashfs does. The file is not synchronized to the disk.
    Raise ChangedLayerError when a layer has changed since it was read, FullError when there is no space
    for the file, SquashfsError when it cannot be written, or the tree has what the format cannot hold.
    """
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        with _removed_on_failure(target):
            return _write(tree, descriptor, target, made_at, exportable)
    except OSError as error:
        raise _unwritable(target, error) from None
    except SquashfsError as error:
        raise (error if error.where else error.with_where(target)) from None
    finally:
        os.close(descriptor)


def _write(tree: Tree, descriptor: int, target: Path, made_at: int, exportable: bool) -> Written:
    form = tree.form
    options = stored_block(form.options, None) if form.options else b""
    compress, compress_xattrs = _codecs(form)
    layout = lay_out(files(tree.root), SUPERBLOCK_BYTES + len(options))
    # The kernel copies while the inodes are numbered and the tables are made.
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(copy, layout.copies, descriptor, target, stop)
        try:
            writer = InodeWriter(tree.root, compress, XattrWriter(compress_xattrs))
            writer.write(layout)
            superblock, tables = _tables(form, writer, layout, made_at, exportable)
            copying.result()
        finally:
            stop.set()
    size_bytes = padded(superblock.used_bytes)
    tables.append(bytes(size_bytes - superblock.used_bytes))
    _write_at(descriptor, b"".join(tables), layout.end)
    _write_at(descriptor, superblock.pack() + options, 0)
    copied_bytes = sum(one.size_bytes for one in layout.copies)
    return Written(size_bytes, copied_bytes, superblock.inodes)


def _codecs(form: Form) -> tuple[Codec | None, Codec | None]:
    """Return what compresses inodes and directories, and what compresses attributes."""
    compress = compressor(form.compressor)
    return (
        None if form.flags & Flag.PLAIN_INODES else compress,
        None if form.flags & Flag.PLAIN_XATTRS else compress,
    )


def _tables(
    form: Form, writer: InodeWriter, layout: Layout, made_at: int, exportable: bool
) -> tuple[Superblock, list[bytes]]:
    """Return the superblock, and the tables in the order in which Linux expects them."""
    compress = writer.inodes.compress
    inodes = len(writer.numbers)
    inode_table = layout.end
    tables = [bytes(writer.inodes.finish()), bytes(writer.directories.finish())]
    directory_table = inode_table + len(tables[0])
    at = directory_table + len(tables[1])
    fragment_table, export_table = at, NO_TABLE
    if layout.fragments:
        fragment_table, table = lookup_table(layout.fragments, at, compress)
        tables.append(table)
        at += len(table)
    if exportable:
        export_table, table = lookup_table([writer.places()], at, compress)
        tables.append(table)
        at += len(table)
    ids = [_ID.pack(number) for number in writer.ids]
    id_table, table = lookup_table(ids, at, None if form.flags & Flag.PLAIN_IDS else compress)
    tables.append(table)
    at += len(table)
    xattr_table, table = writer.xattrs.tables(at)
    tables.append(table)
    root, offset = writer.inodes.place(writer.positions[writer.root])
    superblock = Superblock(
        inodes=inodes,
        made_at=min(max(made_at, 0), _LATEST_S),
        block_size_bytes=form.block_size_bytes,
        compression=form.compressor,
        used_bytes=at + len(table),
        fragments=len(layout.fragments),
        flags=_flags(form, exportable, xattr_table != NO_TABLE),
        ids=len(ids),
        root_inode=root << 16 | offset,
        id_table=id_table,
        xattr_table=xattr_table,
        inode_table=inode_table,
        directory_table=directory_table,
        fragment_table=fragment_table,
        export_table=export_table,
    )
    return superblock, tables


def _flags(form: Form, exportable: bool, has_xattrs: bool) -> int:
    flags = form.flags & ~(Flag.EXPORTABLE | Flag.NO_XATTRS | Flag.COMPRESSOR_OPTIONS)
    if compressor(form.compressor) is None:
        flags |= Flag.PLAIN_INODES | Flag.PLAIN_IDS | Flag.PLAIN_XATTRS
    flags |= Flag.EXPORTABLE if exportable else 0
    flags |= 0 if has_xattrs else Flag.NO_XATTRS
    return flags | (Flag.COMPRESSOR_OPTIONS if form.options else 0)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


@contextlib.contextmanager
def _removed_on_failure(target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _unwritable(target: Path, error: OSError) -> SquashfsError:
    what = f"the image cannot be written: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free space or ask for more quota there, then run again"
        return FullError(what, where=target, hint=hint)
    hint = "check the directory and its permissions, then run again"
    return SquashfsError(what, where=target, hint=hint)
