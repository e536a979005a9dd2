"""Lock files that let one process at a time build an image, across users and nodes.

Only one process can create a lock, by link(2), or by O_EXCL where the file system has no hard links.
That holds on Lustre and NFS, where `flock` may be local to a node. The holder touches the file, and
locks that are no longer touched are reclaimed. A holder that was only stopped notices this before it
publishes anything: see `files.put_in_place`.
"""

import contextlib
import glob
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from rc_tasks.errors import RcError
from rc_tasks.state.disk import processes, reading
from rc_tasks.state.disk.files import (
    CLOCK,
    guarded,
    keep_fresh,
    link,
    refused,
    server_time_s,
    sweep_temporaries,
    temporary_prefix,
)
from rc_tasks.util.json_decode import encode, parse
from rc_tasks.util.safe_read import open_regular, read_bytes

_TOUCH_S = 5.0
_LOOK_S = 0.5
_EXPIRED_S = 60.0
# How long a lock that looks old is watched: its holder's clock may be behind, or this host was asleep.
_WATCH_S = 2.5 * _TOUCH_S
_TRIES = 10
# kill(2) takes no other numbers.
_Pid = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
# Locks are much smaller.
_MOST_BYTES = 1 << 16


class Holder(Struct, frozen=True):
    """The process that holds a lock; `since` is UTC, ISO 8601.

    `space` is that of the process (see `processes`). `token` makes each lock unique. Older versions
    wrote neither.
    """

    step: str
    user: str
    node: str
    pid: _Pid
    job_id: str
    since: str
    space: str = ""
    token: str = ""

    @property
    def ended(self) -> bool:
        """Whether the process is known to have ended."""
        return (
            self.pid > 0 and processes.visible(self.node, self.space) and not processes.alive(self.pid)
        )


class LockedError(RcError):
    """Another process is building the image."""


class LostLockError(LockedError):
    """Another process has reclaimed the lock of this one, which was stopped, and builds the image."""


