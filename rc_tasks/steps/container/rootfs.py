"""Enroot's files in a root file system: /etc/rc, rc.local, environment and fstab.

An image is untrusted and this process may be root. So its symlinks are resolved in Python, as for a
process whose / is the image: none leads out of it, and only regular files are written.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from rc_tasks.errors import ArtifactError
from rc_tasks.tools import enroot, links
from rc_tasks.tools.enroot import quote
from rc_tasks.tools.podman import Image

# The files that Enroot writes in an image.
WRITTEN = ("/etc/fstab", "/etc/environment", "/etc/rc", "/etc/rc.local")
# Container runtimes mount over these directories and make files in them before they change their root:
# through a symlink there runc 1.1 writes to the host. podman and the container read these files, and
# would wait for ever for a pipe.
_DIRECTORIES = ("/dev", "/proc", "/sys")
_FILES = ("/etc/rc", "/etc/passwd", "/etc/group")

_HINT = (
    "remove what is in its place in the Dockerfile: Enroot needs a regular file, or directories, there"
)

_IMPORT_HINT = 'set `method = "direct"` in the [squash] settings, or remove it in the Dockerfile'

LAUNCH_HINT = "remove what is in its place in the Dockerfile: no container can be started so"

_RC_LOCAL = """\
# This file is sourced by /etc/rc when the container starts.
# It can be used to manipulate the entrypoint or the command of the container.
"""

# The files that Enroot leaves out when it unpacks an image, as patterns for mksquashfs, whose * does not
# match a leading dot.
EXCLUDE = ("dev/*", "dev/.*", ".dockerenv")
# The modes that Enroot gives, so that an ordinary user can unpack and delete the image: `chmod -R
# u+rX`, and u+w for directories down to find's depth 15, which mksquashfs counts from 1. Changed in
# the SquashFS file alone: in overlay storage each chmod would copy a file up, and a walk takes time.
WRITABLE_DEPTH = 16
ACTIONS = ("chmod(u+rX)@true", f"chmod(u+w)@type(d)&&depth(-{WRITABLE_DEPTH})")


def prepare(root: Path, image: Image, provenance: tuple[str, ...]) -> None:
    """Write Enroot's four files and make the working directory in a mounted image.

    `provenance` lines become comments at the beginning of /etc/rc. Raise ArtifactError when the
    image has something in the way.
    """
    # Files get the modes that Enroot gives under the usual umask, whatever ours is.
    umask = os.umask(0o022)
    try:
        descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
        try:
            _turn_inwards(root)
            for path, content in enroot_files(image, provenance).items():
                _write(descriptor, path, content)
            with _inside(descriptor, image.workdir, last=False):
                pass
        finally:
            os.close(descriptor)
    finally:
        os.umask(umask)


def enroot_files(image: Image, provenance: tuple[str, ...]) -> dict[str, bytes]:
    """Return the contents of Enroot's four files by their paths."""
    texts = {
        "/etc/fstab": fstab(image.volumes),
        "/etc/environment": "".join(f"{line}\n" for line in enroot.environment(image.env)),
        "/etc/rc": rc(image, provenance),
        "/etc/rc.local": _RC_LOCAL,
    }
    # The name of a label may hold half a surrogate pair: JSON can say what UTF-8 cannot.
    return {path: text.encode(errors="replace") for path, text in texts.items()}


def require_plain(root: Path) -> None:
    """Raise ArtifactError when something in a root file system lets a launcher hang or leave it."""
    for path in _DIRECTORIES:
        if os.path.lexists(full := f"{root}{path}") and not stat.S_ISDIR(os.lstat(full).st_mode):
            raise obstacle(path, "is not a directory", LAUNCH_HINT)
    for path in _FILES:
        target = seen_inside(root, path)
        if os.path.lexists(target) and not target.is_file():
            raise obstacle(path, "is not a regular file", LAUNCH_HINT)


def seen_inside(root: Path, path: str) -> Path:
    """Return where a path leads for a process whose / is `root`; nothing need be there."""
    try:
        return Path(f"{root}{links.follow(path, _target_in(root))}")
    except OSError:
        raise obstacle(path, "leads through a loop of symlinks", LAUNCH_HINT) from None


def require_contained(root: Path, workdir: str) -> None:
    """Raise ArtifactError when Enroot could write outside of the tree of an image that it imports.

    Enroot writes its files and makes the working directory as a process whose / is the host.
    """
    for path in (*WRITTEN, workdir):
        if _leads_out(root, path):
            why = "leads through a symlink that Enroot follows on the host"
            raise obstacle(path, why, _IMPORT_HINT)
    for path in WRITTEN:
        target = seen_inside(root, path)
        if os.path.lexists(target) and not target.is_file():
            raise obstacle(path, "is not a regular file", _IMPORT_HINT)


