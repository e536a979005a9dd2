"""The build context: which files of a project directory a build can see.

Patterns are Docker's (`.dockerignore`). podman 4.3.1 reads some of them otherwise, so it is given
the ignore file in a form that all builders read alike; see `ignore_text`.
"""

import functools
import hashlib
import marshal
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.errors import ProjectError
from rc_tasks.model.graph.project import DOCKERFILE
from rc_tasks.util.safe_read import advice, read_bytes

# In podman's order: the first that exists is the only one that counts. {} is the Dockerfile's name.
IGNORE_FILES = ("{}.dockerignore", "{}.containerignore", ".containerignore", ".dockerignore")
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
# Of this version equal values have equal bytes.
_MARSHAL = 2


@dataclass(frozen=True, slots=True)
class Listing:
    """What COPY could take from a directory, its `paths` relative with slashes and sorted.

    `signature` is another whenever lstat says something else of one of them. `changed_ns` is when one
    of them was changed last, by the clock of the file system.
    """

    paths: tuple[str, ...]
    signature: str
    changed_ns: int


def ignore_text(directory: str | Path, dockerfile: str = DOCKERFILE) -> str:
    """The complete ignore file for `podman build --ignorefile`, our own files last.

    Raises ProjectError for a pattern that Docker refuses.
    """
    names = {name for name, _ in _scan(directory, "")}
    return "".join(f"{rule.text}\n" for rule in _rules(directory, dockerfile, names))


def listing(directory: str | Path, dockerfile: str = DOCKERFILE) -> Listing:
    """Everything that COPY could take from the directory.

    Symlinks are not followed. Raises ProjectError for what no image can hold and for a directory
    that cannot be read.
    """
    top = list(_scan(directory, ""))
    ignored = _ignored(_rules(directory, dockerfile, {name for name, _ in top}))
    paths: list[str] = []
    signature = hashlib.sha256()
    changed_ns = 0
    pending = [("", _NO_RULE)]
    while pending:
        prefix, above = pending.pop()
        level = ignored.level(prefix)
        found: list[tuple[str | int, ...]] = []
        below: list[tuple[str, int]] = []
        for name, status in _scan(directory, prefix) if prefix else top:
            path, mode = prefix + name, status.st_mode
            rule = level.last(path, above) if level is not None else above
            left_out = rule in ignored.out
            if stat.S_ISDIR(mode) and (not left_out or ignored.may_contain(path)):
                below.append((f"{path}/", rule))
            if left_out:
                continue
            paths.append(path)
            if stat.S_ISDIR(mode):
                # Its size and times change with what is ignored in it.
                found.append((path, mode))
            elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                size, ctime_ns = status.st_size, status.st_ctime_ns
                found.append((path, mode, size, status.st_mtime_ns, ctime_ns, status.st_ino))
                changed_ns = max(changed_ns, ctime_ns)
            else:
                raise ProjectError(
                    "this is a socket, a pipe or a device, which cannot be copied into an image",
                    where=f"{directory}/{path}",
                    hint="remove it, or name it in .dockerignore",
                )
        # Directory by directory, as hundreds of thousands of files are held no longer than necessary.
        found.sort()
        signature.update(marshal.dumps(found, _MARSHAL))
        pending += sorted(below)
    paths.sort()
    return Listing(tuple(paths), signature.hexdigest(), changed_ns)


def copy(directory: Path, destination: Path, dockerfile: str = DOCKERFILE) -> None:
    """Copy all that the context holds, and nothing else, to `destination`, an empty directory."""
    made = []
    for path in listing(directory, dockerfile).paths:
        source, target = directory / path, destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(source.lstat().st_mode):
            target.mkdir(exist_ok=True)
            made.append((source, target))
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    for source, target in reversed(made):
        shutil.copystat(source, target)
    # podman 5.4 runs a RUN that mounts all of it again when only this has changed.
    os.utime(destination, (0, 0))


