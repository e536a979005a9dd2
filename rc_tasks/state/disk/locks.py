"""One builder per image, over processes, users and nodes.

A lock is a file that only one process can create there, by link(2), or by O_EXCL where the file system
has no hard links: that holds on Lustre and NFS, where `flock` may be local to a node. The holder touches
the file; a lock that is not touched any more has lost its holder, and is taken over. A holder that was
only stopped notices this before it puts anything in place: see `files.put_in_place`.
"""

import contextlib
import getpass
import glob
import hashlib
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.state.disk import processes
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
from rc_tasks.util.safe_read import open_regular, read_bytes

_TOUCH_S = 5.0
_LOOK_S = 0.5
_LOST_S = 60.0
# How long a lock that looks old is watched: its holder's clock may be behind, or this host was asleep.
_WATCH_S = 2.5 * _TOUCH_S
_TRIES = 10
_MOST_PID = (1 << 31) - 1
# No lock is nearly as large.
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, since when (UTC, ISO 8601).

    `space` is that of the process (see `processes`), and `token` makes each lock another one; an older
    version wrote neither.
    """

    step: str
    user: str
    node: str
    pid: int
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
    """Somebody else is building the image."""


class LostLockError(LockedError):
    """Another process has taken the lock from this one, which was stopped, and does its work."""


@contextlib.contextmanager
def held(path: Path, step: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock while the block runs; raises LockedError when somebody else has it.

    With `wait`, wait for it instead, and say so. When another process takes the lock, `put_in_place`
    raises LostLockError in this thread. So does the end of the block in place of another error: files
    that were swept away under a stopped process make it fail.
    """
    mine = Holder(
        step,
        getpass.getuser(),
        os.uname().nodename,
        os.getpid(),
        os.environ.get("SLURM_JOB_ID", ""),
        datetime.now(UTC).isoformat(timespec="seconds"),
        processes.space(),
        secrets.token_hex(8),
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
        # A file server that fails now must not hide the block's own error.
        with contextlib.suppress(OSError):
            lost_lock = lock.lost()
        if lost_lock is not None:
            raise lost_lock from error
        raise
    finally:
        # First of all: a signal may end us at any of these lines. The file there may be another owner's.
        # A file server that fails now must neither hide the block's own error nor keep the toucher.
        with contextlib.suppress(OSError):
            if lock.ours():
                path.unlink()
        stop.set()
        toucher.join()
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)


def holder(path: Path) -> Holder | None:
    """Who holds the lock now, or None: free, or its holder is gone.

    Only a look: where the clock of its node is behind, a holder may seem gone. `abandoned` and
    `living_holder` make sure.
    Raises PermissionError when this user may not read it.
    """
    found = _look(path)
    if found is None or found.holder.ended or _untouched_s(path, found) > _LOST_S:
        return None
    return found.holder


def living_holder(path: Path) -> Holder | None:
    """Who holds the lock now, as `holder`, but a lock that looks old is watched first, as in `lost`."""
    found = _look(path)
    return None if found is None or found.holder.ended or lost(path) else found.holder


def abandoned(path: Path) -> bool:
    """Return whether a lock is there whose holder has ended, or which is `lost`."""
    found = _look(path)
    return found is not None and (found.holder.ended or lost(path))


def lost(path: Path) -> bool:
    """Return whether a lock is there and its holder has not touched it for a minute.

    The process that holds such a lock is dead, stopped, or cut off from the file server. A lock that
    looks so is watched for 12 s before the answer is True: after this host was suspended, and where the
    clock of its holder's node is behind, a healthy lock looks old until its holder touches it again. A
    lock that is free, or that a living process took over, is not lost. Each call writes a small file.
    """
    seen = _look(path)
    if seen is None or _untouched_s(path, seen) <= _LOST_S:
        return False
    until_s = time.monotonic() + _WATCH_S
    while time.monotonic() < until_s:
        time.sleep(_LOOK_S)
        now = _look(path)
        if now is None or now.mark != seen.mark:
            return False
    return True


@dataclass(frozen=True, slots=True)
class _Lock:
    """A lock that this process has taken; `content` is all of the file, `descriptor` is open on it."""

    path: Path
    holder: Holder
    content: bytes
    descriptor: int

    def require(self) -> None:
        """Raise LostLockError when the lock is not ours any more, OSError when that cannot be known."""
        # From now on nobody takes the lock for an old one, for a minute.
        with contextlib.suppress(OSError):
            os.utime(self.descriptor)
        found = self.lost()
        if found is not None:
            raise found

    def lost(self) -> LostLockError | None:
        """Return what there is to say when the lock is not ours any more."""
        if self.ours():
            return None
        other = holder(self.path)
        now = "nobody has it now"
        if other is not None:
            now = f"{other.user} has it now for {other.step} (on {other.node}, process {other.pid})"
        return LostLockError(
            f"{self.holder.step} lost its lock: this process was stopped or cut off from the file server"
            f" for over {_LOST_S:.0f} s, and another process took the lock; {now}",
            where=self.path,
            hint="what the other process published stays; run the same command again for what is left",
        )

    def ours(self) -> bool:
        """Return whether the file there is still ours; raises OSError when it cannot be read."""
        try:
            # Opened, not stat(2), which NFS may answer from memory for a minute.
            return read_bytes(self.path) == self.content
        except (FileNotFoundError, NotADirectoryError):
            return False

    def touch(self, stop: threading.Event) -> None:
        """Touch the lock and what else of this process must not look old, until the event is set."""
        while not stop.wait(_TOUCH_S):
            keep_fresh()
            with contextlib.suppress(OSError):
                os.utime(self.descriptor)


