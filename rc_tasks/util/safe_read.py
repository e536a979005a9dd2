"""Small files read whole, which others may have put there: a pipe or a device in their place is told."""

import errno
import os
import stat
from io import BufferedReader

# Nothing that is read whole is nearly as large.
_MOST_BYTES = 1 << 28
# What the system says of its limits, and of disks and servers that do not answer.
_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
_NO_ANSWER = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.ENODEV,
        errno.EREMOTEIO,
    }
)
_NO_FILE = "a socket, a pipe or a device, not a file"


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; raises OSError, also for a pipe or a device."""
    # Opening a pipe to which nobody writes would wait for ever.
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All that a regular file holds now; raises OSError, also when it is larger than any we read."""
    # As `open_regular`, but thousands of small files are read at each start, and a reader costs more.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))
        if status.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        found = os.read(descriptor, status.st_size)
        # What is added meanwhile is left to the next reader: a fast writer would keep us here for ever.
        while len(found) < status.st_size and (more := os.read(descriptor, status.st_size - len(found))):
            found += more
        return found
    finally:
        os.close(descriptor)


def read_text(path: str | os.PathLike[str]) -> str:
    """All of a regular file of UTF-8; raises OSError or UnicodeDecodeError."""
    return read_bytes(path).decode()


def advice(error: OSError, correct: str) -> str:
    """What to do about a file that cannot be read: `correct` it, unless the system is at fault."""
    if error.errno in _LIMITS:
        return "raise the limit (`ulimit -a`) or end something here, then run the same command again"
    if error.errno in _NO_ANSWER:
        return "its file system fails: run the same command again, on another host if it fails again"
    return correct
