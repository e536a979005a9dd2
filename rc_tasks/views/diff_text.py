"""Text for the differences between two builds."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rc_tasks.model.manifest.diff import Changes, PackageChange, PackageChangeKind, Values
from rc_tasks.model.manifest.manifest import Manifest, PackageKind
from rc_tasks.views import tables

_SHORT_ID = 12


_MOST_FILES = 10


def lines(changes: Changes) -> Iterator[str]:
    """Yield the differences for people; lines of the Dockerfile's diff are indented by two blanks."""
    old, new = changes.old, changes.new
    yield f"{new.name}: {between(changes)}"
    if old.image_id == new.image_id:
        yield "it is the same image"
        return
    yield from differences(changes)


def between(changes: Changes) -> str:
    """Return a text that names the two builds."""
    return f"{_build(changes.old)} → {_build(changes.new)}"


def differences(changes: Changes, most: int | None = None) -> Iterator[str]:
    """Yield the differences, with at most `most` packages and lines of the Dockerfile."""
    old, new = changes.old, changes.new
    recipe = list(_recipe(changes, most))
    if not changes.from_origins:
        yield "recipe      not known: one of them was built before Dockerfiles were kept"
    elif not recipe:
        yield "recipe      as before"
    yield from recipe
    yield f"size        image.sqsh {_sizes(old.size_bytes, new.size_bytes)}"
    # podman counts an image differently than the sum of its files, which the line below compares.
    before, after = (sum(manifest.contents.sizes_bytes.values()) for manifest in (old, new))
    yield f"            unpacked {_sizes(before, after)}"
    grown = [f"{path} {size_change(size)}" for path, size in changes.directories_bytes.items()]
    if grown:
        yield f"            {', '.join(grown[:5])}{', …' if len(grown) > 5 else ''}"
    counts = Counter(change.how for change in changes.packages)
    summary = ", ".join(f"{counts[how]} {how}" for how in PackageChangeKind if counts[how])
    yield f"packages    {summary or 'the same'}"
    yield from _packages(changes.packages, most)


def _recipe(changes: Changes, most: int | None) -> Iterator[str]:
    for base, values in changes.bases.items():
        yield f"base        {base}: {_values(values, 'no base')}"
    if changes.target is not None:
        yield f"target      {_values(changes.target, 'the last stage')}"
    for key, values in changes.build_args.items():
        yield f"build arg   {key}: {_values(values, 'unset')}"
    files = [f"{path} {how}" for path, how in changes.files.items()]
    for number, text in enumerate(files[:_MOST_FILES]):
        yield f"{'context' if number == 0 else '':12}{text}"
    if len(files) > _MOST_FILES:
        yield f"{'':12}and {len(files) - _MOST_FILES} more files"
    if changes.dockerfile:
        yield "Dockerfile"
        for line in changes.dockerfile[:most]:
            yield f"  {line}"
        yield from _more(changes.dockerfile, most)


def _packages(changes: tuple[PackageChange, ...], most: int | None) -> Iterator[str]:
    by_place: dict[tuple[PackageKind, str], list[PackageChange]] = {}
    for change in changes:
        by_place.setdefault((change.package.kind, change.package.place), []).append(change)
    room = max(1, most // max(1, len(by_place))) if most is not None else None
    for (kind, place), changes_there in list(by_place.items())[:most]:
        yield ""
        yield f"{kind}{'' if place == '/' else f' in {place}'}"
        kinds = list(PackageChangeKind)
        first = sorted(changes_there, key=lambda change: kinds.index(change.how))[:room]
        width = max(len(change.package.name) for change in first)
        for change in first:
            yield f"  {change.how:10}  {change.package.name.ljust(width)}  {_versions(change)}"
        yield from _more(changes_there, room)
    yield from _more(list(by_place), most, " places")


def _more(items: Sequence[object], most: int | None, what: str = "") -> Iterator[str]:
    if most is not None and len(items) > most:
        yield f"  … and {len(items) - most} more{what}"


def _versions(change: PackageChange) -> str:
    old, new = change.old, change.new
    if old is None or new is None:
        return change.package.version
    if old.version != new.version:
        return f"{old.version} → {new.version}"
    keys = ("architecture", "build", "channel")
    more = [Values(getattr(old, key), getattr(new, key)) for key in keys]
    differing = ", ".join(_values(values, "nothing") for values in more if values.old != values.new)
    return f"{new.version} ({differing})"


def _build(manifest: Manifest) -> str:
    return f"{manifest.image_id[:_SHORT_ID]} of {tables.when(manifest.published_at)}"


def _values(values: Values, nothing: str) -> str:
    return f"{_short(values.old) or nothing} → {_short(values.new) or nothing}"


def _short(value: str) -> str:
    digest = value.removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{64}", digest):
        return value[: len(value) - len(digest) + _SHORT_ID]
    return value


def _sizes(old: int, new: int) -> str:
    if old == new:
        return f"{tables.size(new)}, as before"
    return f"{tables.size(old)} → {tables.size(new)} ({size_change(new - old)})"


def size_change(size_bytes: int) -> str:
    return f"{'+' if size_bytes >= 0 else '-'}{tables.size(abs(size_bytes))}"