@dataclass(frozen=True, slots=True)
class _Found:
    """A lock as it was found; `mark` is another one after each touch."""

    holder: Holder
    mark: str
    touched_s: float


def _look(path: Path) -> _Found | None:
    """A lock as it is now, or None where none is."""
    content = b""
    try:
        # Opened, as in `_Lock.ours`.
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
    # Damaged, or just being created: its age alone counts.
    found = Holder("?", "?", "?", 0, "", "?")
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        found = _parse(content)
    # Not by the inode: without hard links a file system may have none that lasts.
    mark = hashlib.sha256(b"%d %s" % (status.st_mtime_ns, content)).hexdigest()[:24]
    return _Found(found, mark, status.st_mtime)


def _untouched_s(path: Path, found: _Found) -> float:
    return server_time_s(path.parent) - found.touched_s


def _parse(text: bytes) -> Holder:
    told = json.loads(text)
    # A later version may write more.
    found = Holder(**{each.name: told[each.name] for each in fields(Holder) if each.name in told})
    # Not true, nor a number that kill(2) does not take.
    if type(found.pid) is not int or abs(found.pid) > _MOST_PID:
        raise TypeError(found.pid)
    return found


def _take_in_turn(path: Path, mine: Holder) -> _Lock:
    told = None
    while True:
        try:
            return _take(path, mine)
        except LockedError:
            theirs = holder(path)
            if theirs is not None and theirs != told:
                told = theirs
                where = f"on {theirs.node}, process {theirs.pid}"
                print(
                    f"waiting for {theirs.user}, who does {theirs.step} since {theirs.since} ({where})",
                    flush=True,
                )
            time.sleep(_LOOK_S)


def _take(path: Path, mine: Holder) -> _Lock:
    """Create the lock, with its holder in it from the first moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in (path.name, CLOCK):
        sweep_temporaries(path.parent, name)
    _sweep_claims(path)
    content = json.dumps(asdict(mine)).encode()
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
            "another process is taking over this lock, whose holder is gone",
            where=path,
            hint="run the same command again in a minute",
        )
    raise LockedError(
        "the lock changes hands too quickly", where=path, hint="run the same command again"
    )


def _link(temporary: str, path: Path) -> None:
    """Give the file its name; raises FileExistsError when that is taken."""
    if not link(Path(temporary), path):
        # An empty lock for a moment; one of a process that is killed just then counts for a minute.
        _create_empty(path)
        os.rename(temporary, path)


def _create_empty(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _clear(path: Path) -> bool:
    """Remove a lock whose holder is gone, and return whether another process is just doing that.

    Raises LockedError when it is held.
    """
    dead = _look(path)
    if dead is None:
        return False
    theirs = dead.holder
    if not theirs.ended and not lost(path):
        job = f", job {theirs.job_id}" if theirs.job_id else ""
        raise LockedError(
            f"{theirs.step} is being built by {theirs.user} since {theirs.since}"
            f" (on {theirs.node}, process {theirs.pid}{job})",
            hint="wait for it, then run the same command again",
        )
    # Exactly one process makes the claim to this dead lock, and only that one may remove the lock.
    claim = path.with_name(f"{_claims(path)}{dead.mark}")
    try:
        _create_empty(claim)
    except FileExistsError:
        return True
    try:
        now = _look(path)
        # Should we be stopped just here, for so long that another process claims and takes the lock, we
        # remove a living lock. Its holder notices that it is gone, and publishes nothing.
        if now is not None and now.mark == dead.mark:
            path.unlink()
    finally:
        claim.unlink(missing_ok=True)
    return False


def _claims(path: Path) -> str:
    """How the names of claims begin; `sweep_temporaries` must not take them for its own."""
    return f".{path.name}.claim-"


def _sweep_claims(path: Path) -> None:
    """Remove the claims of killed processes."""
    for claim in path.parent.glob(f"{glob.escape(_claims(path))}*"):
        with contextlib.suppress(OSError):
            # By ctime: an older version made links to the dead lock, which have its other times.
            if server_time_s(path.parent) - claim.stat().st_ctime > _LOST_S:
                claim.unlink()
