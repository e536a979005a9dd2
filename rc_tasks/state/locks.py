"""One builder per image, over processes, users and nodes.

A lock is a file that only one process can link there: that holds on Lustre and NFS, where `flock` may
be local to a node. The holder touches it; a lock that is not touched any more has lost its holder.
"""

import contextlib
import getpass
import glob
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.model.regular import read_bytes
from rc_tasks.state.files import alive, refused, sweep_temporaries, temporary_prefix

_TOUCH_S = 5.0
_LOOK_S = 0.5
_LOST_S = 60.0
_TRIES = 10
_MOST_PID = (1 << 31) - 1
# A file that is only there to be given the file server's time.
_CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, since when (UTC, ISO 8601)."""

    step: str
    user: str
    node: str
    pid: int
    job_id: str
    since: str


class LockedError(RcError):
    """Somebody else is building the image."""


@contextlib.contextmanager
def held(path: Path, step: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock while the block runs; raises LockedError when somebody else has it.

    With `wait`, wait for it instead, and say so.
    """
    mine = Holder(
        step,
        getpass.getuser(),
        os.uname().nodename,
        os.getpid(),
        os.environ.get("SLURM_JOB_ID", ""),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        descriptor = _take_in_turn(path, mine) if wait else _take(path, mine)
    except OSError as error:
        raise refused(error, path) or error from None
    stop = threading.Event()
    toucher = threading.Thread(target=_touch, args=(descriptor, stop), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        # First of all: a signal may end us at any of these lines. Whoever was stopped for a minute has
        # lost the lock: the file there may be an heir's.
        # A file server that fails now must neither hide the block's own error nor keep the toucher.
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                path.unlink()
        stop.set()
        toucher.join()
        with contextlib.suppress(OSError):
            os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Who holds the lock now, or None: free, or its holder is gone.

    Raises PermissionError when this user may not read it.
    """
    try:
        found = _parse(read_bytes(path))
        untouched_s = server_time_s(path.parent) - path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise  # it says nothing of a holder
    except (OSError, ValueError, TypeError, RecursionError):
        # Damaged, or written by a version that we do not know: judge by its age alone.
        found, untouched_s = Holder("?", "?", "?", 0, "", "?"), _age_s(path)
    if untouched_s > _LOST_S or _gone(found):
        return None
    return found


def lost(path: Path) -> bool:
    """Return whether a lock is there and its holder has not touched it for a minute.

    The process that holds such a lock is dead, stopped, or cut off from the file server. Right after the
    machine was suspended this is true of healthy locks too, until their holders have touched them: a
    caller that ends a process for it asks again ten seconds later, and ends it when both answers agree.
    A lock that is free, or that a living process took over, is not lost. Each call writes a small file.
    """
    return os.path.lexists(path) and _age_s(path) > _LOST_S


def _parse(text: bytes) -> Holder:
    found = Holder(**json.loads(text))
    # Not true, nor a number that kill(2) does not take.
    if type(found.pid) is not int or abs(found.pid) > _MOST_PID:
        raise TypeError(found.pid)
    return found


def _take_in_turn(path: Path, mine: Holder) -> int:
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


def _take(path: Path, mine: Holder) -> int:
    """Create the lock, with its holder in it from the first moment; returns its open descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in (path.name, _CLOCK):
        sweep_temporaries(path.parent, name)
    _sweep_claims(path)
    descriptor, temporary = tempfile.mkstemp(prefix=temporary_prefix(path.name), dir=path.parent)
    try:
        os.write(descriptor, json.dumps(asdict(mine)).encode())
        os.fchmod(descriptor, 0o644)
        _link(temporary, path)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        os.unlink(temporary)
    return descriptor


def _link(temporary: str, path: Path) -> None:
    claimed = False
    for _ in range(_TRIES):
        try:
            os.link(temporary, path)
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


def _clear(path: Path) -> bool:
    """Remove a lock whose holder is gone, unless another heir is at it, and whether one is.

    Raises LockedError when it is held.
    """
    try:
        dead = path.stat()
    except FileNotFoundError:
        return False
    theirs = holder(path)
    if theirs is not None:
        job = f", job {theirs.job_id}" if theirs.job_id else ""
        raise LockedError(
            f"{theirs.step} is being built by {theirs.user} since {theirs.since}"
            f" (on {theirs.node}, process {theirs.pid}{job})",
            hint="wait for it, then run the same command again",
        )
    # Exactly one heir makes this link to the dead lock, and only that one may remove the lock.
    claim = path.with_name(f"{_claims(path)}{dead.st_ino}-{dead.st_mtime_ns}")
    with contextlib.suppress(FileNotFoundError):
        try:
            os.link(path, claim)
        except FileExistsError:
            return True
        found = claim.stat()
        try:
            # By the time too: a new lock may have the inode of the dead one.
            if (found.st_ino, found.st_mtime_ns) == (dead.st_ino, dead.st_mtime_ns):
                path.unlink()
        finally:
            claim.unlink()
    return False


def _claims(path: Path) -> str:
    """How the names of claims begin; `sweep_temporaries` must not take them for its own."""
    return f".{path.name}.claim-"


def _sweep_claims(path: Path) -> None:
    """Remove what killed heirs left, by ctime: all other times are those of the dead lock."""
    for claim in path.parent.glob(f"{glob.escape(_claims(path))}*"):
        with contextlib.suppress(OSError):
            if server_time_s(path.parent) - claim.stat().st_ctime > _LOST_S:
                claim.unlink()


def _touch(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(_TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _gone(holder: Holder) -> bool:
    return holder.node == os.uname().nodename and holder.pid > 0 and not alive(holder.pid)


def server_time_s(directory: Path) -> float:
    """The file server's time: the clocks of nodes may differ from it and from one another."""
    probe = directory / f"{temporary_prefix(_CLOCK)}{threading.get_ident()}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
    except OSError:
        return datetime.now(UTC).timestamp()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _age_s(path: Path) -> float:
    try:
        return server_time_s(path.parent) - path.stat().st_mtime
    except OSError:
        return 0.0
