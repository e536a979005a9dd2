"""The build context: which files of a project directory a build can see.

Patterns are Docker's (`.dockerignore`). podman 4.3.1 reads some of them otherwise, so it is given
the ignore file in a form that all builders read alike; see `ignore_text`.
"""

import functools
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rc_tasks.errors import ProjectError
from rc_tasks.model.regular import read_bytes

# In podman's order: the first that exists is the only one that counts.
IGNORE_FILES = (
    "Dockerfile.dockerignore",
    "Dockerfile.containerignore",
    ".containerignore",
    ".dockerignore",
)
# What we make, or read ourselves, and the temporary names that it is made under.
OUR_FILES = (
    "image.sqsh",
    "image.json",
    "env.toml",
    "project.toml",
    ".image.*.tmp.sqsh",
    ".image.json.*",
    ".env.toml.*",
)
# COPY drops the bits that give rights away, set-user-ID and set-group-ID, and keeps the sticky bit.
COPIED_MODE = 0o1777


class Kind(StrEnum):
    """What a directory entry is."""

    FILE = "file"
    SYMLINK = "symlink"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the context; `path` is relative with slashes, `mode` has the permission bits."""

    path: str
    kind: Kind
    mode: int


def ignore_text(directory: Path) -> str:
    """The complete ignore file for `podman build --ignorefile`, our own files last.

    Raises ProjectError for a pattern that Docker refuses.
    """
    names = {item.name for item in _scan(str(directory), "")}
    return "".join(f"{rule.text}\n" for rule in _rules(directory, names))


def entries(directory: Path) -> Iterator[Entry]:
    """Everything that COPY could take from the directory, sorted by path.

    Symlinks are not followed. Raises ProjectError for what no image can hold and for a directory
    that cannot be read.
    """
    top = _scan(str(directory), "")
    names = {item.name for item in top}
    # Compiling patterns takes longer than listing a small directory, and most have none of their own.
    own = not names.isdisjoint(IGNORE_FILES)
    ignored = _Ignored(_rules(directory, names)) if own else _ignored_always()
    found: list[Entry] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        for item in _scan(str(directory), prefix) if prefix else top:
            path = prefix + item.name
            left_out = ignored.ignores(path)
            if item.is_dir(follow_symlinks=False):
                if not left_out or ignored.may_contain(path):
                    pending.append(f"{path}/")
                kind = Kind.DIRECTORY
            elif item.is_symlink():
                kind = Kind.SYMLINK
            else:
                kind = Kind.FILE
            if left_out:
                continue
            try:
                mode = item.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                # Gone since the directory was listed, as editors' temporary files are.
                continue
            if kind is Kind.FILE and not stat.S_ISREG(mode):
                raise ProjectError(
                    "this is a socket, a pipe or a device, which cannot be copied into an image",
                    where=directory / path,
                    hint="remove it, or name it in .dockerignore",
                )
            found.append(Entry(path, kind, mode & COPIED_MODE))
    found.sort(key=lambda entry: entry.path)
    return iter(found)


def left_out(directory: Path, source: str) -> str | None:
    """Return a path at or below `source` that exists and that the context leaves out, or None.

    podman shows such files to `RUN --mount=type=bind`, and only there (podman 4.3.1, 5.4.2 and 5.8.6).
    """
    source = posixpath.normpath(f"/{source}").lstrip("/")
    top = _scan(str(directory), "")
    ignored = _Ignored(_rules(directory, {item.name for item in top}))
    if source and ignored.ignores(source) and os.path.lexists(directory / source):
        return source
    pending = [f"{source}/" if source else ""]
    while pending:
        prefix = pending.pop()
        if prefix and not (directory / prefix).is_dir():
            continue
        for item in _scan(str(directory), prefix):
            path = prefix + item.name
            if ignored.ignores(path):
                return path
            if item.is_dir(follow_symlinks=False):
                pending.append(f"{path}/")
    return None


def copy(directory: Path, destination: Path) -> None:
    """Copy all that the context holds, and nothing else, to `destination`, an empty directory."""
    made = []
    for entry in entries(directory):
        source, target = directory / entry.path, destination / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind is Kind.DIRECTORY:
            target.mkdir(exist_ok=True)
            made.append((source, target))
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    for source, target in reversed(made):
        shutil.copystat(source, target)


def _scan(directory: str, prefix: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(f"{directory}/{prefix}") as items:
            return list(items)
    except FileNotFoundError:
        if prefix:
            return []
        raise ProjectError(
            "the project directory does not exist", where=directory, hint="check its spelling"
        ) from None
    except OSError as error:
        raise ProjectError(
            f"cannot list the directory: {error.strerror}",
            where=os.path.join(directory, prefix),
            hint="podman has to read it too: mend its permissions, or name it in .dockerignore",
        ) from None


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pattern: `text` is podman's, `regex` for whole paths; `again` when `!` brings things back."""

    text: str
    regex: str
    again: bool


