"""Files and directories of the state that are renamed with their image."""

import contextlib
import json
import os
from pathlib import Path

from msgspec import DecodeError

from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import put_in_place, write_atomically
from rc_tasks.util.json_decode import load


def merge_directories(source: Path, target: Path) -> None:
    """Move all that is in a directory into another one, which may be missing.

    Files of the same name are replaced. A second call goes on after a kill. Raise OSError.
    """
    if source.is_symlink() or not source.is_dir():
        return
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(source, target)
        return
    for name in reading.names(source):
        if (source / name).is_dir() and not (source / name).is_symlink():
            merge_directories(source / name, target / name)
        else:
            put_in_place(source / name, target / name)
    source.rmdir()


def replace_name(path: Path, new: str, *, indent: int | None) -> None:
    """Replace the `name` in a JSON file, if it is there and readable; the file keeps its times."""
    with contextlib.suppress(DecodeError):
        document = load(reading.content(path))
        if document.get("name") not in {None, new}:
            separators = (",", ":") if indent is None else None
            text = json.dumps(document | {"name": new}, indent=indent, separators=separators)
            rewrite(path, f"{text}\n")


def rewrite(path: Path, text: str) -> None:
    """Write a file that keeps its times, as does its directory: both tell ages in the state."""
    times = [(place, os.stat(place)) for place in (path, path.parent)]
    write_atomically(path, text)
    for place, status in times:
        os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
