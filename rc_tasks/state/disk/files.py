"""Atomic writes, their temporary files, and errors of the file system that a user can fix.

Every file that a lock guards gets its name through `put_in_place`, which checks that the lock is still
held.
"""

import contextlib
import errno
import glob
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rc_tasks.errors import DiskFullError, RcError
from rc_tasks.state.disk import processes
from rc_tasks.state.disk.reading import denied

_DAY_S = 86_400.0
# See `temporary_prefix`; what follows is tempfile's.
_TEMPORARY = re.compile(r"(\..+)\.(\d+)\.\w+")
# The name of the probe that gets the file server's time.
CLOCK = "clock"
# Errors of link(2) without hard links, or without those between directories or to others' files.
_NO_LINKS = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_ANSWER = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ESHUTDOWN}
)
_IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP})
# The paths of each `temporary_directory` of this process.
_in_use: set[str] = set()


class _Guards(threading.local):
    """The checks of `guarded`, for each thread."""

    def __init__(self) -> None:
        self.of_thread: list[Callable[[], None]] = []


_guards = _Guards()


def write_atomically(path: Path, text: str | bytes, *, mode: int | None = None) -> None:
    """Write beside the file, sync, and rename over it: after `kill -9` the old or the new text is there.

    The file gets `mode`, by default that of the umask, not that of mkstemp. Raise RcError when the disk
    is full or the directory cannot be written.
    """
    try:
        content = text.encode() if isinstance(text, str) else text
        _write(path, content, 0o666 & ~umask() if mode is None else mode)
    except OSError as error:
        raise refused(error, path) or error from None


def temporary_prefix(name: str) -> str:
    """Return the prefix of this process's temporary files for `name`; it names their owner."""
    # An older version reads the part before the PID as the name of another host, and goes by the age.
    return f".{name}.{os.uname().nodename}+{processes.space()}.{os.getpid()}."


@contextlib.contextmanager
def temporary_directory(directory: Path, name: str) -> Iterator[Path]:
    """Make a directory that may be in use for days; after a kill, `sweep_temporaries` removes it.

    What cannot be removed at the end is left to it too, such as a file on NFS that a process has open.
    Processes that cannot see this one go by the age of the directory, which `keep_fresh` renews.
    """
    import tempfile

    with tempfile.TemporaryDirectory(
        prefix=temporary_prefix(name), dir=directory, ignore_cleanup_errors=True
    ) as directory_made:
        _in_use.add(directory_made)
        try:
            yield Path(directory_made)
        finally:
            _in_use.discard(directory_made)


def keep_fresh() -> None:
    """Renew the age of each `temporary_directory` in use; the heartbeat of every lock calls this."""
    for path in tuple(_in_use):
        with contextlib.suppress(OSError):
            os.utime(path)


def sweep_temporaries(directory: Path, name: str) -> None:
    """Remove what dead processes left for `name`; where processes are not visible, after a day."""
    import shutil

    for leftover in temporaries(directory, name):
        with contextlib.suppress(OSError):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def temporaries(directory: Path, name: str) -> list[Path]:
    """Return what `sweep_temporaries` would remove."""
    leftovers = []
    for path in directory.glob(f".{glob.escape(name)}.*"):
        with contextlib.suppress(OSError):
            owner, _, pid = path.name.removeprefix(f".{name}.").rpartition(".")[0].rpartition(".")
            # An editor may have temporary files of its own there.
            if pid.isdecimal() and _left(path, owner, pid, lambda: server_time_s(directory, name)):
                leftovers.append(path)
    return leftovers


def abandoned(directory: Path, now_s: float) -> Iterator[Path]:
    """Yield what dead processes left in a directory of ours, for any name, as in `sweep_temporaries`.

    `now_s` is the file server's time.
    """
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            match = _TEMPORARY.fullmatch(name)
            with contextlib.suppress(OSError):
                if match is not None and _left(directory / name, match[1], match[2], lambda: now_s):
                    yield directory / name


