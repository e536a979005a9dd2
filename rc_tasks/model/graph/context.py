"""The build context: the files of a directory that a build can read.

Patterns are Docker's (`.dockerignore`). podman 4.3.1 reads some of them differently, so `ignore_text`
writes the ignore file in a form that all builders read alike.
"""

import functools
import hashlib
import marshal
import os
import posixpath
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import ProjectError
from rc_tasks.model.graph.project import DOCKERFILE, OUR_FILES, BuildContext, Project
from rc_tasks.util.safe_read import advice, read_bytes, unreadable

# podman uses only the first of these that exists. {} is the name of the Dockerfile.
IGNORE_FILES = ("{}.dockerignore", "{}.containerignore", ".containerignore", ".dockerignore")
# COPY drops set-user-ID and set-group-ID, and keeps the sticky bit.
COPIED_MODE = 0o1777
# In this version of marshal, equal values have equal bytes.
_MARSHAL = 2


class Listing(Struct, frozen=True):
    """The files that COPY could take from a directory: sorted relative `paths`, with slashes.

    `signature` changes whenever the result of lstat changes for one of them. `changed_ns` is the time of
    the last change, in nanoseconds by the clock of the file system.
    """

    paths: tuple[str, ...]
    signature: str
    changed_ns: int


def of_project(project: Project) -> Listing:
    """List the build context of a project. Raise ProjectError as `listing` does."""
    return listing(project.context, project.dockerfile_name, _rules_of(project))


def of_context(root: Path, context: BuildContext) -> Listing:
    """List a build context of a checkout. Raise ProjectError as `listing` does."""
    return listing(root / context.directory, rules=_rules_of_context(root, context))


def all_of_project(project: Project) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the directory of each build context of a project, without symlinks, and its paths.

    Raise ProjectError as `listing` does.
    """
    if project.recipe is None:
        yield Path(os.path.realpath(project.context)), of_project(project).paths
        return
    for build_context in project.recipe.contexts.values():
        yield project.root / build_context.directory, of_context(project.root, build_context).paths


def ignore_text_of(project: Project) -> str:
    """Return the ignore file of a project's build context. Raise ProjectError as `ignore_text` does."""
    return ignore_text(project.context, project.dockerfile_name, _rules_of(project))


def ignore_text(
    directory: str | Path, dockerfile: str = DOCKERFILE, rules: "Rules | None" = None
) -> str:
    """Return the complete ignore file for `podman build --ignorefile`, our own files last.

    Without `rules` the directory is that of a project, and holds its ignore file.
    Raise ProjectError for a pattern that Docker refuses.
    """
    if rules is None:
        rules = _rules(directory, dockerfile, {name for name, _ in _scan(directory, "")})
    return "".join(f"{rule.text}\n" for rule in rules)


def listing(
    directory: str | Path, dockerfile: str = DOCKERFILE, rules: "Rules | None" = None
) -> Listing:
    """List everything that COPY could take from the directory, without following symlinks.

    Without `rules` the directory is that of a project, and holds its ignore file.
    Raise ProjectError for a file that no image can hold and for a directory that cannot be read.
    """
    top = list(_scan(directory, ""))
    ignored = _ignored(rules or _rules(directory, dockerfile, {name for name, _ in top}))
    paths: list[str] = []
    signature = hashlib.sha256()
    changed_ns = 0
    pending = [("", _NO_RULE)]
    while pending:
        prefix, above = pending.pop()
        level = ignored.level(prefix)
        entries: list[tuple[str | int, ...]] = []
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
                # A directory's size and times also change with ignored files in it.
                entries.append((path, mode))
            elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                size, ctime_ns = status.st_size, status.st_ctime_ns
                entries.append((path, mode, size, status.st_mtime_ns, ctime_ns, status.st_ino))
                changed_ns = max(changed_ns, ctime_ns)
            else:
                raise ProjectError(
                    "this is a socket, a pipe or a device, which cannot be copied into an image",
                    where=f"{directory}/{path}",
                    hint="remove it, or name it in .dockerignore",
                )
        # The digest is updated for each directory, so that memory need not hold the entries of all
        # files.
        entries.sort()
        signature.update(marshal.dumps(entries, _MARSHAL))
        pending += sorted(below)
    paths.sort()
    return Listing(tuple(paths), signature.hexdigest(), changed_ns)


def copy(directory: Path, destination: Path, paths: Iterable[str]) -> None:
    """Copy these paths of a context to `destination`, an empty directory; they come from `listing`."""
    import shutil  # 2 ms

    directories = []
    for path in paths:
        source, target = directory / path, destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(source.lstat().st_mode):
            target.mkdir(exist_ok=True)
            directories.append((source, target))
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    for source, target in reversed(directories):
        shutil.copystat(source, target)
    # podman 5.4 runs a RUN that mounts the whole context again when only this time has changed.
    os.utime(destination, (0, 0))


