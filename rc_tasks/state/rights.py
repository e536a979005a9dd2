"""File modes that deny reading: the state of a checkout to this user, or its images to all others."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rc_tasks.model.graph.project import ARTIFACT, EDF, IMAGE_JSON
from rc_tasks.state.checkout import GENERATED, Checkout
from rc_tasks.state.disk.files import umask
from rc_tasks.state.disk.reading import denied
from rc_tasks.state.disk.trust import is_private, user


def is_official(checkout: Checkout) -> bool:
    """Return whether the settings name this checkout as the one that everybody's jobs start from."""
    root = checkout.settings.images_root
    return bool(root) and os.path.realpath(root) == str(checkout.root)


def require_readable(checkout: Checkout) -> None:
    """Raise RcError for the first path of the generated state that this user may not read."""
    for path in _state(checkout):
        # A link that leads nowhere is no question of rights, and `denied` has no words for it.
        if not os.access(path, os.R_OK) and (error := denied(path)) is not None:
            raise error


def closed_files(checkout: Checkout, name: str) -> list[Path]:
    """Return the published files of an image that nobody but their owner may read."""
    project = checkout.graph.images[name].project
    files = (Path(project.base, file) for file in (ARTIFACT, IMAGE_JSON, EDF))
    return [path for path in files if _is_closed(path)]


def closed(checkout: Checkout) -> list[Path]:
    """Return what a job or a clone of somebody else needs, and nobody but its owner may read."""
    directories = [checkout.root]
    files = list[Path]()
    for name, node in checkout.graph.images.items():
        directories.append(node.project.directory)
        files += closed_files(checkout, name)
    return [
        *filter(_is_closed, dict.fromkeys(directories)),
        *files,
        *filter(_is_closed, _state(checkout)),
    ]


def shown(path: Path, name: str) -> str:
    """Return `NAME (owner OWNER, mode MODE)` for a path."""
    status = os.lstat(path)
    return f"{name} (owner {user(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o})"


def closing_umask(checkout: Checkout) -> str:
    """Return the umask if it lets nobody but this user read what is published now, else nothing."""
    mask, top = umask(), os.stat(checkout.root)
    gid = top.st_gid if top.st_mode & stat.S_ISGID else os.getegid()
    return f"{mask:04o}" if _closes(0o666 & ~mask, stat.S_IRUSR, os.geteuid(), gid) else ""


def _is_closed(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False  # not there: what must be there is missed elsewhere
    if stat.S_ISLNK(status.st_mode):
        return False
    needed = stat.S_IRUSR | (stat.S_IXUSR if stat.S_ISDIR(status.st_mode) else 0)
    return _closes(status.st_mode, needed, status.st_uid, status.st_gid)


def _closes(mode: int, needed: int, uid: int, gid: int) -> bool:
    """Return whether a mode gives the needed bits, which are those of the owner, to nobody else."""
    if mode << 6 & needed == needed:
        return False
    return mode << 3 & needed != needed or is_private(gid, uid)


def _state(checkout: Checkout) -> Iterator[Path]:
    """Everything in `.rc` but temporary files. Raise OSError for a directory that cannot be listed."""
    top = checkout.root / GENERATED
    if not os.path.lexists(top):
        return
    yield top
    for parent, directories, names in os.walk(top, onerror=_raise):
        directories[:] = [name for name in directories if not name.startswith(".")]
        yield from (Path(parent, name) for name in (*directories, *names) if not name.startswith("."))


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
