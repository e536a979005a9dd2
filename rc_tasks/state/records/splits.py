"""Cache of Dockerfiles that were split into instructions, by the digest of their text.

`doit list` needs the instructions of all Dockerfiles, of which few have changed since the last command.
Builds do not use the cache.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from rc_tasks.errors import RcError
from rc_tasks.model.dockerfile import instructions
from rc_tasks.model.dockerfile.instructions import Instruction, Source
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.digests import bytes_digest
from rc_tasks.util.safe_read import read_bytes


class Splits:
    """Splits Dockerfiles into instructions, and keeps the result."""

    def __init__(self, file: Path) -> None:
        """Keep the results of this version of the code in `file`; losing the file costs only time."""
        self._file = file
        self._version = os.stat(instructions.__file__).st_mtime_ns
        self._known: dict[str, Any] | None = None
        self._used: dict[str, object] = {}
        self._changed = False

    def split(self, text: bytes, where: str) -> Source:
        """Return the instructions of a Dockerfile, from the cache if it has them. Raise DockerfileError.

        `where` is its path in errors.
        """
        key = bytes_digest(text)
        known = self._load().get(key)
        source = _parse(known)
        if source is None:
            source = instructions.instructions(text, where=where)
            rows = [[x.name, x.flags, x.value, x.line, x.last_line] for x in source.instructions]
            known = [source.escape, rows]
            self._changed = True
        self._used[key] = known
        return source

    def save(self) -> None:
        """Save the cache; failing to (in a read-only checkout) is no error."""
        if self._changed:
            with contextlib.suppress(OSError, RcError):
                write_atomically(self._file, json.dumps([self._version, self._used]))
            self._changed = False

    def _load(self) -> dict[str, Any]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
                version, known = json.loads(read_bytes(self._file))
                if version == self._version:
                    self._known = dict(known)
        return self._known


def _parse(known: Any) -> Source | None:
    """Return the value of a cache's entry; None if the value is missing or damaged."""
    try:
        escape, rows = known
        return Source(
            str(escape),
            tuple(
                Instruction(str(name), tuple(map(str, flags)), str(value), int(line), int(last))
                for name, flags, value, line, last in rows
            ),
        )
    except (TypeError, ValueError):
        return None