def _left(path: Path, owner: str, pid: str, now_s: Callable[[], float]) -> bool:
    """Return whether process `pid` has ended and left a file; `owner` ends with its host and space."""
    node, _, where = owner.rpartition("+")
    here = os.uname().nodename
    # The file's name and the host's name may both have dots.
    if processes.visible(here if node.endswith(f".{here}") else node, where):
        return not processes.alive(int(pid))
    return now_s() - path.lstat().st_mtime > _DAY_S


def server_time_s(directory: Path, name: str = CLOCK) -> float:
    """Return the file server's time: the clocks of nodes may differ from it and from one another.

    A probe that looks like a temporary file for `name` is written. On Lustre it gets this node's time.
    """
    probe = directory / f"{temporary_prefix(name)}{threading.get_ident()}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@contextlib.contextmanager
def guarded(require: Callable[[], None]) -> Iterator[None]:
    """Let this thread call `require` before it puts any file in place, while the block runs."""
    # Keep the list itself: another thread may end the block.
    guards = _guards.of_thread
    guards.append(require)
    try:
        yield
    finally:
        guards.remove(require)


def require_locks() -> None:
    """Raise LostLockError unless each lock that this thread has taken is still its own."""
    for require in tuple(_guards.of_thread):
        require()


def put_in_place(temporary: Path | str, final: Path | str) -> None:
    """Rename a finished file or directory to its final name, unless a lock of this thread was lost.

    No file system has a conditional rename. So a process that is stopped between the check and the
    rename, for longer than another one needs to take the lock and to publish, renames too late. It
    checks again afterwards and raises LostLockError, and the run makes the image again. If it is killed
    before that, the image counts as stale: a late record has the inputs of older files, and a late file
    does not fit the newer record.
    """
    require_locks()
    os.replace(temporary, final)
    require_locks()


def link(source: Path, name: Path) -> bool:
    """Give a file a second name; return False where there are no hard links.

    Raise OSError for all other reasons.
    """
    try:
        os.link(source, name)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def copy(source: Path, name: Path) -> None:
    """Copy a file with its times, and sync it; print a line first, as that may take minutes."""
    import shutil

    print(f"copying {source}: it cannot have a hard link there", flush=True)
    shutil.copy2(source, name)
    with name.open("rb") as file:
        os.fsync(file.fileno())


def has_links(directory: Path) -> bool:
    """Return whether files in a directory can have hard links. Raise OSError when it has no room."""
    import tempfile

    descriptor, probe = tempfile.mkstemp(prefix=temporary_prefix(CLOCK), dir=directory)
    os.close(descriptor)
    other = Path(f"{probe}link")
    try:
        return link(Path(probe), other)
    finally:
        other.unlink(missing_ok=True)
        os.unlink(probe)


def refused(error: OSError, path: Path | None = None) -> RcError | None:
    """Return the error of a failed system call that a user can fix, or None for any other.

    A full disk and missing rights are such errors. `path` replaces the path that the error names.
    """
    where = path or error.filename2 or error.filename
    if error.errno in _FULL:
        return DiskFullError(
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


def _write(path: Path, content: bytes, mode: int) -> None:
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=temporary_prefix(path.name), dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def open_up(directory: str | Path) -> None:
    """Give a directory of tempfile's, which only its owner may read, the mode of the umask.

    A set-group-ID bit stays. Without it, files there would belong to their maker's own group, and no
    other member of the checkout's group could remove them.
    """
    os.chmod(directory, stat.S_IMODE(os.stat(directory).st_mode) | 0o777 & ~umask())


def with_careful_umask(mask: int | None = None) -> None:
    """Deny others the right to write files of this process, whatever the caller's umask, or `mask`."""
    os.umask((umask() if mask is None else mask) | stat.S_IWOTH)


def umask() -> int:
    """Return the umask: the bits that new files do not get."""
    # umask(2) can only read it by setting it, which races with other threads; /proc does not.
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022
