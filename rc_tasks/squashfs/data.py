"""File data of a new image: which ranges of which layers it takes, where they go, and copying them.

Neither data blocks nor fragments depend on where they are in an image, so they are copied compressed.
"""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event

from msgspec import Struct, field

from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.squashfs.tree import BLOCK_BYTES_MASK, FRAGMENT, NO_FRAGMENT, File, LayerFile, identity

# The file systems, or this kernel, do not copy ranges between these two files.
_CANNOT_COPY = frozenset(
    (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF)
)
# Larger ones took up to five times as long (ext4, Linux 6.18).
_BUFFER_BYTES = 256 << 10
# A source, the new file, an offset in each, and how many bytes; it returns how many it has copied.
_Way = Callable[[int, int, int, int, int], int]
# Between two of these it looks whether to stop.
_MOST_COPIED_BYTES = 256 << 20


class ChangedLayerError(SquashfsError):
    """The file of a layer was replaced, removed or written to since it was read."""


class Copy(Struct, frozen=True):
    """`size_bytes` of a source's file, from `start` on, that go to `target` in the new one."""

    source: LayerFile
    start: int
    target: int
    size_bytes: int


class Layout(Struct):
    """Where the data of files and the fragments go; `end` is the offset behind all of it."""

    end: int
    copies: list[Copy] = field(default_factory=list)
    # Entries of the new table, and by source: new starts and numbers by old ones.
    fragments: list[bytes] = field(default_factory=list)
    starts: dict[LayerFile, dict[int, int]] = field(default_factory=dict)
    numbers: dict[LayerFile, dict[int, int]] = field(default_factory=dict)


def lay_out(files: Iterable[File], begin: int) -> Layout:
    """Return where the data of files goes in an image whose data begins at an offset.

    What several files share is taken once. Ranges that follow one another are one copy.
    """
    extents: dict[LayerFile, dict[int, int]] = {}
    fragments: dict[LayerFile, set[int]] = {}
    for file in files:
        if file.source is None:
            continue
        if file.stored_bytes:
            # Files can share their first blocks: the longer one counts.
            ends = extents.setdefault(file.source, {})
            ends[file.start] = max(ends.get(file.start, 0), file.start + file.stored_bytes)
        if file.fragment != NO_FRAGMENT:
            fragments.setdefault(file.source, set()).add(file.fragment)
    layout = Layout(begin)
    for source in {**extents, **fragments}:
        ends = extents.get(source, {})
        blocks = []
        for number in sorted(fragments.get(source, ())):
            start, word = source.fragment(number)
            ends[start] = max(ends.get(start, 0), start + (word & BLOCK_BYTES_MASK))
            blocks.append((number, start, word))
        starts = layout.starts[source] = _place(layout, source, ends)
        numbers = layout.numbers[source] = {}
        for number, start, word in blocks:
            numbers[number] = len(layout.fragments)
            layout.fragments.append(FRAGMENT.pack(starts[start], word, 0))
    return layout


def _place(layout: Layout, source: LayerFile, ends: dict[int, int]) -> dict[int, int]:
    """Append ranges of a source, which may overlap; return their new starts by the old ones."""
    starts = {}
    begin = end = -1
    for start, stop in sorted(ends.items()):
        if start > end:
            _append(layout, source, begin, end)
            begin = start
        starts[start] = layout.end + start - begin
        end = max(end, stop)
    _append(layout, source, begin, end)
    return starts


def _append(layout: Layout, source: LayerFile, begin: int, end: int) -> None:
    if end > begin:
        layout.copies.append(Copy(source, begin, layout.end, end - begin))
        layout.end += end - begin


def copy(copies: Iterable[Copy], descriptor: int, target: Path, stop: Event) -> None:
    """Copy ranges into an open file; return early once `stop` is set.

    Raise ChangedLayerError when a source has changed since it was read, OSError when `target` cannot be
    written.
    """
    opened: dict[LayerFile, int] = {}
    try:
        for one in copies:
            source = opened.get(one.source)
            if source is None:
                source = opened[one.source] = _open(one.source)
            _copy_range(one, source, descriptor, target, stop)
        for layer, source in opened.items():
            _require_unchanged(layer, source)
    finally:
        for source in opened.values():
            os.close(source)


def _open(source: LayerFile) -> int:
    try:
        descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _changed(source, f"cannot be opened again: {error.strerror}") from None
    try:
        _require_unchanged(source, descriptor)
    except ChangedLayerError:
        os.close(descriptor)
        raise
    return descriptor


def _require_unchanged(source: LayerFile, descriptor: int) -> None:
    if identity(os.fstat(descriptor)) != source.identity:
        raise _changed(source, "changed while it was merged")


def _copy_range(one: Copy, source: int, descriptor: int, target: Path, stop: Event) -> None:
    done = 0
    ways = list(_WAYS)
    while done < one.size_bytes and not stop.is_set():
        left_bytes = min(one.size_bytes - done, _MOST_COPIED_BYTES)
        try:
            count = ways[0](source, descriptor, one.start + done, one.target + done, left_bytes)
        except OSError as error:
            if error.errno not in _CANNOT_COPY or len(ways) == 1:
                raise OSError(error.errno, error.strerror, str(target)) from None
            count = 0
        done += count
        if count == 0:
            # Some network file systems copy nothing, and say so in this way alone.
            del ways[0]
            if not ways:
                raise _changed(one.source, "became shorter while it was merged")


def _copy_within_kernel(source: int, descriptor: int, start: int, goal: int, size_bytes: int) -> int:
    return os.copy_file_range(source, descriptor, size_bytes, start, goal)


def _send(source: int, descriptor: int, start: int, goal: int, size_bytes: int) -> int:
    """Copy between two file systems; unlike `_read_and_write`, it waits for no other thread of ours."""
    os.lseek(descriptor, goal, os.SEEK_SET)
    return os.sendfile(descriptor, source, start, size_bytes)


def _read_and_write(source: int, descriptor: int, start: int, goal: int, size_bytes: int) -> int:
    content = os.pread(source, min(size_bytes, _BUFFER_BYTES), start)
    return os.pwrite(descriptor, content, goal) if content else 0


# Each is tried where those before it do not work.
_WAYS: tuple[_Way, ...] = (_copy_within_kernel, _send, _read_and_write)


def _changed(source: LayerFile, why: str) -> ChangedLayerError:
    return ChangedLayerError(f"the layer {why}", where=source.path, hint="merge the layers again")
