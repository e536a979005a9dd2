"""What is different between two builds of an image: values, to be shown in any form."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest

from rc_tasks.model.manifest.manifest import Manifest, Origin, Package, PackageKind
from rc_tasks.model.manifest.versions import compare


class How(StrEnum):
    """What happened to a package; `rebuilt` has the same version, and another build of it."""

    UPGRADED = "upgraded"
    DOWNGRADED = "downgraded"
    REBUILT = "rebuilt"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class PackageChange:
    """A package that is not as it was; `old` or `new` is None where it is not there."""

    how: How
    old: Package | None
    new: Package | None

    @property
    def package(self) -> Package:
        """The package as it is, or was."""
        found = self.new or self.old
        assert found is not None  # noqa: S101 - one of them is there
        return found


@dataclass(frozen=True, slots=True)
class Values:
    """A value of both builds; empty where there is none."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Two builds compared.

    `bases` and `build_args` hold those that differ, `files` what happened to files of the context.
    `dockerfile` is a unified diff without its head, line by line. `from_origins`: what both were made
    from is known; else these are empty.
    `directories_bytes` has the growth of each directory of the root that differs.
    """

    old: Manifest
    new: Manifest
    packages: tuple[PackageChange, ...]
    bases: Mapping[str, Values]
    build_args: Mapping[str, Values]
    target: Values | None
    files: Mapping[str, str]
    dockerfile: tuple[str, ...]
    directories_bytes: Mapping[str, int]
    from_origins: bool


def compared(old: Manifest, new: Manifest) -> Changes:
    """What is different in `new`."""
    before, after = old.origin, new.origin
    known = before is not None and after is not None
    return Changes(
        old=old,
        new=new,
        packages=tuple(package_changes(old.contents.packages, new.contents.packages)),
        bases=_differing(before.bases, after.bases) if before and after else {},
        build_args=_differing(before.build_args, after.build_args) if before and after else {},
        target=_target(before, after),
        files=_files(before.files, after.files) if before and after else {},
        dockerfile=_lines(before, after),
        directories_bytes=_growth(old.contents.sizes_bytes, new.contents.sizes_bytes),
        from_origins=known,
    )


def package_changes(old: Iterable[Package], new: Iterable[Package]) -> list[PackageChange]:
    """The packages that differ, by kind, place and name."""
    before, after = _by_key(old), _by_key(new)
    found = []
    for key in sorted({*before, *after}):
        gone, come = _without_same(before.get(key, []), after.get(key, []))
        # Several versions side by side, such as two architectures: those of one pair up.
        pairs = zip_longest(gone, come) if len(gone) == len(come) == 1 else _by_architecture(gone, come)
        for was, now in pairs:
            found.append(PackageChange(_how(was, now), was, now))
    return found


def canonical(package: Package) -> str:
    """A package's name as its kind compares it: PyPI's Foo.Bar is foo-bar."""
    if package.kind is PackageKind.PYTHON:
        return re.sub(r"[-_.]+", "-", package.name).lower()
    return package.name


def _by_key(packages: Iterable[Package]) -> dict[tuple[int, str, str], list[Package]]:
    order = {kind: number for number, kind in enumerate(PackageKind)}
    found: dict[tuple[int, str, str], list[Package]] = {}
    for package in packages:
        found.setdefault((order[package.kind], package.place, canonical(package)), []).append(package)
    return found


def _without_same(old: list[Package], new: list[Package]) -> tuple[list[Package], list[Package]]:
    """Those on either side that have no equal on the other; how a name is spelt does not count."""
    builds = [_build(each) for each in old], [_build(each) for each in new]
    if builds[0] == builds[1]:
        return [], []
    # Nearly all: counting takes ten times as long.
    if len(old) <= 1 and len(new) <= 1:
        return old, new
    ours, theirs = map(Counter, builds)
    gone, come = ours - theirs, theirs - ours
    return list(_taken(old, gone)), list(_taken(new, come))


def _taken(packages: list[Package], counts: Counter[tuple[str, ...]]) -> Iterator[Package]:
    for package in packages:
        if counts[_build(package)] > 0:
            counts[_build(package)] -= 1
            yield package


def _build(package: Package) -> tuple[str, ...]:
    return package.version, package.architecture, package.build, package.channel


def _by_architecture(
    gone: list[Package], come: list[Package]
) -> Iterator[tuple[Package | None, Package | None]]:
    for architecture in dict.fromkeys(each.architecture for each in (*gone, *come)):
        yield from zip_longest(
            (each for each in gone if each.architecture == architecture),
            (each for each in come if each.architecture == architecture),
        )


def _how(old: Package | None, new: Package | None) -> How:
    if old is None or new is None:
        return How.ADDED if old is None else How.REMOVED
    newer = compare(new.kind, old.version, new.version)
    if newer == 0:
        return How.REBUILT
    return How.UPGRADED if newer > 0 else How.DOWNGRADED


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, Values]:
    keys = dict.fromkeys((*old, *new))
    return {
        key: Values(old.get(key, ""), new.get(key, "")) for key in keys if old.get(key) != new.get(key)
    }


def _files(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    words = {True: "changed", False: "added"}
    return {
        path: words[path in old] if path in new else "removed"
        for path in sorted({**old, **new})
        if old.get(path) != new.get(path)
    }


def _target(old: Origin | None, new: Origin | None) -> Values | None:
    if old is None or new is None or old.target == new.target:
        return None
    return Values(old.target, new.target)


def _lines(old: Origin | None, new: Origin | None) -> tuple[str, ...]:
    if old is None or new is None:
        return ()
    lines = difflib.unified_diff(old.dockerfile.splitlines(), new.dockerfile.splitlines(), lineterm="")
    # The first two name files.
    return tuple(lines)[2:]


def _growth(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    grown = {path: new.get(path, 0) - old.get(path, 0) for path in {**old, **new}}
    return {
        path: size for path, size in sorted(grown.items(), key=lambda each: -abs(each[1])) if size != 0
    }
