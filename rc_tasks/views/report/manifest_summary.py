"""What is inside a published image and what its last rebuild changed, in short: for hundreds of images.

A manifest has a thousand packages and differs from the one before in a few: the others are only counted.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rc_tasks.model.manifest.diff import Changes, compared
from rc_tasks.model.manifest.manifest import Manifest, PackageKind, parse_manifest
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.published import manifests
from rc_tasks.util.text import local_time

# The file may be damaged, and JSON holds more than a manifest.
_WRONG = (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)

# The items of a package's JSON.
_Package = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Inside:
    """The summary of a manifest: packages of each kind, and the top directories, the largest first.

    `changes` says what is different from the build before; the manifests in it lack the packages that
    both have. None: no such build is kept.
    """

    distribution: str
    packages: Mapping[PackageKind, int]
    sizes_bytes: tuple[tuple[str, int], ...]
    changes: Changes | None = None


def inside(checkout: Checkout, name: str, instead_of: str = "") -> Inside | None:
    """What is in the published image; None when this checkout keeps no manifest of it.

    It is compared with the image ID that it was put in place of, otherwise with the newest other.
    """
    paths = manifests.kept(checkout, name)
    if not paths or (new := _Read.of(paths[0])) is None:
        return None
    others = sorted(paths[1:], key=lambda path: path.stem != instead_of)
    old = next((found for path in others if (found := _Read.of(path))), None)
    after = new.manifest(name, old.packages if old is not None else Counter())
    before = old.manifest(name, new.packages) if old is not None else None
    if after is None:
        return None
    return Inside(
        after.contents.distribution.title,
        new.kinds(),
        tuple(sorted(after.contents.sizes_bytes.items(), key=lambda each: -each[1])),
        compared(before, after) if before is not None else None,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A manifest as its JSON: to make packages of all of it would take longest."""

    path: Path
    found: dict[str, Any]
    packages: Counter[_Package]

    @classmethod
    def of(cls, path: Path) -> "_Read | None":
        """None when the file is damaged."""
        try:
            # Objects as their items, which can be counted as they are.
            found = dict(json.loads(path.read_bytes(), object_pairs_hook=tuple))
            contents = dict(found.pop("contents"))
            packages: Counter[_Package] = Counter(contents.pop("packages"))
            found["contents"] = tuple(contents.items())
            return cls(path, _plain(tuple(found.items())), packages)
        except _WRONG:
            return None

    def kinds(self) -> dict[PackageKind, int]:
        """How many packages there are of each kind."""
        counts = Counter(
            value for each in self.packages.elements() for key, value in each if key == "kind"
        )
        return {kind: counts[kind] for kind in PackageKind if counts[kind]}

    def manifest(self, name: str, same: Counter[_Package]) -> Manifest | None:
        """The manifest without the packages that are as often in `same`."""
        differing = {each: count for each, count in self.packages.items() if same[each] != count}
        try:
            packages = [dict(each) for each in Counter(differing).elements()]
            contents = {**self.found["contents"], "packages": packages}
            text = json.dumps({**self.found, "contents": contents}).encode()
            manifest = parse_manifest(text, manifests.origin_of(self.path))
            if manifest is None or (manifest.name, manifest.image_id) != (name, self.path.stem):
                return None
            # A time that nobody can read is a damage, too.
            local_time(manifest.published_at)
        except _WRONG:
            return None
        return manifest


def _plain(value: Any) -> Any:
    """JSON's objects as dictionaries again."""
    if isinstance(value, tuple):
        return {key: _plain(each) for key, each in value}
    return [_plain(each) for each in value] if isinstance(value, list) else value