def _scan(directory: str | Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the names in a directory, each with its lstat."""
    try:
        # With a descriptor, the kernel need not resolve the whole path for every file.
        descriptor = os.open(f"{directory}/{prefix}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(descriptor) as items:
                for item in items:
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        # The file was deleted after the listing, as temporary files of editors are.
                        continue
                    yield item.name, status
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if prefix:
            return
        raise ProjectError(
            "the directory does not exist", where=directory, hint="check its spelling"
        ) from None
    except OSError as error:
        raise ProjectError(
            f"cannot list the directory: {error.strerror}",
            where=os.path.join(directory, prefix),
            hint=advice(
                error, "podman has to read it too: correct its permissions, or name it in .dockerignore"
            ),
        ) from None


class _Rule(Struct, frozen=True):
    """One pattern: `text` is its form for podman; `again` is set for `!`, which includes files again.

    It matches the one path `plain`, or all paths that `regex` fully matches. Each of these has `slashes`
    slashes; None means any number.
    """

    text: str
    again: bool
    plain: str
    regex: re.Pattern[str] | None
    slashes: int | None


Rules = tuple[_Rule, ...]
# The index that stands for no rule.
_NO_RULE = -1


class _Ignored:
    """Decides by the last rule that matches a path or one of its parent directories.

    Rules are given by their indices. A directory's rule holds below it until a later one matches.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.out = frozenset(at for at, rule in enumerate(rules) if not rule.again)
        self.starts = [_start(rule.text) for rule in rules if rule.again]
        self.levels: dict[int, _Level | None] = {}

    def level(self, path: str) -> "_Level | None":
        """Return the rules that may match a path with this number of slashes, or None."""
        slashes = path.count("/")
        if slashes not in self.levels:
            rules = [(at, rule) for at, rule in enumerate(self.rules) if rule.slashes in (None, slashes)]
            self.levels[slashes] = _Level(rules) if rules else None
        return self.levels[slashes]

    def ignores(self, path: str) -> bool:
        """Return whether a single path is left out, without a listing."""
        rule, at = _NO_RULE, 0
        while at >= 0:
            at = path.find("/", at + 1)
            above = path if at < 0 else path[:at]
            level = self.level(above)
            rule = level.last(above, rule) if level is not None else rule
        return rule in self.out

    def may_contain(self, path: str) -> bool:
        """Return whether a `!` pattern could include something below an ignored directory.

        podman 4.3.1 descends only when the pattern begins with the directory's path. So with `!**/keep`,
        `COPY . /` does not take sub/keep. But `COPY sub/keep /` takes it, so it is part of the context.
        """
        return any(start.startswith(f"{path}/") or f"{path}/".startswith(start) for start in self.starts)


# Most projects have no rules of their own, so they share one object.
_ignored = functools.cache(_Ignored)


class _Level:
    """The rules that may match paths of one depth."""

    def __init__(self, rules: list[tuple[int, _Rule]]) -> None:
        self.plain = {rule.plain: at for at, rule in rules if rule.regex is None}
        self.others = [(at, rule.regex.fullmatch) for at, rule in rules[::-1] if rule.regex is not None]

    def last(self, path: str, above: int) -> int:
        """Return the last rule for a path; `above` is the rule of its directory."""
        last = max(above, self.plain.get(path, _NO_RULE))
        for at, matches in self.others:
            if at < last:
                break
            if matches(path):
                return at
        return last


def _start(text: str) -> str:
    """Return the part of a `!` pattern before its first wildcard; an escape counts as a wildcard."""
    return re.split(r"[*?\[\\]", text[1:], maxsplit=1)[0]


@functools.cache
def _compiled(patterns: tuple[str, ...]) -> Rules:
    return tuple(rule for pattern in patterns if (rule := _rule(pattern.encode())) is not None)


def _rules_of(project: Project) -> Rules | None:
    recipe = project.recipe
    return None if recipe is None else _rules_of_context(project.root, recipe.context)


def _rules_of_context(root: Path, context: BuildContext) -> Rules:
    written = _read_rules(f"{root}/{context.ignorefile}") if context.ignorefile else ()
    return (*_compiled(context.left_out), *written, *_compiled(context.generated))


def _rules(directory: str | Path, dockerfile: str, names: Collection[str]) -> Rules:
    candidates = (template.format(dockerfile) for template in IGNORE_FILES)
    name = next((name for name in candidates if name in names), None)
    written = _read_rules(f"{directory}/{name}") if name is not None else ()
    return (*written, *_compiled(OUR_FILES))


def _read_rules(path: str) -> Rules:
    try:
        content = read_bytes(path)
    except OSError as error:
        raise unreadable(ProjectError, error, path, "correct its permissions") from None
    rules = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.startswith(b"#"):
            continue
        try:
            rule = _rule(line)
        except ProjectError as error:
            raise error.with_where(f"{path}:{number}") from None
        if rule is not None:
            rules.append(rule)
    return tuple(rules)


# Compiling a pattern takes longer than listing a small directory, and projects share many patterns.
@functools.cache
def _rule(line: bytes) -> _Rule | None:
    """Parse a line into a rule; None for one that is blank or means the context itself."""
    try:
        pattern = line.decode().strip()
    except UnicodeDecodeError:
        raise ProjectError("the pattern is not UTF-8", hint="save the file as UTF-8") from None
    again = pattern.startswith("!")
    if again:
        pattern = pattern[1:].strip()
        if not pattern:
            raise ProjectError("! stands alone", hint="write the pattern behind it")
    # A pattern is relative to the context with and without a leading slash; with one, .. cannot leave
    # it.
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
        # Besides a slash itself, only ** and a class match a slash.
        None if "**" in pattern or "[" in pattern else pattern.count("/"),
    )


# These are special in podman 4.3.1's patterns, or in the regular expressions that it makes of them
# without escaping: its pattern a+b never matches a file named a+b.
_SPECIAL = frozenset("\\*?[](){}+|^")
# With these, a pattern can match other paths than itself.
_WILD = frozenset("\\*?[")


def _translate(pattern: str) -> tuple[str, str]:
    """Return a cleaned pattern in its form for podman, and as a regular expression for whole paths."""
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
            # An unescaped blank, ! or # at the start has a special meaning.
            leading = not text and (character in "!#" or character.isspace())
            text += f"\\{character}" if leading or character in _SPECIAL else character
            regex += re.escape(character)
    return text, regex


def _class(pattern: str, at: int) -> tuple[int, str]:
    """Return the character class after the [ before `at`, as a pattern for `re` that means the same."""
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