@contextlib.contextmanager
def held(path: Path, step: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock while the block runs. Raise LockedError when another process has it.

    With `wait`, print who has it, and wait instead. When another process takes the lock, `put_in_place`
    raises LostLockError in this thread. So does the end of the block, instead of another error: the
    block may have failed because its files were swept while the process was stopped.
    """
    import getpass

    mine = Holder(
        step,
        getpass.getuser(),
        os.uname().nodename,
        os.getpid(),
        os.environ.get("SLURM_JOB_ID", ""),
        datetime.now(UTC).isoformat(timespec="seconds"),
        processes.space(),
        os.urandom(8).hex(),
    )
    try:
        lock = _take_in_turn(path, mine) if wait else _take(path, mine)
    except OSError as error:
        raise refused(error, path) or error from None
    stop = threading.Event()
    toucher = threading.Thread(target=lock.touch, args=(stop,), daemon=True)
    toucher.start()
    try:
        with guarded(lock.require):
            yield
    except LostLockError:
        raise
    except (RcError, OSError) as error:
        lost_lock = None
        # A file server error here must not hide the block's own error.
        with contextlib.suppress(OSError):
            lost_lock = lock.lost()
        if lost_lock is not None:
            raise lost_lock from error
        raise
    finally:
        # Release first: a signal may end this process at any of these lines. Check the owner: another
        # process may have taken the lock. A file server error must neither hide the block's own error
        # nor keep the toucher running.
        with contextlib.suppress(OSError):
            if lock.ours():
                path.unlink()
        stop.set()
        toucher.join()
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)


def holder(path: Path) -> Holder | None:
    """Return who holds the lock now, or None when it is free or its holder is dead.

    This is a quick check: a holder may seem dead when the clock of its node is behind. `abandoned` and
    `living_holder` make sure.
    Raise PermissionError when this user may not read the lock.
    """
    lock_seen = _look(path)
    if lock_seen is None or lock_seen.holder.ended or _untouched_s(path, lock_seen) > _EXPIRED_S:
        return None
    return lock_seen.holder


def living_holder(path: Path) -> Holder | None:
    """Return who holds the lock now, as `holder` does, but watch a lock that looks old (`expired`)."""
    lock_seen = _look(path)
    return None if lock_seen is None or lock_seen.holder.ended or expired(path) else lock_seen.holder


def abandoned(path: Path) -> bool:
    """Return whether the lock exists and its holder has ended, or it has `expired`."""
    lock_seen = _look(path)
    return lock_seen is not None and (lock_seen.holder.ended or expired(path))


def expired(path: Path) -> bool:
    """Return whether the lock exists and its holder has not touched it for a minute.

    The process that holds such a lock is dead, stopped, or cut off from the file server. A lock that
    looks old is watched for 12 s before the result is True: after this host was suspended, and when the
    clock of its holder's node is behind, a healthy lock looks old until its holder touches it again. A
    lock that is free, or that a living process reclaimed, is not expired. Each call writes a small file.
    """
    seen = _look(path)
    if seen is None or _untouched_s(path, seen) <= _EXPIRED_S:
        return False
    until_s = time.monotonic() + _WATCH_S
    while time.monotonic() < until_s:
        time.sleep(_LOOK_S)
        now = _look(path)
        if now is None or now.mark != seen.mark:
            return False
    return True


class _Lock(Struct, frozen=True):
    """A lock that this process has taken; `content` is all of the file, `descriptor` is open on it."""

    path: Path
    holder: Holder
    content: bytes
    descriptor: int

    def require(self) -> None:
        """Raise LostLockError when the lock is not ours any more, OSError when that cannot be known."""
        # For a minute from now, no other process takes the lock for an old one.
        with contextlib.suppress(OSError):
            os.utime(self.descriptor)
        error = self.lost()
        if error is not None:
            raise error

    def lost(self) -> LostLockError | None:
        """Return the error to raise when the lock is no longer ours, else None."""
        if self.ours():
            return None
        other = holder(self.path)
        now = "nobody has it now"
        if other is not None:
            now = f"{other.user} has it now for {other.step} (on {other.node}, process {other.pid})"
        return LostLockError(
            f"{self.holder.step} lost its lock: this process was stopped or cut off from the file server"
            f" for over {_EXPIRED_S:.0f} s, and another process took the lock; {now}",
            where=self.path,
            hint="what the other process published stays; run the same command again for what is left",
        )

    def ours(self) -> bool:
        """Return whether the lock is still ours. Raise OSError when it cannot be read."""
        try:
            # Open the file: NFS may answer stat(2) from its cache for a minute.
            return read_bytes(self.path) == self.content
        except (FileNotFoundError, NotADirectoryError):
            return False

    def touch(self, stop: threading.Event) -> None:
        """Touch the lock and this process's temporary directories, until the event is set."""
        while not stop.wait(_TOUCH_S):
            keep_fresh()
            with contextlib.suppress(OSError):
                os.utime(self.descriptor)


class _LockSeen(Struct, frozen=True):
    """A lock as it was read; `mark` changes with each touch."""

    holder: Holder
    mark: str
    touched_s: float


def _look(path: Path) -> _LockSeen | None:
    """Read the lock; return None when there is none."""
    content = b""
    try:
        # Open the file, as in `_Lock.ours`.
        with open_regular(path) as file:
            content, status = file.read(_MOST_BYTES), os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise  # it says nothing of a holder
    except OSError:
        try:
            status = path.lstat()
        except OSError:
            return None
    # Only the age counts of a lock that is damaged, or being created.
    owner = parse(Holder, content) or Holder("?", "?", "?", 0, "", "?")
    # Leave out the inode: a file system without hard links may change it.
    mark = hashlib.sha256(b"%d %s" % (status.st_mtime_ns, content)).hexdigest()[:24]
    return _LockSeen(owner, mark, status.st_mtime)


def _untouched_s(path: Path, lock_seen: _LockSeen) -> float:
    return server_time_s(path.parent) - lock_seen.touched_s


def clear_ended(directory: Path) -> None:
    """Remove the locks of ended processes of this host, which no step may ever take again."""
    for name in reading.names(directory):
        path = directory / name
        if path.suffix == ".json" and not name.startswith("."):
            with contextlib.suppress(LockedError, OSError):
                lock_seen = _look(path)
                if lock_seen is not None and lock_seen.holder.ended:
                    _clear(path)


def _take_in_turn(path: Path, mine: Holder) -> _Lock:
    printed_holder = None
    while True:
        try:
            return _take(path, mine)
        except LockedError:
            theirs = holder(path)
            if theirs is not None and theirs != printed_holder:
                printed_holder = theirs
                where = f"on {theirs.node}, process {theirs.pid}"
                print(
                    f"waiting for {theirs.user}: {theirs.step} since {theirs.since} ({where})",
                    flush=True,
                )
            time.sleep(_LOOK_S)


def _take(path: Path, mine: Holder) -> _Lock:
    """Create the lock, which names its holder from the first moment. Raise LockedError or OSError."""
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    for name in (path.name, CLOCK):
        sweep_temporaries(path.parent, name)
    _sweep_claims(path)
    content = encode(mine).encode()
    descriptor, temporary = tempfile.mkstemp(prefix=temporary_prefix(path.name), dir=path.parent)
    try:
        os.write(descriptor, content)
        os.fchmod(descriptor, 0o644)
        _create(temporary, path)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return _Lock(path, mine, content, descriptor)


def _create(temporary: str, path: Path) -> None:
    claimed = False
    for _ in range(_TRIES):
        try:
            _link(temporary, path)
        except FileExistsError:
            claimed = _clear(path)
        else:
            return
    if claimed:
        raise LockedError(
            "another process is reclaiming this lock, whose holder is dead",
            where=path,
            hint="run the same command again in a minute",
        )
    raise LockedError(
        "the lock changes hands too quickly", where=path, hint="run the same command again"
    )


def _link(temporary: str, path: Path) -> None:
    """Give the file the name of the lock. Raise FileExistsError when the lock is held."""
    if not link(Path(temporary), path):
        # The lock is empty for a moment. If the process is killed then, it counts for a minute.
        _create_empty(path)
        os.rename(temporary, path)


def _create_empty(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _clear(path: Path) -> bool:
    """Remove a lock whose holder is dead, or return whether another process is doing that.

    Raise LockedError when it is held.
    """
    dead = _look(path)
    if dead is None:
        return False
    theirs = dead.holder
    if not theirs.ended and not expired(path):
        job = f", job {theirs.job_id}" if theirs.job_id else ""
        raise LockedError(
            f"{theirs.user} has been running {theirs.step} since {theirs.since}"
            f" (on {theirs.node}, process {theirs.pid}{job})",
            hint="wait for it, then run the same command again",
        )
    # Exactly one process can create the claim to this dead lock, and only it may remove the lock.
    claim = path.with_name(f"{_claims(path)}{dead.mark}")
    try:
        _create_empty(claim)
    except FileExistsError:
        return True
    try:
        now = _look(path)
        # If this process is stopped here until another one has claimed and taken the lock, it removes a
        # living lock. The holder of that lock notices, and publishes nothing.
        if now is not None and now.mark == dead.mark:
            path.unlink()
    finally:
        claim.unlink(missing_ok=True)
    return False


def _claims(path: Path) -> str:
    """Return the prefix of claims, which `sweep_temporaries` does not match."""
    return f".{path.name}.claim-"


def _sweep_claims(path: Path) -> None:
    """Remove the claims of killed processes."""
    for claim in path.parent.glob(f"{glob.escape(_claims(path))}*"):
        with contextlib.suppress(OSError):
            # Use the ctime: an older version made links to the dead lock, which share its other times.
            if server_time_s(path.parent) - claim.stat().st_ctime > _EXPIRED_S:
                claim.unlink()
