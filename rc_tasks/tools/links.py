"""Symlinks of an image, followed as a process does whose / is the image."""

import errno
import os
from collections.abc import Callable

# The kernel follows this many and then returns ELOOP (path_resolution(7)).
MOST = 40


def follow(path: str, target_of: Callable[[str], str | None], *, outside: bool = False) -> str:
    """Return the absolute path that `path` leads to in an image; it need not exist.

    `target_of` returns the target of the symlink at an absolute path, or None where there is none.
    Raise OSError for a loop. With `outside`, also raise it for a symlink that would lead a process whose
    / is the host out of the image.
    """
    at: list[str] = []
    todo = path.split("/")[::-1]
    followed = 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            if outside and not at:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            at = at[:-1]
            continue
        target = target_of("/" + "/".join((*at, name)))
        if target is None:
            at.append(name)
            continue
        followed += 1
        if followed > MOST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith("/"):
            if outside:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            at = []
        todo += target.split("/")[::-1]
    return "/" + "/".join(at)
