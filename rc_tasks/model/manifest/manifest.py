"""Manifest of an image: its contents and origin, and their JSON (docs/reference/manifest.md)."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Struct, convert, field, to_builtins
from msgspec.structs import replace

from rc_tasks.util.file_mode import normalised
from rc_tasks.util.json_decode import Size, check_times, load, parse

# Increase this when a key changes its meaning or is removed, not when one is added.
SCHEMA = 1


class PackageKind(StrEnum):
    """The package manager of a package."""

    DPKG = "dpkg"
    APK = "apk"
    RPM = "rpm"
    CONDA = "conda"
    PYTHON = "python"


class Package(Struct, frozen=True):
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


class Unread(Struct, frozen=True):
    """A path in the image that could not be read, and why."""

    path: str
    why: str


class Distribution(Struct, frozen=True):
    """Values of the image's os-release (os-release(5)); empty where it has none."""

    id: str = ""
    version: str = ""
    title: str = ""


class Contents(Struct, frozen=True):
    """Packages and sizes in an image.

    `sizes_bytes` has the bytes of all regular files below each top directory, and under `/` those in the
    root itself. A file with several names counts once, where the walk meets it first.
    """

    distribution: Distribution
    packages: tuple[Package, ...]
    sizes_bytes: Mapping[str, Size]
    files: Size
    unread: tuple[Unread, ...] = ()


def _normalised(files: Mapping[str, str]) -> Mapping[str, str]:
    return {path: normalised(value) for path, value in files.items()}


class Origin(Struct, frozen=True):
    """The inputs of an image. Times are UTC, ISO 8601.

    `bases` maps a local base to its image ID, and a registry base to its digest there (`sha256:…`, empty
    when unknown). `files` maps the files of the context to their digests, as in image.json. `commit` is
    empty outside git.
    """

    dockerfile: str
    build_args: Mapping[str, str]
    target: str
    bases: Mapping[str, str]
    files: Annotated[Mapping[str, str], _normalised]
    built_at: str
    builder: str
    node: str
    commit: str = ""
    dirty: bool = False
    tools: Mapping[str, str] = field(default_factory=dict)


class Manifest(Struct, frozen=True):
    """A published image. `origin` is None when it was built by a version that kept no origins.

    `size_bytes` is that of image.sqsh, `image_size_bytes` that of the image as podman counts it.
    """

    name: str
    image_id: str
    architecture: str
    published_at: str
    size_bytes: Size
    image_size_bytes: Size
    contents: Contents
    origin: Origin | None = None

    def __post_init__(self) -> None:
        check_times(self.published_at)


def groups(packages: Iterable[Package]) -> dict[tuple[PackageKind, str], list[Package]]:
    """Group packages by kind and place, in the order of the kinds; sort each group by name."""
    grouped: dict[tuple[PackageKind, str], list[Package]] = {}
    order = {kind: number for number, kind in enumerate(PackageKind)}
    for package in sorted(packages, key=lambda item: (order[item.kind], item.place, _sorted(item))):
        grouped.setdefault((package.kind, package.place), []).append(package)
    return grouped


def document(value: Contents | Origin | Manifest) -> dict[str, Any]:
    """Return the JSON object of a value; empty fields of packages are left out."""
    json_object: dict[str, Any] = {"schema": SCHEMA, **to_builtins(value)}
    contents = json_object["contents"] if isinstance(value, Manifest) else json_object
    if "packages" in contents:
        contents["packages"] = [
            {key: text for key, text in package.items() if text} for package in contents["packages"]
        ]
    return json_object


def parse_manifest(text: bytes, origin: Origin | None = None) -> Manifest | None:
    """Parse a manifest from a file; None when it is damaged or of a later version."""
    manifest = parse(Manifest, text, SCHEMA)
    return replace(manifest, origin=origin) if manifest is not None else None


def parse_contents(text: bytes) -> Contents:
    """Parse contents from the JSON of `document`. Raise DecodeError."""
    return convert(load(text, SCHEMA), Contents)


def parse_origin(text: bytes) -> Origin | None:
    """Parse an origin from a file; None when it is damaged or of a later version."""
    return parse(Origin, text, SCHEMA)


def _sorted(package: Package) -> tuple[str, str, str]:
    return package.name.lower(), package.version, package.architecture
