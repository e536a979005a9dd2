"""Cache of Dockerfiles split into instructions, by the digest of their text.

A look at a thousand images splits a thousand Dockerfiles, of which none has changed. Builds do not
use it.
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
    """Splits Dockerfiles; losing `file` costs only time."""

    def __init__(self, file: Path) -> None:
        """Remember in `file` what was split by this version of the code."""
        self._file = file
        self._version = os.stat(instructions.__file__).st_mtime_ns
        self._known: dict[str, Any] | None = None
        self._used: dict[str, object] = {}
        self._changed = False

    def split(self, text: bytes, where: str) -> Source:
        """Split a Dockerfile. Raises DockerfileError."""
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
        """Write down what was split; not being able to (a read-only checkout) is no error."""
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
