"""One builder per image, over processes, users and nodes.

A lock is a file that only one process can create: `O_EXCL` holds on Lustre and NFS, where `flock` may
be local to a node. The holder touches it; a lock that is not touched any more has lost its holder.
"""

import contextlib
import getpass
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.errors import RcError

_TOUCH_S = 5.0
_LOST_S = 60.0


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
def held(path: Path, step: str) -> Iterator[None]:
    """Hold the lock while the block runs; raises LockedError when somebody else has it."""
    mine = Holder(
        step,
        getpass.getuser(),
        os.uname().nodename,
        os.getpid(),
        os.environ.get("SLURM_JOB_ID", ""),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _take(path, mine)
    stop = threading.Event()
    toucher = threading.Thread(target=_touch, args=(path, stop), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        stop.set()
        toucher.join()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def holder(path: Path) -> Holder | None:
    """Who holds the lock now, or None: free, or its holder is gone."""
    try:
        found = Holder(**json.loads(path.read_bytes()))
        untouched_s = _now_s(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        # Just being written, or written by a version that we do not know: judge by its age alone.
        found, untouched_s = Holder("?", "?", "?", 0, "", "?"), _age_s(path)
    if untouched_s > _LOST_S or _gone(found):
        return None
    return found


def _take(path: Path, mine: Holder) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            theirs = holder(path)
            if theirs is not None:
                job = f", job {theirs.job_id}" if theirs.job_id else ""
                raise LockedError(
                    f"{theirs.step} is being built by {theirs.user} since {theirs.since}"
                    f" (on {theirs.node}, process {theirs.pid}{job})",
                    hint="wait for it, then run the same command again",
                ) from None
            # Renaming away is a race that exactly one of several heirs wins.
            with contextlib.suppress(FileNotFoundError):
                grave = path.with_name(f".{path.name}.{mine.node}.{mine.pid}")
                path.rename(grave)
                grave.unlink()
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(mine), file)
        return
    raise LockedError(
        "the lock changes hands too quickly", where=path, hint="run the same command again"
    )


def _touch(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _gone(holder: Holder) -> bool:
    if holder.node != os.uname().nodename or holder.pid <= 0:
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _now_s(directory: Path) -> float:
    """The file server's time: the clocks of nodes may differ from it and from one another."""
    probe = directory / f".clock.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return datetime.now(UTC).timestamp()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _age_s(path: Path) -> float:
    try:
        return _now_s(path.parent) - path.stat().st_mtime
    except OSError:
        return 0.0
