"""inotify: the kernel's events on files, and whether they report all changes of a directory."""

import ctypes
import os
import select
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from rc_tasks.util.mounts import mount_of, mounts

# File systems whose files change only through this kernel. Of others, such as Lustre and NFS, inotify
# "does not catch remote events" (inotify(7)), which are those of other nodes.
_COMPLETE = frozenset(
    {
        *("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "ntfs3"),
        *("overlay", "ramfs", "reiserfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"),
    }
)
# inotify(7): IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM and _TO, IN_CREATE, IN_DELETE,
# IN_DELETE_SELF and IN_MOVE_SELF. Reading makes no event.
_CHANGES = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800


class Blind(Struct, frozen=True):
    """A directory on a file system where events do not report all changes; `kind` is its type."""

    directory: Path
    kind: str


def blind_spot(directories: Iterable[Path]) -> Blind | None:
    """Return the first directory in which events miss changes, or None when they report all."""
    table = mounts()
    for directory in directories:
        mount = mount_of(Path(os.path.realpath(directory)), table)
        if mount is None or mount.kind not in _COMPLETE:
            return Blind(directory, mount.kind if mount is not None else "on an unknown file system")
    return None


class Events:
    """The events in some directories, but not below them, since this object was made.

    Use it as a context manager. A directory that is missing has no events. Making it raises OSError when
    the kernel grants no more watches.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        # The packages that wrap this take names for UTF-8, and wake up many times a second.
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            for directory in directories:
                try:
                    _checked(libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _CHANGES))
                except (FileNotFoundError, NotADirectoryError):
                    continue
        except OSError:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def wait(self) -> None:
        """Return after the next event, and forget all that have come until then."""
        select.select([self._descriptor], [], [])
        # One call reads at most this much; the rest only wakes the caller once more.
        os.read(self._descriptor, 1 << 20)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
