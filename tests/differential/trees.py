"""Root file systems as values, and what publishing changes in them."""

import hashlib
import os
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rc_tasks.steps.container import rootfs
from rc_tasks.tools.podman import Image

# Written when an image is published, from its configuration.
_WRITTEN = ("/etc/rc", "/etc/rc.local", "/etc/environment", "/etc/fstab")
# The labels that a build of ours adds, or that name the version of a tool.
_OUR_LABELS = "org.opencontainers.image."
_SHORT = 2000
_TOOLS_LABEL = "io.buildah.version"


@dataclass(frozen=True, slots=True)
class Entry:
    """One path: what it is, its permission bits, and its contents or target."""

    kind: str
    mode: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.mode:04o} {self.text[:40]}"


Tree = Mapping[str, Entry]


def read(root: Path) -> dict[str, Entry]:
    """Every entry below a directory, by its path from there."""
    found: dict[str, Entry] = {}
    top = str(root)
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            shown, bits = path[len(top) :], stat.S_IMODE(mode)
            if stat.S_ISLNK(mode):
                found[shown] = Entry("link", 0o777, os.readlink(path))
            elif stat.S_ISDIR(mode):
                found[shown] = Entry("directory", bits)
            elif stat.S_ISREG(mode):
                data = Path(path).read_bytes()
                whole = len(data) < _SHORT or shown in _WRITTEN
                text = data.decode(errors="replace") if whole else hashlib.sha256(data).hexdigest()
                found[shown] = Entry("file", bits, text)
            else:
                found[shown] = Entry("other", bits)
    return found


def published(image: Path, scratch: Path) -> dict[str, Entry]:
    """The root file system in a SquashFS image; `scratch` is a name that does not exist."""
    argv = ("unsquashfs", "-no-progress", "-quiet", "-dest", str(scratch), str(image))
    try:
        subprocess.run(argv, check=True, capture_output=True)
        return read(scratch)
    finally:
        subprocess.run(("rm", "-rf", scratch), check=False)


def expected(built: Tree, config: Mapping[str, Any]) -> dict[str, Entry]:
    """What is published of an image: a build's root file system with what Enroot changes in it."""
    found = {
        path: Entry(entry.kind, _mode(path, entry), entry.text)
        for path, entry in built.items()
        if not path.startswith("/dev/") and path != "/.dockerenv"
    }
    image = _image(config)
    written = {
        "/etc/rc": rootfs.rc(image, ()),
        "/etc/environment": "".join(f"{each}\n" for each in image.env),
        "/etc/fstab": rootfs.fstab(image.volumes),
    }
    made = [image.workdir, "/etc"] if image.workdir else ["/etc"]
    for directory in made:
        parts = directory.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            found.setdefault("/" + "/".join(parts[:depth]), Entry("directory", 0o755))
    found.pop("/", None)
    for path in _WRITTEN:
        mode = found[path].mode if path in found else 0o644
        found[path] = Entry("file", mode, written.get(path, "*"))
    return found


def differences(here: Tree, right: Tree) -> list[str]:
    """What is published and should not be, and what is missing, one line a path."""
    found = []
    for path in sorted({*here, *right}):
        mine, wanted = here.get(path), right.get(path)
        if mine is not None and path in _WRITTEN:
            mine = _without_comments(path, mine)
        if mine == wanted:
            continue
        if (
            mine is not None
            and wanted is not None
            and (mine.kind, mine.mode) == (wanted.kind, wanted.mode)
        ):
            here_alone = [
                line for line in mine.text.splitlines() if line not in wanted.text.splitlines()
            ]
            lacking = [line for line in wanted.text.splitlines() if line not in mine.text.splitlines()]
            found.append(
                f"{path}: published {here_alone or mine.text}; clean build {lacking or wanted.text}"
            )
            continue
        found.append(f"{path}: published {mine or 'nothing'!s}; clean build {wanted or 'nothing'!s}")
    return found


def configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an image's configuration that a Dockerfile decides."""
    found = {key: value for key, value in config.items() if value and key not in {"Image", "Hostname"}}
    labels = {
        key: value
        for key, value in (found.pop("Labels", None) or {}).items()
        if not key.startswith(_OUR_LABELS) and key != _TOOLS_LABEL
    }
    return found | ({"Labels": labels} if labels else {})


def _without_comments(path: str, entry: Entry) -> Entry:
    """A written file without what only a build of ours has: labels and provenance in /etc/rc."""
    if path == "/etc/rc.local":
        return Entry(entry.kind, entry.mode, "*")
    text = entry.text
    while path == "/etc/rc" and text.startswith(("# ", "\n")):
        text = text.partition("\n")[2]
    return Entry(entry.kind, entry.mode, text)


def _mode(path: str, entry: Entry) -> int:
    """Enroot's `chmod -R u+rX`, and u+w for directories."""
    if entry.kind == "link":
        return entry.mode
    mode = entry.mode | 0o400
    if entry.kind == "directory":
        return mode | 0o300
    return mode | 0o100 if mode & 0o111 else mode


def _image(config: Mapping[str, Any]) -> Image:
    return Image(
        id="",
        architecture="",
        size_bytes=0,
        env=tuple(config.get("Env") or ()),
        labels={},
        entrypoint=tuple(config.get("Entrypoint") or ()),
        cmd=tuple(config.get("Cmd") or ()),
        workdir=config.get("WorkingDir") or "",
        volumes=tuple(sorted(config.get("Volumes") or {})),
        layers=(),
    )
