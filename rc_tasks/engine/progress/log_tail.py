"""Tail of a running step's log, and the activity that its lines show."""

import contextlib
import os
import re
from pathlib import Path

from rc_tasks.tools import podman, squashfs
from rc_tasks.util.text import log_line

# A longer line is split into pieces.
_LONGEST_LINE_BYTES = 64 * 1024
_CHUNK_BYTES = 256 * 1024
# Only this much of an unfinished line is kept.
_BEGUN_BYTES = 4096
# As the step of `rc_tasks.steps.publish.smoke` prints it.
_SMOKE_TEST = re.compile(r"smoke test \d+ of \d+ \(")


class Tail:
    """Reads what was added to a log. The log may not exist yet, or no longer."""

    def __init__(self, path: Path, *, whole: bool = True) -> None:
        """Without `whole`, skip all but the end of what was added.

        `begun` is the unfinished last line.
        """
        self.begun = ""
        self._path = path
        self._whole = whole
        self._file: int | None = None
        self._rest = b""

    def lines(self) -> list[str]:
        """Return the lines that ended since the last call, without colours and control characters."""
        ended: list[str] = []
        while chunk := self._read():
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _LONGEST_LINE_BYTES:
                # A progress bar may never end its line.
                lines.append(self._rest)
                self._rest = b""
            ended += map(log_line, lines)
            self.begun = log_line(self._rest[-_BEGUN_BYTES:])
            if len(chunk) < _CHUNK_BYTES:
                break
        return ended

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            if not self._whole:
                at = os.lseek(self._file, 0, os.SEEK_CUR)
                if (late := os.lseek(self._file, 0, os.SEEK_END) - _CHUNK_BYTES) > at:
                    at, self._rest = late, b""
                os.lseek(self._file, at, os.SEEK_SET)
            return os.read(self._file, _CHUNK_BYTES)
        return b""


def doing(line: str) -> str:
    """Return what a step is doing by a line of its log; empty when the line does not show it."""
    percent = squashfs.progress_percent(line)
    if percent is not None:
        return f"mksquashfs {percent}%"
    # A test's own output is indented in the log.
    return line if _SMOKE_TEST.match(line) else podman.current_step(line)