def _scan(directory: str | Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """The names in a directory with what lstat says of each."""
    try:
        # By its descriptor: the kernel need not follow the whole path for every file.
        descriptor = os.open(f"{directory}/{prefix}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(descriptor) as items:
                for item in items:
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        # Gone since the directory was listed, as editors' temporary files are.
                        continue
                    yield item.name, status
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if prefix:
            return
        raise ProjectError(
            "the project directory does not exist", where=directory, hint="check its spelling"
        ) from None
    except OSError as error:
        raise ProjectError(
            f"cannot list the directory: {error.strerror}",
            where=os.path.join(directory, prefix),
            hint=advice(
                error, "podman has to read it too: correct its permissions, or name it in .dockerignore"
            ),
        ) from None


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pattern: `text` is podman's; `again` when `!` brings things back.

    It matches the path `plain` alone, or what `regex` matches as a whole. All that it matches has
    `slashes` slashes, or any number of them.
    """

    text: str
    again: bool
    plain: str
    regex: re.Pattern[str] | None
    slashes: int | None


# The index of the rule that decides while there is none.
_NO_RULE = -1


class _Ignored:
    """Decides by the last rule that matches a path or one of the directories that it lies in.

    Rules are known by their indices, and a directory's rule holds below it until a later one matches.
    """

    def __init__(self, rules: tuple[_Rule, ...]) -> None:
        self.rules = rules
        self.out = frozenset(at for at, rule in enumerate(rules) if not rule.again)
        self.starts = [_start(rule.text) for rule in rules if rule.again]
        self.levels: dict[int, _Level | None] = {}

    def level(self, path: str) -> "_Level | None":
        """The rules that may match a path of as many slashes; None when there are none."""
        slashes = path.count("/")
        if slashes not in self.levels:
            rules = [(at, rule) for at, rule in enumerate(self.rules) if rule.slashes in (None, slashes)]
            self.levels[slashes] = _Level(rules) if rules else None
        return self.levels[slashes]

    def ignores(self, path: str) -> bool:
        """Whether a path is left out, asked for itself and not while its directories are listed."""
        rule, at = _NO_RULE, 0
        while at >= 0:
            at = path.find("/", at + 1)
            above = path if at < 0 else path[:at]
            level = self.level(above)
            rule = level.last(above, rule) if level is not None else rule
        return rule in self.out

    def may_contain(self, path: str) -> bool:
        """Whether a `!` pattern could bring back something below an ignored directory.

        podman 4.3.1 looks below it only when the pattern begins with its path, so there `COPY . /`
        does not take sub/keep for `!**/keep`. But `COPY sub/keep /` does: all that it could take counts.
        """
        return any(start.startswith(f"{path}/") or f"{path}/".startswith(start) for start in self.starts)


# Most projects have no rules of their own.
_ignored = functools.cache(_Ignored)


class _Level:
    """The rules that may match what lies at one depth."""

    def __init__(self, rules: list[tuple[int, _Rule]]) -> None:
        self.plain = {rule.plain: at for at, rule in rules if rule.regex is None}
        self.others = [(at, rule.regex.fullmatch) for at, rule in rules[::-1] if rule.regex is not None]

    def last(self, path: str, above: int) -> int:
        """The last rule for a path, where `above` is that of its directory."""
        found = max(above, self.plain.get(path, _NO_RULE))
        for at, matches in self.others:
            if at < found:
                break
            if matches(path):
                return at
        return found


def _start(text: str) -> str:
    """The part of a `!` pattern before its first wildcard; an escape counts as one, to be safe."""
    return re.split(r"[*?\[\\]", text[1:], maxsplit=1)[0]


@functools.cache
def _always() -> tuple[_Rule, ...]:
    return tuple(rule for pattern in OUR_FILES if (rule := _rule(pattern.encode())) is not None)


def _rules(directory: str | Path, dockerfile: str, names: Collection[str]) -> tuple[_Rule, ...]:
    rules: list[_Rule] = []
    for name in (each.format(dockerfile) for each in IGNORE_FILES):
        if name not in names:
            continue
        try:
            content = read_bytes(f"{directory}/{name}")
        except OSError as error:
            raise ProjectError(
                f"cannot be read: {error.strerror}",
                where=f"{directory}/{name}",
                hint=advice(error, "correct its permissions"),
            ) from None
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            if line.startswith(b"#"):
                continue
            try:
                rule = _rule(line)
            except ProjectError as error:
                raise error.with_where(f"{directory}/{name}:{number}") from None
            if rule is not None:
                rules.append(rule)
        break
    return (*rules, *_always())


# Compiling a pattern takes longer than listing a small directory, and projects have many in common.
@functools.cache
def _rule(line: bytes) -> _Rule | None:
    """The rule that a line makes; None for one that is blank or means the context itself."""
    try:
        pattern = line.decode().strip()
    except UnicodeDecodeError:
        raise ProjectError("the pattern is not UTF-8", hint="save the file as UTF-8") from None
    again = pattern.startswith("!")
    if again:
        pattern = pattern[1:].strip()
        if not pattern:
            raise ProjectError("! stands alone", hint="write the pattern behind it")
    # A leading slash means the context, as none at all does; .. cannot leave it then.
    rooted = pattern.startswith("/")
    pattern = (
        posixpath.normpath("/" + pattern.lstrip("/")).lstrip("/")
        if rooted
        else posixpath.normpath(pattern or ".")
    )
    if pattern in ("", "."):
        return None
    text, regex = _translate(pattern)
    return _Rule(
        f"!{text}" if again else text,
        again,
        pattern,
        None if _WILD.isdisjoint(pattern) else re.compile(regex),
        # Only ** and a class match a slash without being one.
        None if "**" in pattern or "[" in pattern else pattern.count("/"),
    )


# These mean something to podman 4.3.1's patterns or to the regular expressions that it makes of them
# without escaping: a file named a+b is never matched by the pattern a+b there.
_SPECIAL = frozenset("\\*?[](){}+|^")
# What makes a pattern match other paths than itself.
_WILD = frozenset("\\*?[")


def _translate(pattern: str) -> tuple[str, str]:
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
            at, members = _class(pattern, at)
            text, regex = text + members, regex + members
        else:
            if character == "\\":
                character, at = _escaped(pattern, at), at + 1
            # A blank, ! or # in front would be read as something else than itself.
            leading = not text and (character in "!#" or character.isspace())
            text += f"\\{character}" if leading or character in _SPECIAL else character
            regex += re.escape(character)
    return text, regex


def _class(pattern: str, at: int) -> tuple[int, str]:
    """The character class whose [ stands before `at`, in a form that podman and `re` read alike."""
    negated = "^" if pattern.startswith("^", at) else ""
    at += len(negated)
    members = ""
    while not (members and pattern.startswith("]", at)):
        low, at = _member(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _member(pattern, at + 1)
        if high < low:
            raise _malformed(pattern, f"{low}-{high} runs backwards")
        members += _quoted(low) if low == high else f"{_quoted(low)}-{_quoted(high)}"
    return at + 1, f"[{negated}{members}]"


def _member(pattern: str, at: int) -> tuple[str, int]:
    character = pattern[at : at + 1]
    if character in ("", "-", "]"):
        raise _malformed(pattern, "a [ has no matching ] or nothing between")
    return (_escaped(pattern, at + 1), at + 2) if character == "\\" else (character, at + 1)


def _quoted(character: str) -> str:
    return f"\\{character}" if character.isascii() and not character.isalnum() else character


def _escaped(pattern: str, at: int) -> str:
    if at == len(pattern):
        raise _malformed(pattern, "it ends in a backslash")
    return pattern[at]


def _malformed(pattern: str, problem: str) -> ProjectError:
    return ProjectError(
        f"{pattern!r} is not a pattern: {problem}",
        hint="put a backslash before a character that means itself",
    )