class _Ignored:
    """Decides by the last rule that matches a path or one of the directories that it lies in."""

    def __init__(self, rules: tuple[_Rule, ...]) -> None:
        # Neighbours of one kind become one expression: most files are asked about once.
        self.blocks: list[tuple[re.Pattern[str], bool]] = []
        for rule in rules:
            regex = f"(?:{rule.regex})(?:/.*)?"
            if self.blocks and self.blocks[-1][1] == rule.again:
                regex = f"{self.blocks.pop()[0].pattern}|{regex}"
            self.blocks.append((re.compile(regex), rule.again))
        self.blocks.reverse()
        self.starts = [_start(rule.text) for rule in rules if rule.again]

    def ignores(self, path: str) -> bool:
        return next((not again for regex, again in self.blocks if regex.fullmatch(path)), False)

    def may_contain(self, path: str) -> bool:
        """Whether a `!` pattern could bring back something below an ignored directory.

        podman 4.3.1 looks below it only when the pattern begins with its path, so there `COPY . /`
        does not take sub/keep for `!**/keep`. But `COPY sub/keep /` does: all that it could take counts.
        """
        return any(start.startswith(f"{path}/") or f"{path}/".startswith(start) for start in self.starts)


def _start(text: str) -> str:
    """The part of a `!` pattern before its first wildcard; an escape counts as one, to be safe."""
    return re.split(r"[*?\[\\]", text[1:], maxsplit=1)[0]


@functools.cache
def _ignored_always() -> _Ignored:
    return _Ignored(_always())


@functools.cache
def _always() -> tuple[_Rule, ...]:
    return tuple(rule for pattern in OUR_FILES for rule in _rule(pattern.encode(), None))


def _rules(directory: Path, names: Collection[str]) -> tuple[_Rule, ...]:
    rules: list[_Rule] = []
    for name in IGNORE_FILES:
        if name not in names:
            continue
        try:
            content = read_bytes(directory / name)
        except OSError as error:
            raise ProjectError(
                f"cannot be read: {error.strerror}", where=directory / name, hint="mend its permissions"
            ) from None
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            if not line.startswith(b"#"):
                rules += _rule(line, f"{directory / name}:{number}")
        break
    return (*rules, *_always())


def _rule(line: bytes, where: object) -> tuple[_Rule, ...]:
    """The rule that a line makes; none for one that is blank or means the context itself."""
    try:
        pattern = line.decode().strip()
    except UnicodeDecodeError:
        raise ProjectError(
            "the pattern is not UTF-8", where=where, hint="save the file as UTF-8"
        ) from None
    again = pattern.startswith("!")
    if again:
        pattern = pattern[1:].strip()
        if not pattern:
            raise ProjectError("! stands alone", where=where, hint="write the pattern behind it")
    # A leading slash means the context, as none at all does; .. cannot leave it then.
    rooted = pattern.startswith("/")
    pattern = (
        posixpath.normpath("/" + pattern.lstrip("/")).lstrip("/")
        if rooted
        else posixpath.normpath(pattern or ".")
    )
    if pattern in ("", "."):
        return ()
    text, regex = _translate(pattern, where)
    return (_Rule(f"!{text}" if again else text, regex, again),)


# These mean something to podman 4.3.1's patterns or to the regular expressions that it makes of them
# without escaping: a file named a+b is never matched by the pattern a+b there.
_SPECIAL = frozenset("\\*?[](){}+|^")


def _translate(pattern: str, where: object) -> tuple[str, str]:
    """A cleaned pattern in the form for podman, and as a regular expression for whole paths."""
    text = regex = ""
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*" and pattern.startswith("*", at):
            at += 1
            slash = "/" if pattern.startswith("/", at) else ""
            at += len(slash)
            text += f"**{slash}"
            regex += "(?:.*/)?" if at < len(pattern) else ".*"
        elif character == "*":
            text, regex = f"{text}*", f"{regex}[^/]*"
        elif character == "?":
            text, regex = f"{text}?", f"{regex}[^/]"
        elif character == "[":
            at, members = _class(pattern, at, where)
            text, regex = text + members, regex + members
        else:
            if character == "\\":
                character, at = _escaped(pattern, at, where), at + 1
            # A blank, ! or # in front would be read as something else than itself.
            leading = not text and (character in "!#" or character.isspace())
            text += f"\\{character}" if leading or character in _SPECIAL else character
            regex += re.escape(character)
    return text, regex


def _class(pattern: str, at: int, where: object) -> tuple[int, str]:
    """The character class whose [ stands before `at`, in a form that podman and `re` read alike."""
    negated = "^" if pattern.startswith("^", at) else ""
    at += len(negated)
    members = ""
    while not (members and pattern.startswith("]", at)):
        low, at = _member(pattern, at, where)
        high = low
        if pattern.startswith("-", at):
            high, at = _member(pattern, at + 1, where)
        if high < low:
            raise _malformed(pattern, f"{low}-{high} runs backwards", where)
        members += _quoted(low) if low == high else f"{_quoted(low)}-{_quoted(high)}"
    return at + 1, f"[{negated}{members}]"


def _member(pattern: str, at: int, where: object) -> tuple[str, int]:
    character = pattern[at : at + 1]
    if character in ("", "-", "]"):
        raise _malformed(pattern, "a [ has no matching ] or nothing between", where)
    return (_escaped(pattern, at + 1, where), at + 2) if character == "\\" else (character, at + 1)


def _quoted(character: str) -> str:
    return f"\\{character}" if character.isascii() and not character.isalnum() else character


def _escaped(pattern: str, at: int, where: object) -> str:
    if at == len(pattern):
        raise _malformed(pattern, "it ends in a backslash", where)
    return pattern[at]


def _malformed(pattern: str, problem: str, where: object) -> ProjectError:
    return ProjectError(
        f"{pattern!r} is not a pattern: {problem}",
        where=where,
        hint="put a backslash before a character that means itself",
    )
