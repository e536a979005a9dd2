"""Compare two builds of an image: packages, sizes, bases, build arguments, Dockerfile."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import zip_longest

from msgspec import Struct

from rc_tasks.model.manifest.manifest import Manifest, Origin, Package, PackageKind
from rc_tasks.model.manifest.versions import compare


class PackageChangeKind(StrEnum):
    """How a package changed; `rebuilt` is another build of the same version."""

    UPGRADED = "upgraded"
    DOWNGRADED = "downgraded"
    REBUILT = "rebuilt"
    ADDED = "added"
    REMOVED = "removed"


class PackageChange(Struct, frozen=True):
    """A changed package; `old` is None when it was added, `new` when it was removed."""

    how: PackageChangeKind
    old: Package | None
    new: Package | None

    @property
    def package(self) -> Package:
        """The new package, or the old one if it was removed."""
        package = self.new or self.old
        assert package is not None  # noqa: S101 - one of them is there
        return package


class Values(Struct, frozen=True):
    """A value in both builds; empty in a build without it."""

    old: str
    new: str


class Changes(Struct, frozen=True):
    """Two builds compared.

    `bases` and `build_args` hold those that differ; `files` maps changed files of the context to the
    kind of change. `dockerfile` has the lines of a unified diff without its header. All of these are
    empty unless `from_origins`: the origins of both builds are known. `directories_bytes` has the growth
    of each top directory whose size differs.
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
    """Compare two builds."""
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
    """Return the packages that differ, by kind, place and name."""
    before, after = _by_key(old), _by_key(new)
    changes = []
    for key in sorted({*before, *after}):
        gone, come = _without_same(before.get(key, []), after.get(key, []))
        # Several versions of a package, such as two architectures, are paired by architecture.
        pairs = zip_longest(gone, come) if len(gone) == len(come) == 1 else _by_architecture(gone, come)
        for was, now in pairs:
            changes.append(PackageChange(_how(was, now), was, now))
    return changes


def canonical(package: Package) -> str:
    """Return a package's name in its kind's normal form: PyPI's Foo.Bar is foo-bar."""
    if package.kind is PackageKind.PYTHON:
        return re.sub(r"[-_.]+", "-", package.name).lower()
    return package.name


def _by_key(packages: Iterable[Package]) -> dict[tuple[int, str, str], list[Package]]:
    order = {kind: number for number, kind in enumerate(PackageKind)}
    packages_of: dict[tuple[int, str, str], list[Package]] = {}
    for package in packages:
        packages_of.setdefault((order[package.kind], package.place, canonical(package)), []).append(
            package
        )
    return packages_of


def _without_same(old: list[Package], new: list[Package]) -> tuple[list[Package], list[Package]]:
    """Return the packages without an equal on the other side; the spelling of names does not count."""
    builds = [_build(package) for package in old], [_build(package) for package in new]
    if builds[0] == builds[1]:
        return [], []
    # Nearly all packages take this path, which is ten times as fast as counting.
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
    for architecture in dict.fromkeys(package.architecture for package in (*gone, *come)):
        yield from zip_longest(
            (package for package in gone if package.architecture == architecture),
            (package for package in come if package.architecture == architecture),
        )


def _how(old: Package | None, new: Package | None) -> PackageChangeKind:
    if old is None or new is None:
        return PackageChangeKind.ADDED if old is None else PackageChangeKind.REMOVED
    newer = compare(new.kind, old.version, new.version)
    if newer == 0:
        return PackageChangeKind.REBUILT
    return PackageChangeKind.UPGRADED if newer > 0 else PackageChangeKind.DOWNGRADED


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
    # The first two lines hold file names.
    return tuple(lines)[2:]


def _growth(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    grown = {path: new.get(path, 0) - old.get(path, 0) for path in {**old, **new}}
    return {
        path: size for path, size in sorted(grown.items(), key=lambda entry: -abs(entry[1])) if size != 0
    }
