"""Additional image store of containers/storage: images that podman may read, on layers mounted there.

    overlay-images/images.json, ID/…    images with their configurations and manifests (images.go)
    overlay-layers/layers.json          layers, each with its parent (layers.go)
    overlay/LAYER/{diff,link,lower}     where a layer is mounted, and short names of those below it
    overlay/l/NAME                      a symlink for each short name (drivers/overlay/overlay.go)

    overlay-layers/LAYER.tar-split.gz   podman's recipes of archives (`tar_split.py`)

podman finds it by the storage option `additionalimagestore`. Tried with podman 4.3.1 and 5.8. podman
can push layers that have a recipe; it builds on others too.
"""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

# Of each entry; nothing depends on it.
_CREATED = "1970-01-01T00:00:00Z"
_IMAGES = "overlay-images/images.json"
_LAYERS = "overlay-layers/layers.json"
# A short name keeps mount options short. containers/storage takes 26 characters for its own layers, so
# the names never meet.
_SHORT_LENGTH = 12


class StoredImage(Struct, frozen=True):
    """An image: its ID, its configuration and its manifest (bytes), and its diff IDs, lowest first."""

    id: str
    config: bytes
    manifest: bytes
    diff_ids: tuple[str, ...]


class ArchiveRecipe(Struct, frozen=True):
    """A layer's recipe (`tar_split.py`), and the size of the archive that it is for."""

    file: Path
    archive_bytes: int


def option(directory: Path) -> str:
    """Return the storage option with which podman reads a store."""
    return f"additionalimagestore={directory}"


def create(directory: Path) -> None:
    """Make an empty store."""
    (directory / "overlay" / "l").mkdir(parents=True, exist_ok=True)
    for path in (directory / _LAYERS, directory / _IMAGES):
        path.parent.mkdir(exist_ok=True)
        # podman takes these locks, and cannot make them in a store that it only reads.
        path.with_suffix(".lock").touch()
        _write(path, [])


def exists(directory: Path) -> bool:
    """Return whether there is a store."""
    return (directory / _IMAGES).exists()


def layer_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the IDs that podman gives to layers: each depends on those below it.

    Source: `commitLayer` in containers/image, storage/storage_dest.go.
    """
    ids: list[str] = []
    for diff_id in diff_ids:
        own = diff_id.removeprefix("sha256:")
        ids.append(hashlib.sha256(f"{ids[-1]}+{own}".encode()).hexdigest() if ids else own)
    return tuple(ids)


def mount_point(directory: Path, layer_id: str) -> Path:
    """Return where a layer has to be mounted."""
    return directory / "overlay" / layer_id / "diff"


def known_layers(directory: Path, diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the IDs of those layers that a store knows, mounted or not."""
    known = {entry["id"] for entry in _read(directory / _LAYERS)}
    return tuple(layer_id for layer_id in layer_ids(diff_ids) if layer_id in known)


def add_image(directory: Path, image: StoredImage, recipes: Mapping[str, ArchiveRecipe]) -> None:
    """Add an image with its layers, which have to be mounted before podman uses it.

    `recipes` are those of its layers that have one, by diff ID.
    """
    _add_layers(directory, image.diff_ids, recipes)
    digest = f"sha256:{hashlib.sha256(image.manifest).hexdigest()}"
    parts = {
        f"sha256:{image.id}": image.config,
        f"manifest-{digest}": image.manifest,
        "manifest": image.manifest,
    }
    place = directory / "overlay-images" / image.id
    place.mkdir(exist_ok=True)
    for name, content in parts.items():
        # containers/storage encodes names that are not plain words (makeBigDataBaseName).
        plain = name if name == "manifest" else f"={base64.b64encode(name.encode()).decode()}"
        (place / plain).write_bytes(content)
    entry = {
        "id": image.id,
        "digest": digest,
        "layer": layer_ids(image.diff_ids)[-1],
        "metadata": "{}",
        "big-data-names": list(parts),
        "big-data-sizes": {name: len(content) for name, content in parts.items()},
        "big-data-digests": {
            name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in parts.items()
        },
        "created": _CREATED,
    }
    _write(directory / _IMAGES, [*_read(directory / _IMAGES), entry])


def _add_layers(
    directory: Path, diff_ids: tuple[str, ...], recipes: Mapping[str, ArchiveRecipe]
) -> None:
    entries = _read(directory / _LAYERS)
    known = {entry["id"] for entry in entries}
    below: list[str] = []
    parent = ""
    for diff_id, layer_id in zip(diff_ids, layer_ids(diff_ids), strict=True):
        short = hashlib.sha256(layer_id.encode()).hexdigest()[:_SHORT_LENGTH].upper()
        if layer_id not in known:
            place = mount_point(directory, layer_id).parent
            place.mkdir(exist_ok=True)
            (place / "link").write_text(short)
            if below:
                (place / "lower").write_text(":".join(f"l/{name}" for name in reversed(below)))
            (directory / "overlay" / "l" / short).symlink_to(f"../{layer_id}/diff")
            entry: dict[str, str | int] = {
                "id": layer_id,
                "created": _CREATED,
                "compressed-diff-digest": diff_id,
                "diff-digest": diff_id,
            }
            if recipe := recipes.get(diff_id):
                entry |= {"compressed-size": recipe.archive_bytes, "diff-size": recipe.archive_bytes}
                link = directory / "overlay-layers" / f"{layer_id}.tar-split.gz"
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(recipe.file)
            entries.append({**entry, "parent": parent} if parent else entry)
        below.append(short)
        parent = layer_id
    _write(directory / _LAYERS, entries)


def link_layers(directory: Path, seen: Path, root: Path) -> None:
    """Lay the short names of a store's layers into podman's own storage, whose directory is `root`.

    Options of a mount are at most a page long, which about 45 absolute paths fill. podman before 4.7
    then changes to its own storage and takes relative names, also of layers that it has found in the
    store (`get` in overlay.go of containers/storage before 1.50). `seen` is where podman sees the store:
    the same path in each step, as all steps on a node share these links. They are relative: podman takes
    an absolute one for another layer than the parent (`getLowerDirs`), and then compares all files.
    """
    own = root / "overlay" / "l"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (directory / "overlay" / "l").iterdir():
        target = seen / "overlay" / name.readlink().relative_to("..")
        with contextlib.suppress(FileExistsError):
            (own / name.name).symlink_to(os.path.relpath(target, own))


def image_ids(directory: Path) -> tuple[str, ...]:
    """Return the IDs of a store's images."""
    return tuple(str(entry["id"]) for entry in _read(directory / _IMAGES))


def _read(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(path.read_bytes())
    return entries


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    # podman may be reading it, where several steps share a store.
    new = path.with_suffix(".new")
    new.write_text(json.dumps(entries))
    os.replace(new, path)
