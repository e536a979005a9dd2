"""What is inside an image and from what it was made: values and JSON (docs/reference/manifest.md).

What is read may be another version's, or damaged: `parse` believes nothing about types.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from rc_tasks.util.file_mode import normalised

# Raised when a key changes its meaning or goes, not when one is added.
SCHEMA = 1


class PackageKind(StrEnum):
    """What keeps account of a package."""

    DPKG = "dpkg"
    APK = "apk"
    RPM = "rpm"
    CONDA = "conda"
    PYTHON = "python"


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package.

    `place` is a path in the image: the root of the system for dpkg, apk and rpm, the environment for
    conda, the directory with the metadata for Python. `build` and `channel` are conda's.
    """

    kind: PackageKind
    name: str
    version: str
    place: str = "/"
    architecture: str = ""
    build: str = ""
    channel: str = ""


@dataclass(frozen=True, slots=True)
class Unread:
    """Something in the image that could not be read, and why; `path` is the one in the image."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """What the image's os-release says (os-release(5)); empty where there is none."""

    id: str = ""
    version: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found in an image.

    `sizes_bytes` has the bytes of all regular files below each directory of the root, and under `/`
    those in the root itself; a file with several names counts once, where it was met first.
    """

    distribution: Distribution
    packages: tuple[Package, ...]
    sizes_bytes: Mapping[str, int]
    files: int
    unread: tuple[Unread, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """What an image was made from. Times are UTC, ISO 8601.

    `bases` has for each base its image ID, for one of a registry its digest there (`sha256:…`, empty
    when it is not known). `files` has the files of the context with their digests, as in image.json.
    `commit` is empty outside git.
    """

    dockerfile: str
    build_args: Mapping[str, str]
    target: str
    bases: Mapping[str, str]
    files: Mapping[str, str]
    built_at: str
    builder: str
    node: str
    commit: str = ""
    dirty: bool = False
    tools: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A published image. `origin` is None when it was built before that was kept.

    `size_bytes` is that of image.sqsh, `image_size_bytes` that of the image as podman counts it.
    """

    name: str
    image_id: str
    architecture: str
    published_at: str
    size_bytes: int
    image_size_bytes: int
    contents: Contents
    origin: Origin | None = None


def groups(packages: Iterable[Package]) -> dict[tuple[PackageKind, str], list[Package]]:
    """Packages by kind and place, in the order of the kinds, each sorted by name."""
    found: dict[tuple[PackageKind, str], list[Package]] = {}
    order = {kind: number for number, kind in enumerate(PackageKind)}
    for package in sorted(packages, key=lambda each: (order[each.kind], each.place, _sorted(each))):
        found.setdefault((package.kind, package.place), []).append(package)
    return found


def document(value: Contents | Origin | Manifest) -> dict[str, Any]:
    """The JSON object of a value; empty fields of packages are left out."""
    found: dict[str, Any] = {"schema": SCHEMA, **asdict(value)}
    contents = found["contents"] if isinstance(value, Manifest) else found
    if "packages" in contents:
        contents["packages"] = [
            {key: text for key, text in package.items() if text} for package in contents["packages"]
        ]
    return found


def parse_manifest(text: bytes, origin: Origin | None = None) -> Manifest | None:
    """The manifest in a file without its origin; None when it is damaged or of a later version."""
    try:
        found = _document(text)
        return Manifest(
            name=_text(found, "name"),
            image_id=_text(found, "image_id"),
            architecture=_text(found, "architecture"),
            published_at=_time(found, "published_at"),
            size_bytes=_number(found, "size_bytes"),
            image_size_bytes=_number(found, "image_size_bytes"),
            contents=_contents(found["contents"]),
            origin=origin,
        )
    except _WRONG:
        return None


def parse_contents(text: bytes) -> Contents:
    """The contents alone, as `document` gives them; raises ValueError, KeyError or TypeError."""
    return _contents(_document(text))


def parse_origin(text: bytes) -> Origin | None:
    """The origin in a file; None when it is damaged or of a later version."""
    try:
        found = _document(text)
        return Origin(
            dockerfile=_text(found, "dockerfile"),
            build_args=_texts(found["build_args"]),
            target=_text(found, "target"),
            bases=_texts(found["bases"]),
            files={path: normalised(value) for path, value in _texts(found["files"]).items()},
            built_at=_text(found, "built_at"),
            builder=_text(found, "builder"),
            node=_text(found, "node"),
            commit=_text(found, "commit"),
            dirty=bool(found["dirty"]),
            tools=_texts(found["tools"]),
        )
    except _WRONG:
        return None


# An endless nesting, a number without end: JSON holds more than a manifest.
_WRONG = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
_PACKAGE = tuple(each.name for each in fields(Package) if each.name != "kind")


def _document(text: bytes) -> dict[str, Any]:
    found = json.loads(text)
    if found["schema"] != SCHEMA:
        raise ValueError(found["schema"])
    return dict(found)


def _contents(found: dict[str, Any]) -> Contents:
    distribution = found["distribution"]
    return Contents(
        Distribution(*(_text(distribution, each.name) for each in fields(Distribution))),
        tuple(
            Package(
                PackageKind(each["kind"]), **{key: _text(each, key) for key in _PACKAGE if key in each}
            )
            for each in found["packages"]
        ),
        {str(path): _number(found["sizes_bytes"], path) for path in found["sizes_bytes"]},
        _number(found, "files"),
        tuple(Unread(_text(each, "path"), _text(each, "why")) for each in found["unread"]),
    )


def _text(found: dict[str, Any], key: str) -> str:
    value = found[key]
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def _time(found: dict[str, Any], key: str) -> str:
    value = _text(found, key)
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(value)
    return value


def _number(found: dict[str, Any], key: str) -> int:
    value = found[key]
    if not isinstance(value, int) or value < 0:
        raise TypeError(key)
    return value


def _texts(found: dict[str, Any]) -> dict[str, str]:
    return {key: _text(found, key) for key in found}


def _sorted(package: Package) -> tuple[str, str, str]:
    return package.name.lower(), package.version, package.architecture
