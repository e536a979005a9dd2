"""Small files read whole, which others may have put there: a pipe or a device in their place is told."""

import errno
import os
import stat
from io import BufferedReader

# Nothing that is read whole is nearly as large.
_MOST_BYTES = 1 << 28


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; raises OSError, also for a pipe or a device."""
    # Opening a pipe to which nobody writes would wait for ever.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "a socket, a pipe or a device, not a file", os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All of a regular file; raises OSError, also when it is larger than anything that we read."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        return file.read()


def read_text(path: str | os.PathLike[str]) -> str:
    """All of a regular file of UTF-8; raises OSError or UnicodeDecodeError."""
    return read_bytes(path).decode()
