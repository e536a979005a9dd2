"""What is added to the logs of running steps, and what that says they are at."""

import contextlib
import os
from pathlib import Path

from rc_tasks.tools import podman, squashfs
from rc_tasks.util.text import log_line

# A longer line is told in pieces.
_LONGEST_LINE_BYTES = 64 * 1024
_CHUNK_BYTES = 256 * 1024
# More of a line that has not ended says nothing more.
_BEGUN_BYTES = 4096


class Tail:
    """Reads a log as it grows: each time only what was added. It may not exist yet, or any more."""

    def __init__(self, path: Path, *, whole: bool = True) -> None:
        """Unless the `whole` log is wanted, what was added is left out but for its end.

        `begun` is the line that has begun and not ended yet.
        """
        self.begun = ""
        self._path = path
        self._whole = whole
        self._file: int | None = None
        self._rest = b""

    def lines(self) -> list[str]:
        """The lines that were ended since the last call, without colours and control characters."""
        found: list[str] = []
        while chunk := self._read():
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _LONGEST_LINE_BYTES:
                # Of a progress bar only the last state counts.
                lines.append(self._rest)
                self._rest = b""
            found += map(log_line, lines)
            self.begun = log_line(self._rest[-_BEGUN_BYTES:])
            if len(chunk) < _CHUNK_BYTES:
                break
        return found

    def close(self) -> None:
        """Let go of the file."""
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
    """What a step is at that writes this line to its log; empty when the line does not say."""
    percent = squashfs.progress_percent(line)
    if percent is not None:
        return f"mksquashfs {percent}%"
    return podman.current_step(line)
