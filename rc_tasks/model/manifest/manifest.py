"""The manifest: contents and origin of an image as values, and their JSON (docs/reference/manifest.md).

A file may be damaged or from another version, so the parsers check every type.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from rc_tasks.util.file_mode import normalised

# Increase this when a key changes its meaning or is removed, not when one is added.
SCHEMA = 1


class PackageKind(StrEnum):
    """The package manager of a package."""

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
    """A path in the image that could not be read, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values of the image's os-release (os-release(5)); empty where it has none."""

    id: str = ""
    version: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """Packages and sizes in an image.

    `sizes_bytes` has the bytes of all regular files below each top directory, and under `/` those in the
    root itself. A file with several names counts once, where the walk meets it first.
    """

    distribution: Distribution
    packages: tuple[Package, ...]
    sizes_bytes: Mapping[str, int]
    files: int
    unread: tuple[Unread, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """The inputs of an image. Times are UTC, ISO 8601.

    `bases` maps a local base to its image ID, and a registry base to its digest there (`sha256:…`, empty
    when unknown). `files` maps the files of the context to their digests, as in image.json. `commit` is
    empty outside git.
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
    """A published image. `origin` is None when it was built by a version that kept no origins.

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
    """Group packages by kind and place, in the order of the kinds; sort each group by name."""
    grouped: dict[tuple[PackageKind, str], list[Package]] = {}
    order = {kind: number for number, kind in enumerate(PackageKind)}
    for package in sorted(packages, key=lambda item: (order[item.kind], item.place, _sorted(item))):
        grouped.setdefault((package.kind, package.place), []).append(package)
    return grouped


def document(value: Contents | Origin | Manifest) -> dict[str, Any]:
    """Return the JSON object of a value; empty fields of packages are left out."""
    json_object: dict[str, Any] = {"schema": SCHEMA, **asdict(value)}
    contents = json_object["contents"] if isinstance(value, Manifest) else json_object
    if "packages" in contents:
        contents["packages"] = [
            {key: text for key, text in package.items() if text} for package in contents["packages"]
        ]
    return json_object


def parse_manifest(text: bytes, origin: Origin | None = None) -> Manifest | None:
    """Parse a manifest from a file; None when it is damaged or of a later version."""
    try:
        raw = _document(text)
        return Manifest(
            name=_text(raw, "name"),
            image_id=_text(raw, "image_id"),
            architecture=_text(raw, "architecture"),
            published_at=_time(raw, "published_at"),
            size_bytes=_number(raw, "size_bytes"),
            image_size_bytes=_number(raw, "image_size_bytes"),
            contents=_contents(raw["contents"]),
            origin=origin,
        )
    except _WRONG:
        return None


def parse_contents(text: bytes) -> Contents:
    """Parse contents from the JSON of `document`. Raise ValueError, KeyError or TypeError."""
    return _contents(_document(text))


def parse_origin(text: bytes) -> Origin | None:
    """Parse an origin from a file; None when it is damaged or of a later version."""
    try:
        raw = _document(text)
        return Origin(
            dockerfile=_text(raw, "dockerfile"),
            build_args=_texts(raw["build_args"]),
            target=_text(raw, "target"),
            bases=_texts(raw["bases"]),
            files={path: normalised(value) for path, value in _texts(raw["files"]).items()},
            built_at=_text(raw, "built_at"),
            builder=_text(raw, "builder"),
            node=_text(raw, "node"),
            commit=_text(raw, "commit"),
            dirty=bool(raw["dirty"]),
            tools=_texts(raw["tools"]),
        )
    except _WRONG:
        return None


# JSON may hold more than a manifest can, such as endless nesting or an infinite number.
_WRONG = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
_PACKAGE = tuple(key.name for key in fields(Package) if key.name != "kind")


def _document(text: bytes) -> dict[str, Any]:
    raw = json.loads(text)
    if raw["schema"] != SCHEMA:
        raise ValueError(raw["schema"])
    return dict(raw)


def _contents(raw: dict[str, Any]) -> Contents:
    distribution = raw["distribution"]
    return Contents(
        Distribution(*(_text(distribution, item.name) for item in fields(Distribution))),
        tuple(
            Package(
                PackageKind(item["kind"]), **{key: _text(item, key) for key in _PACKAGE if key in item}
            )
            for item in raw["packages"]
        ),
        {str(path): _number(raw["sizes_bytes"], path) for path in raw["sizes_bytes"]},
        _number(raw, "files"),
        tuple(Unread(_text(item, "path"), _text(item, "why")) for item in raw["unread"]),
    )


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw[key]
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def _time(raw: dict[str, Any], key: str) -> str:
    value = _text(raw, key)
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(value)
    return value


def _number(raw: dict[str, Any], key: str) -> int:
    value = raw[key]
    if not isinstance(value, int) or value < 0:
        raise TypeError(key)
    return value


def _texts(raw: dict[str, Any]) -> dict[str, str]:
    return {key: _text(raw, key) for key in raw}


def _sorted(package: Package) -> tuple[str, str, str]:
    return package.name.lower(), package.version, package.architecture
