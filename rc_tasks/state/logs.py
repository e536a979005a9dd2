"""The logs of a step: a file for each try, links to the newest ones, and how long they are kept.

`latest.log` leads to the newest one, `failed.log` to the newest one of a step that failed.
"""

import contextlib
import os
import re
import secrets
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
# Named so that their order is that of time.
_LOG = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.\d+\.log")
_DAY_S = 86400.0
# Of a log's end as much as is looked at for its last lines.
_TAIL_BYTES = 65_536


def new(directory: Path) -> Path:
    """The path of a log that begins now."""
    # No PID, which another node or PID namespace may have given to another run at the same moment.
    return directory / f"{stamp(datetime.now(UTC))}.{secrets.randbelow(1 << 31)}.log"


def ending(log: Path) -> Path:
    """Return where the step of a log writes how it ended."""
    return log.with_suffix(".json")


def remove(log: Path) -> None:
    """Remove a log, with the ending beside it."""
    log.unlink()
    ending(log).unlink(missing_ok=True)


def newest(directory: Path) -> Path | None:
    """The newest log of a step, or None."""
    found = _logs(directory)
    return directory / found[0] if found else None


def failed(directory: Path) -> Path | None:
    """The log of the step's newest failure, or None."""
    reading.names(directory)  # raises where it cannot be listed
    try:
        path = directory / os.readlink(directory / FAILED)
    except OSError:
        return None
    return path if _LOG.fullmatch(path.name) and path.is_file() else None


def tail(path: Path, count: int) -> tuple[bytes, ...]:
    """The last lines of a log that hold anything; none when it cannot be read."""
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
    """Make a link lead to a log beside it; a log that cannot be linked to is a log all the same."""
    temporary = link.with_name(f"{temporary_prefix(link.name)}{threading.get_ident()}")
    with contextlib.suppress(OSError):
        try:
            # Left by a killed process of the same number.
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(log.name)
            os.replace(temporary, link)
        finally:
            temporary.unlink(missing_ok=True)


def settle(directory: Path, keep: Logs) -> None:
    """Remove old logs after a step has ended, and let `latest.log` lead to one that is there."""
    with contextlib.suppress(OSError):
        found = _logs(directory)
        if not found:
            return
        point(directory / LATEST, directory / found[0])
        for path in surplus(directory, keep):
            with contextlib.suppress(OSError):
                remove(path)


def surplus(directory: Path, keep: Logs) -> list[Path]:
    """The old logs of a step that the settings let go."""
    last_failed = failed(directory)
    oldest_s = time.time() - keep.days * _DAY_S
    found = []
    for number, name in enumerate(_logs(directory)[1:], start=1):
        path = directory / name
        with contextlib.suppress(OSError):
            if path != last_failed and (number >= keep.keep or path.stat().st_mtime < oldest_s):
                found.append(path)
    return found


def _logs(directory: Path) -> list[str]:
    """The names of a step's logs, the newest first."""
    return sorted(filter(_LOG.fullmatch, reading.names(directory)), reverse=True)
