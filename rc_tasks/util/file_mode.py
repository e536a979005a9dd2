"""Permission bits that git tracks: a file is executable or not, and a directory has none.

All other bits come from the umask of the user who checked the file out, so two clones of one commit
differ in them.
"""

import stat

_EXECUTABLE, _OTHER = "0755", "0644"
_NORMAL = frozenset({f"{_EXECUTABLE} ", f"{_OTHER} "})
DIRECTORY = "directory"


def counted(mode: int) -> str:
    """Return the mode of a file or directory as four octal digits, the same for every umask."""
    return _EXECUTABLE if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else _OTHER


def is_normalised(value: str) -> bool:
    """Return whether a recorded value has a mode that `counted` can return."""
    return value[:5] in _NORMAL


def normalised(value: str) -> str:
    """Return the recorded value of a file, such as `0664 SHA256`, with the mode that `counted` returns.

    Earlier versions recorded all permission bits.
    """
    if is_normalised(value):
        return value
    mode, _, content = value.partition(" ")
    if not content or len(mode) != 4 or not set(mode) <= set("01234567"):
        return value  # a symlink has no mode
    bits = int(mode, 8) | (stat.S_IFDIR if content == DIRECTORY else 0)
    return f"{counted(bits)} {content}"
