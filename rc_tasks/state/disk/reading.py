"""Reader of the generated state, which distinguishes missing files from unreadable ones.

A missing record means "never built". A record or a directory that this user or this node cannot read
says nothing about the image. So its OSError goes up to the code that reports errors, and
`files.refused` gives the message.
"""

import errno
import os
import shlex
import stat
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.state.disk.trust import user
from rc_tasks.util.safe_read import read_bytes

# The directory of a checkout with all generated state.
GENERATED = ".rc"
# No file of ours is there. A directory, a pipe or a loop of links in its place counts as none.
_NOTHING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EFBIG})


def content(path: str | Path) -> bytes | None:
    """Return a file's content, or None when it is not there. Raise OSError."""
    try:
        return read_bytes(path)
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise


def names(directory: str | Path) -> list[str]:
    """Return the sorted names in a directory, or none when it is not there. Raise OSError."""
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        if error.errno in _NOTHING:
            return []
        raise


def status(path: str | Path) -> os.stat_result | None:
    """Return the status of what a path leads to, or None when nothing is there. Raise OSError."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise


def denied(path: Path) -> RcError | None:
    """Return what keeps this user from reading a path, with the command for its owner, or None."""
    path = Path(os.path.abspath(path))
    for place in (*reversed(path.parents), path):
        try:
            status_of = os.stat(place)
        except OSError:
            return None
        enter = os.X_OK if stat.S_ISDIR(status_of.st_mode) else 0
        if not os.access(place, enter | (os.R_OK if place == path else 0)):
            return _denied(place, status_of)
    return None


def _denied(place: Path, status_of: os.stat_result) -> RcError:
    mine = status_of.st_uid == os.geteuid()
    who = "u" if mine else "go"
    if GENERATED in place.parts:
        # One umask made it all.
        top = Path(*place.parts[: place.parts.index(GENERATED) + 1])
        command = f"chmod -R {who}+rX {shlex.quote(str(top))}"
    else:
        right = "rx" if stat.S_ISDIR(status_of.st_mode) else "r"
        command = f"chmod {who}+{right} {shlex.quote(str(place))}"
    owner, mode = user(status_of.st_uid), f"{stat.S_IMODE(status_of.st_mode):04o}"
    return RcError(
        f"cannot be read: {os.strerror(errno.EACCES)} (owner {owner}, mode {mode})",
        where=place,
        hint=command if mine else f"ask {owner} to run {command}\nor work in a clone of your own",
    )
