"""Read small files that other users may have written; a pipe or a device is an error."""

import errno
import os
import stat
from io import BufferedReader
from typing import TypeVar

from rc_tasks.errors import RcError

E = TypeVar("E", bound=RcError)

# No file that is read as a whole is nearly as large.
_MOST_BYTES = 1 << 28
# Error numbers of exhausted limits, and of disks and servers that do not answer.
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
    """Open a regular file for reading. Raise OSError, also for a pipe, a socket or a device."""
    # Without O_NONBLOCK, opening a pipe without a writer would wait for ever.
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file. Raise OSError, also above the limit of 256 MiB."""
    # Each start reads thousands of small files, and a reader from `open_regular` costs more than
    # os.read.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))
        if status.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        content = os.read(descriptor, status.st_size)
        # We ignore bytes that are appended meanwhile, as a fast writer would keep us here for ever.
        while len(content) < status.st_size and (
            more := os.read(descriptor, status.st_size - len(content))
        ):
            content += more
        return content
    finally:
        os.close(descriptor)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a regular file of UTF-8. Raise OSError or UnicodeDecodeError."""
    return read_bytes(path).decode()


def unreadable(kind: type[E], error: OSError, where: object, correct: str) -> E:
    """Return the error of a file at `where` that cannot be read; `correct` is as in `advice`."""
    return kind(f"cannot be read: {error.strerror}", where=where, hint=advice(error, correct))


def advice(error: OSError, correct: str) -> str:
    """Return the hint for an unreadable file: `correct`, unless the system is at fault."""
    if error.errno in _LIMITS:
        return "raise the limit (`ulimit -a`) or end something here, then run the same command again"
    if error.errno in _NO_ANSWER:
        return "its file system fails: run the same command again, on another host if it fails again"
    return correct
