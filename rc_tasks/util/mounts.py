"""Mount points that this process sees, with the types of their file systems."""

import os
import re
from pathlib import Path

from msgspec import Struct

_TABLE = Path("/proc/self/mountinfo")


class Mount(Struct, frozen=True):
    """A mount point, and the type of its file system as the kernel names it, such as `lustre`."""

    point: Path
    kind: str


def mounts() -> list[Mount]:
    """Return all mounts of this process; a later one covers earlier ones at the same place."""
    return [_mount(line) for line in _TABLE.read_bytes().splitlines()]


def mount_of(path: Path, table: list[Mount]) -> Mount | None:
    """Return the mount of a path without symlinks, or None if the table lacks it, as in a chroot."""
    above = [mount for mount in table if path == mount.point or mount.point in path.parents]
    # Of equally long paths, `max` would return the first, which the last one covers.
    return max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)


def _mount(line: bytes) -> Mount:
    # proc_pid_mountinfo(5): optional fields end at a lone `-`, which the type follows.
    fields, _, source = line.partition(b" - ")
    # White space and backslashes are octal there.
    path = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), fields.split()[4])
    return Mount(Path(os.fsdecode(path)), source.split()[0].decode())
