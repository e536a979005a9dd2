"""Logs of a step: a file for each attempt, links to the newest ones, and how long they are kept.

`latest.log` links to the newest log, `failed.log` to that of the step's newest failure.
"""

import contextlib
import os
import re
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.model.config.settings import Logs
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import temporary_prefix
from rc_tasks.state.history import stamp

LATEST = "latest.log"
FAILED = "failed.log"
# Sorted by name, logs are sorted by time.
_LOG = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.\d+\.log")
_DAY_S = 86400.0
# How much of a log's end is read for its last lines.
_TAIL_BYTES = 65_536


def new(directory: Path) -> Path:
    """Return the path of a log that begins now."""
    # A PID would not be unique: another node or PID namespace may have the same one at the same time.
    return directory / f"{stamp(datetime.now(UTC))}.{int.from_bytes(os.urandom(4)) >> 1}.log"


def error_report(log: Path) -> Path:
    """Return the path of the error report that a step writes beside its log."""
    return log.with_suffix(".json")


def remove(log: Path) -> None:
    """Remove a log, with the error report beside it."""
    log.unlink()
    error_report(log).unlink(missing_ok=True)


def newest(directory: Path) -> Path | None:
    """Return the newest log of a step, or None."""
    names = _logs(directory)
    return directory / names[0] if names else None


def failed(directory: Path) -> Path | None:
    """Return the log of the step's newest failure, or None."""
    reading.names(directory)  # raises where it cannot be listed
    try:
        path = directory / os.readlink(directory / FAILED)
    except OSError:
        return None
    return path if _LOG.fullmatch(path.name) and path.is_file() else None


def tail(path: Path, count: int) -> tuple[bytes, ...]:
    """Return the last non-empty lines of a log; none when it cannot be read."""
    try:
        if not path.is_file():
            return ()
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line for line in log.read().split(b"\n") if line.strip()]
    except OSError:
        return ()
    return tuple(lines[-count:])


def point(link: Path, log: Path) -> None:
    """Make a link to a log beside it; a failure to do so is ignored."""
    temporary = link.with_name(f"{temporary_prefix(link.name)}{threading.get_ident()}")
    with contextlib.suppress(OSError):
        try:
            # A killed process with the same PID may have left it.
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(log.name)
            os.replace(temporary, link)
        finally:
            temporary.unlink(missing_ok=True)


def settle(directory: Path, keep: Logs) -> None:
    """Remove old logs after a step has ended, and link `latest.log` to an existing one."""
    with contextlib.suppress(OSError):
        names = _logs(directory)
        if not names:
            return
        point(directory / LATEST, directory / names[0])
        for path in surplus(directory, keep):
            with contextlib.suppress(OSError):
                remove(path)


def surplus(directory: Path, keep: Logs) -> list[Path]:
    """Return the old logs of a step that the settings do not keep."""
    last_failed = failed(directory)
    oldest_s = time.time() - keep.days * _DAY_S
    old_logs = []
    for number, name in enumerate(_logs(directory)[1:], start=1):
        path = directory / name
        with contextlib.suppress(OSError):
            if path != last_failed and (number >= keep.keep or path.stat().st_mtime < oldest_s):
                old_logs.append(path)
    return old_logs


def _logs(directory: Path) -> list[str]:
    """Return the names of a step's logs, the newest first."""
    return sorted(filter(_LOG.fullmatch, reading.names(directory)), reverse=True)
