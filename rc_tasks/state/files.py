"""Writing a small file so that nobody ever sees half of it, and why a file cannot be written."""

import contextlib
import errno
import glob
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.state.reading import denied

_DAY_S = 86_400.0
# See `temporary_prefix`; what follows is tempfile's.
_TEMPORARY = re.compile(r"(\..+)\.(\d+)\.\w+")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_ANSWER = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ESHUTDOWN}
)
_IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP})


def write_atomically(path: Path, text: str) -> None:
    """Write beside the file, sync, rename over it; after `kill -9` the old or the new text is there.

    The file is readable as the umask says, whatever mkstemp's own mode. Raises RcError when the disk
    is full or the directory cannot be written.
    """
    try:
        _write(path, text)
    except OSError as error:
        raise refused(error, path) or error from None


def temporary_prefix(name: str) -> str:
    """How temporary files of this process for `name` begin: others can tell whose they are."""
    return f".{name}.{os.uname().nodename}.{os.getpid()}."


def sweep_temporaries(directory: Path, name: str) -> None:
    """Remove what killed processes of this host left for `name`, and on other hosts a day ago."""
    for left in temporaries(directory, name):
        with contextlib.suppress(OSError):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def temporaries(directory: Path, name: str) -> list[Path]:
    """What `sweep_temporaries` would remove."""
    found = []
    for left in directory.glob(f".{glob.escape(name)}.*"):
        with contextlib.suppress(OSError):
            if _abandoned(left, name):
                found.append(left)
    return found


def _abandoned(path: Path, name: str) -> bool:
    node, _, pid = path.name.removeprefix(f".{name}.").rpartition(".")[0].rpartition(".")
    # Somebody's editor has temporary files of its own there.
    return pid.isdecimal() and _left(path, node == os.uname().nodename, pid)


def abandoned(directory: Path) -> Iterator[Path]:
    """What killed processes left in a directory of ours, whatever for, as in `sweep_temporaries`."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            found = _TEMPORARY.fullmatch(name)
            with contextlib.suppress(OSError):
                here = found is not None and found[1].endswith(f".{os.uname().nodename}")
                if found is not None and _left(directory / name, here, found[2]):
                    yield directory / name


def _left(path: Path, here: bool, pid: str) -> bool:
    if here:
        return not alive(int(pid))
    return path.lstat().st_mtime < time.time() - _DAY_S


def alive(pid: int) -> bool:
    """Whether a process of this number runs on this host, whoever's it is."""
    # Not by /proc: mounted with hidepid it shows nobody but ourselves.
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def refused(error: OSError, path: Path | None = None) -> RcError | None:
    """What a user can mend of a failed system call: a full disk, missing rights; None for the rest.

    `path` is what was to be written or read, where the error itself does not name it.
    """
    where = path or error.filename2 or error.filename
    if error.errno in _FULL:
        return RcError(
            f"cannot be written: {error.strerror}",
            where=where,
            hint="free space or ask for more quota there, then run the same command again",
        )
    if error.errno in _FORBIDDEN:
        return (denied(Path(os.fsdecode(where))) if where else None) or RcError(
            f"cannot be written or read: {error.strerror}",
            where=where,
            hint="`ls -ld` that path to see whose it is, or work in a clone of your own",
        )
    if error.errno in _NO_ANSWER:
        return RcError(
            f"the file system gives no answer: {error.strerror}",
            where=where,
            hint="run the same command again, on another node if it fails again here",
        )
    if error.errno in _IN_THE_WAY:
        return RcError(
            f"something else is in this place: {error.strerror}",
            where=where,
            hint="move it away, then run the same command again",
        )
    return None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=temporary_prefix(path.name), dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def open_up(directory: str | Path) -> None:
    """Give a directory of tempfile's, which is its maker's alone, the mode that the umask says.

    A set-group-ID bit stays. Without it, what is made there belongs to the maker's own group, and no
    other member of the checkout's group could remove it.
    """
    os.chmod(directory, stat.S_IMODE(os.stat(directory).st_mode) | 0o777 & ~umask())


def with_careful_umask() -> None:
    """Let nothing that this process makes be written by everybody, whatever the caller's umask."""
    os.umask(umask() | stat.S_IWOTH)


def umask() -> int:
    """The bits that new files do not get."""
    # There is no way to read the umask but to set it; /proc tells it without a race between threads.
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022
