"""Summaries of manifests and of the last rebuild's changes, fast enough for hundreds of images.

A manifest has a thousand packages, of which a rebuild changes a few; the others are only counted.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from rc_tasks.model.manifest.diff import Changes, compared
from rc_tasks.model.manifest.manifest import Manifest, PackageKind, parse_manifest
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.published import manifests
from rc_tasks.util.text import local_time

# The file may be damaged, and JSON can hold more than a manifest.
_WRONG = (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)

# A package's JSON object as its items.
_Package = tuple[tuple[str, Any], ...]


class ManifestSummary(Struct, frozen=True):
    """The summary of a manifest: packages of each kind, and the top directories, the largest first.

    `changes` compares with the previous build, or is None when that is not kept. The manifests in it
    lack the packages that both builds have.
    """

    distribution: str
    packages: Mapping[PackageKind, int]
    sizes_bytes: tuple[tuple[str, int], ...]
    changes: Changes | None = None


def manifest_summary(checkout: Checkout, name: str, instead_of: str = "") -> ManifestSummary | None:
    """Return the summary of the published image; None when this checkout keeps no manifest of it.

    The image is compared with `instead_of`, the image ID that it replaced in a rollback, else with the
    newest other one.
    """
    paths = manifests.kept(checkout, name)
    if not paths or (new := _RawManifest.of(paths[0])) is None:
        return None
    others = sorted(paths[1:], key=lambda path: path.stem != instead_of)
    old = next((manifest for path in others if (manifest := _RawManifest.of(path))), None)
    after = new.manifest(name, old.packages if old is not None else Counter())
    before = old.manifest(name, new.packages) if old is not None else None
    if after is None:
        return None
    return ManifestSummary(
        after.contents.distribution.title,
        new.kinds(),
        tuple(sorted(after.contents.sizes_bytes.items(), key=lambda entry: -entry[1])),
        compared(before, after) if before is not None else None,
    )


class _RawManifest(Struct, frozen=True):
    """A manifest as JSON, as parsing all packages would take most of the time."""

    path: Path
    raw: dict[str, Any]
    packages: Counter[_Package]

    @classmethod
    def of(cls, path: Path) -> "_RawManifest | None":
        """Read a manifest; None when the file is damaged."""
        try:
            # With tuple, objects are read as their items, which a Counter can count.
            raw = dict(json.loads(path.read_bytes(), object_pairs_hook=tuple))
            contents = dict(raw.pop("contents"))
            packages: Counter[_Package] = Counter(contents.pop("packages"))
            raw["contents"] = tuple(contents.items())
            return cls(path, _plain(tuple(raw.items())), packages)
        except _WRONG:
            return None

    def kinds(self) -> dict[PackageKind, int]:
        """Return the number of packages of each kind."""
        counts = Counter(
            value for package in self.packages.elements() for key, value in package if key == "kind"
        )
        return {kind: counts[kind] for kind in PackageKind if counts[kind]}

    def manifest(self, name: str, same: Counter[_Package]) -> Manifest | None:
        """Return the manifest without packages that `same` holds equally often; None when damaged."""
        differing = {
            package: count for package, count in self.packages.items() if same[package] != count
        }
        try:
            packages = [dict(package) for package in Counter(differing).elements()]
            contents = {**self.raw["contents"], "packages": packages}
            text = json.dumps({**self.raw, "contents": contents}).encode()
            manifest = parse_manifest(text, manifests.origin_of(self.path))
            if manifest is None or (manifest.name, manifest.image_id) != (name, self.path.stem):
                return None
            # A time that cannot be parsed is damage too.
            local_time(manifest.published_at)
        except _WRONG:
            return None
        return manifest


def _plain(value: Any) -> Any:
    """Turn items back into dictionaries."""
    if isinstance(value, tuple):
        return {key: _plain(item) for key, item in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value
