"""Writing a file so that nobody ever sees half of it, what is left of that, and why it cannot be done.

Every file that a lock guards gets its name through `put_in_place`, which asks whether the lock is still
held.
"""

import contextlib
import errno
import glob
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.state.disk import processes
from rc_tasks.state.disk.reading import denied

_DAY_S = 86_400.0
# See `temporary_prefix`; what follows is tempfile's.
_TEMPORARY = re.compile(r"(\..+)\.(\d+)\.\w+")
# A file that is only there to be given the file server's time.
CLOCK = "clock"
# What link(2) says where there are no hard links, none between directories, or none to others' files.
_NO_LINKS = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_ANSWER = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ESHUTDOWN}
)
_IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP})
# Each `temporary_directory` of this process.
_in_use: set[str] = set()


class _Guards(threading.local):
    """The questions of `guarded`, for each thread."""

    def __init__(self) -> None:
        self.of_thread: list[Callable[[], None]] = []


_guards = _Guards()


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
    """Return how temporary files of this process for `name` begin: others see whose they are."""
    # An older version takes the part before the PID for a host of another name, and lets age decide.
    return f".{name}.{os.uname().nodename}+{processes.space()}.{os.getpid()}."


@contextlib.contextmanager
def temporary_directory(directory: Path, name: str) -> Iterator[Path]:
    """Make a directory that may be in use for days; after a kill, `sweep_temporaries` removes it.

    Whoever cannot see our process goes by the age of the directory, which `keep_fresh` renews.
    """
    with tempfile.TemporaryDirectory(prefix=temporary_prefix(name), dir=directory) as made:
        _in_use.add(made)
        try:
            yield Path(made)
        finally:
            _in_use.discard(made)


def keep_fresh() -> None:
    """Renew the age of each `temporary_directory` in use; the heartbeat of every lock calls this."""
    for path in tuple(_in_use):
        with contextlib.suppress(OSError):
            os.utime(path)


def sweep_temporaries(directory: Path, name: str) -> None:
    """Remove what processes that have ended left for `name`; where that cannot be seen, after a day."""
    for left in temporaries(directory, name):
        with contextlib.suppress(OSError):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def temporaries(directory: Path, name: str) -> list[Path]:
    """Return what `sweep_temporaries` would remove."""
    found = []
    for left in directory.glob(f".{glob.escape(name)}.*"):
        with contextlib.suppress(OSError):
            owner, _, pid = left.name.removeprefix(f".{name}.").rpartition(".")[0].rpartition(".")
            # Somebody's editor has temporary files of its own there.
            if pid.isdecimal() and _left(left, owner, pid, lambda: server_time_s(directory, name)):
                found.append(left)
    return found


def abandoned(directory: Path, now_s: float) -> Iterator[Path]:
    """Yield what ended processes left in a directory of ours, whatever for, as in `sweep_temporaries`.

    `now_s` is the file server's time.
    """
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            found = _TEMPORARY.fullmatch(name)
            with contextlib.suppress(OSError):
                if found is not None and _left(directory / name, found[1], found[2], lambda: now_s):
                    yield directory / name


def _left(path: Path, owner: str, pid: str, now_s: Callable[[], float]) -> bool:
    """Return whether process `pid` has left a file; `owner` ends with its host and space."""
    node, _, where = owner.rpartition("+")
    here = os.uname().nodename
    # The name before the host's may have dots, as that may.
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
    # The list itself: another thread may end the block.
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

    One moment remains, as no file system has a rename with a condition: a process that is stopped
    between the question and the rename, for longer than another one needs to take the lock and to
    publish, renames too late. So it asks again afterwards: then it ends with LostLockError, and the run
    makes the image again. Should it be killed just then, the image counts as stale: a late record has
    the inputs of older files, and a late file does not fit the newer record.
    """
    require_locks()
    os.replace(temporary, final)
    require_locks()


def link(source: Path, name: Path) -> bool:
    """Give a file a second name, and return whether that can be: False for want of hard links.

    Raises OSError for all other reasons.
    """
    try:
        os.link(source, name)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def copy(source: Path, name: Path) -> None:
    """Copy a file with its times, to the disk itself; says so, as that may take minutes."""
    print(f"copying {source}: it cannot have a hard link there", flush=True)
    shutil.copy2(source, name)
    with name.open("rb") as file:
        os.fsync(file.fileno())


def has_links(directory: Path) -> bool:
    """Return whether files in a directory can have hard links; raises OSError when it has no room."""
    descriptor, made = tempfile.mkstemp(prefix=temporary_prefix(CLOCK), dir=directory)
    os.close(descriptor)
    other = Path(f"{made}link")
    try:
        return link(Path(made), other)
    finally:
        other.unlink(missing_ok=True)
        os.unlink(made)


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
        put_in_place(temporary, path)
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