def fstab(volumes: tuple[str, ...]) -> str:
    """Return a bind mount for each VOLUME; white space and backslashes escaped as fstab(5) says."""
    lines = []
    for volume in volumes:
        name = re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", volume)
        lines.append(f"${{ENROOT_ROOTFS}}{name} {name} none x-create=dir,bind,rw,nosuid,nodev\n")
    return "".join(lines)


def rc(image: Image, provenance: tuple[str, ...]) -> str:
    """Return the script that starts a container, for every POSIX sh."""
    labels = (f"{key} {value}" for key, value in image.labels.items())
    # A line break would end the comment, and the rest be run as a command.
    comments = "".join("# " + re.sub(r"[\r\n]", " ", line) + "\n" for line in (*provenance, *labels))
    workdir = re.sub(r'["$`\\]', r"\\\g<0>", image.workdir or "/")
    entrypoint = " ".join(map(quote, image.entrypoint))
    cmd = " ".join(map(quote, image.cmd if image.entrypoint or image.cmd else ("/bin/sh",)))
    return f"""\
{comments}{"" if not comments else chr(10)}\
mkdir -p "{workdir}" 2> /dev/null
cd "{workdir}" && unset OLDPWD || exit 1
{enroot.exports(image.env)}
if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec {entrypoint} "$@"
else
    exec {entrypoint} {cmd}
fi
"""


def _turn_inwards(root: Path) -> None:
    """Make the symlinks to Enroot's files lead to the same place from outside of the container.

    Enroot reads them from there, and a launcher replaces rc.local.
    """
    for path in ("/etc", *WRITTEN):
        directory, name = os.path.split(path)
        link = seen_inside(root, directory) / name
        # An absolute one to a file is replaced by the file.
        kept = path == "/etc" or (link.is_symlink() and not os.readlink(link).startswith("/"))
        if link.is_symlink() and kept and _leads_out(root, path):
            target = os.path.relpath(seen_inside(root, path), link.parent)
            link.unlink()
            link.symlink_to(target)


def _leads_out(root: Path, path: str) -> bool:
    """Return whether a path leads elsewhere for a process whose / is the host than for the container."""
    try:
        links.follow(path, _target_in(root), outside=True)
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


def _write(root: int, path: str, content: bytes) -> None:
    """Replace the contents of a file; one that exists keeps its mode, as with Enroot."""
    with _inside(root, path, last=True) as (directory, name):
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                os.unlink(name, dir_fd=directory)
            elif not stat.S_ISREG(mode):
                # Opening a FIFO would wait for ever, and a device would be one of this host.
                raise obstacle(path, "is not a regular file")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(name, flags, 0o644, dir_fd=directory), "wb") as file:
            file.write(content)


@contextlib.contextmanager
def _inside(root: int, path: str, *, last: bool) -> Iterator[tuple[int, str]]:
    """Open the directory of `path`, as seen from a process whose / is `root`; make it when missing.

    Yield its descriptor and the name of the last component (`last`), or the descriptor of the whole
    path and "". The last component is absent, or no symlink, or an absolute symlink: Enroot reads
    these files from outside of the container, where an absolute one would lead to the host.
    """
    descriptors = [os.dup(root)]
    todo = path.split("/")[::-1]
    followed = 0
    name = ""
    try:
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                # The parent of / is / itself.
                if len(descriptors) > 1:
                    os.close(descriptors.pop())
                continue
            target = _readlink(descriptors[-1], name)
            if last and not any(todo) and (target is None or target.startswith("/")):
                break
            if target is not None:
                followed += 1
                if followed > links.MOST:
                    raise obstacle(path, "leads through a loop of symlinks")
                if target.startswith("/"):
                    while len(descriptors) > 1:
                        os.close(descriptors.pop())
                todo += target.split("/")[::-1]
                continue
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=descriptors[-1])
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            descriptors.append(os.open(name, flags, dir_fd=descriptors[-1]))
        yield descriptors[-1], name if last else ""
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = (
            "free space in podman's storage, or choose another in the [podman] settings"
            if full
            else _HINT
        )
        raise obstacle(path, f"cannot be written: {error.strerror}", hint) from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _readlink(directory: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def _target_in(root: Path) -> Callable[[str], str | None]:
    def target_of(path: str) -> str | None:
        full = f"{root}{path}"
        return os.readlink(full) if os.path.islink(full) else None

    return target_of


def obstacle(path: str, why: str, hint: str = _HINT) -> ArtifactError:
    """Return the error of something in an image that is in Enroot's way, or in ours."""
    return ArtifactError(f"{path} {why}", where="the image's root file system", hint=hint)
