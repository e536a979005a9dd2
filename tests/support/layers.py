"""Layers as directories and as SquashFS files, and everything that a user sees of a tree."""

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rc_tasks.tools import command, squashfs
from tests.support.tools import refuse

# What mksquashfs is given where a test is about something else: fast, and the same result every time.
ZSTD = ("-comp", "zstd", "-Xcompression-level", "1")
_ENTRY = re.compile(r"(?m)^(d\S+) (\S+) +\d+ (.*)$")


class Seen(NamedTuple):
    """What one path of a tree is; links hold all paths of the same inode."""

    mode: str
    owner: tuple[int, int]
    mtime_s: int
    links: tuple[str, ...]
    content: bytes | str | int
    xattrs: dict[str, bytes]


def squash(directory: Path, target: Path, *options: str) -> Path:
    """A SquashFS of a directory."""
    argv = ("mksquashfs", str(directory), str(target), "-noappend", "-no-progress", "-quiet")
    done = subprocess.run((*argv, *(options or ZSTD)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def seen(root: Path) -> dict[str, Seen]:
    """Everything below a directory and the directory itself, by path."""
    inodes: dict[tuple[int, int], list[str]] = {}
    found: dict[str, tuple[os.stat_result, Path]] = {}
    for path in (root, *sorted(root.rglob("*"))):
        name = str(path.relative_to(root))
        try:
            status = path.lstat()
        except FileNotFoundError:
            # overlayfs lists a whiteout with nothing below it, and says that it is not there.
            continue
        found[name] = status, path
        inodes.setdefault((status.st_dev, status.st_ino), []).append(name)
    return {
        name: Seen(
            stat.filemode(status.st_mode),
            (status.st_uid, status.st_gid),
            int(status.st_mtime),
            () if stat.S_ISDIR(status.st_mode) else tuple(inodes[status.st_dev, status.st_ino]),
            _content(status, path),
            _xattrs(path),
        )
        for name, (status, path) in found.items()
    }


def _content(status: os.stat_result, path: Path) -> bytes | str | int:
    if stat.S_ISREG(status.st_mode):
        # A sparse file of gigabytes is compared by its size.
        return path.read_bytes() if status.st_size < 1 << 28 else status.st_size
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    return status.st_rdev


def _xattrs(path: Path) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        # An image without any says that it does not know them.
        assert error.errno == errno.EOPNOTSUPP
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def listing(path: Path) -> list[str]:
    """All entries of an image, without sizes of directories, and times of what publishing writes."""
    text = command.capture(squashfs.listing(path)).stdout
    lines = _ENTRY.sub(r"\1 \2 \3", text[text.index("drwx") :]).splitlines()
    own = re.compile(r" squashfs-root(/etc(/(fstab|environment|rc|rc\.local))?|/srv(/here)?)?$")
    date = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")
    return [date.sub("now", line) if own.search(line) else line for line in lines]


def require_root() -> None:
    """Skip the test for an ordinary user, who can neither mount nor make devices."""
    if os.geteuid() != 0:
        refuse("only root can mount")


@contextmanager
def mounted(image: Path, point: Path) -> Iterator[Path]:
    """An image as the kernel shows it."""
    point.mkdir(exist_ok=True)
    with _mount(("-t", "squashfs", "-o", "loop,ro", str(image)), point):
        yield point


@contextmanager
def overlaid(layers: list[Path], point: Path, options: str = "") -> Iterator[Path]:
    """Directories as overlayfs shows them, the lowest layer first."""
    point.mkdir(exist_ok=True)
    # overlayfs takes no single lower directory without an upper one.
    empty = point.with_name(point.name + ".empty")
    empty.mkdir(exist_ok=True)
    lower = ":".join(map(str, [*layers[::-1], empty]))
    with _mount(("-t", "overlay", "-o", f"lowerdir={lower}{options}", "overlay"), point):
        yield point


@contextmanager
def _mount(arguments: tuple[str, ...], point: Path) -> Iterator[None]:
    done = subprocess.run(("mount", *arguments, point), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        refuse(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(("umount", point), check=True)


def applied(layers: list[Path], target: Path) -> Path:
    """Layers copied onto one another, without what they delete: a merge by plain file operations."""
    target.mkdir()
    for layer in layers:
        times = {}
        gone = []
        for directory, names, files in os.walk(layer):
            place = target / Path(directory).relative_to(layer)
            times[place] = os.lstat(directory)
            if _is_opaque(Path(directory)):
                gone += list(place.iterdir()) if place.is_dir() else []
            for name in names + files:
                above, below = Path(directory, name), place / name
                if name.startswith(".wh."):
                    gone += [] if name.startswith(".wh..wh.") else [place / name.removeprefix(".wh.")]
                elif _is_whiteout(above) or _replaces(above, below):
                    gone.append(below)
        for path in gone:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        # cp adds attributes to those that a directory has; a layer's directory has its own alone.
        for place in filter(Path.is_dir, times):
            for name in _xattrs(place):
                os.removexattr(place, name)
        subprocess.run(("cp", "-a", "--remove-destination", f"{layer}/.", target), check=True)
        for path in sorted(target.rglob("*")):
            if path.name.startswith(".wh.") or _is_whiteout(path):
                path.unlink()
        for path in (target, *target.rglob("*")):
            for name in _xattrs(path):
                if name.startswith(("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")):
                    os.removexattr(path, name, follow_symlinks=False)
        for place, status in times.items():
            os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns))
    return target


def _is_opaque(directory: Path) -> bool:
    flags = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
    return (directory / ".wh..wh..opq").exists() or any(
        _xattrs(directory).get(flag) == b"y" for flag in flags
    )


def _is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _replaces(above: Path, below: Path) -> bool:
    """Whether a directory takes the place of something else, or the other way round."""
    if not os.path.lexists(below):
        return False
    return stat.S_ISDIR(above.lstat().st_mode) != stat.S_ISDIR(below.lstat().st_mode)
