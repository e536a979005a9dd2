"""Manifests of published images, by image ID.

.rc/manifests/NAME/IMAGE_ID.json           contents and time of publication, from the enroot step
.rc/manifests/NAME/IMAGE_ID.origin.json    inputs, from the podman step

Those of the last images that were published under a name are kept, for `doit diff`.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import DecodeError, Struct

from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.manifest.manifest import Manifest, Origin, document, parse_manifest, parse_origin
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import GENERATED, Checkout
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import sweep_temporaries, write_atomically
from rc_tasks.state.disk.renaming import merge_directories, replace_name
from rc_tasks.state.records.inputs import BASE, CONTEXT, is_whole, shown_files
from rc_tasks.state.records.records import Record, Step
from rc_tasks.util.json_decode import load
from rc_tasks.util.safe_read import read_bytes

_DIRECTORY = "manifests"
_SUFFIX, _ORIGIN = ".json", ".origin.json"
# Each takes some 100 kB.
_KEEP = 20


class Build(Struct, frozen=True):
    """An image that was published under a name; `present`: it is published now.

    `adopted_from` names the official checkout when only that has its manifest.
    """

    manifest: Manifest
    present: bool
    adopted_from: str = ""


def put_origin(checkout: Checkout, node: ImageNode, record: Record, dockerfile: str) -> None:
    """Write the origin of an image; `record` is of its podman step."""
    if record.facts is None:
        return
    origin = Origin(
        dockerfile=dockerfile,
        build_args=dict(node.options.build_args),
        target=node.options.target or "",
        bases=bases(node, record),
        files=_files_of_context(node, record),
        built_at=record.ended_at,
        builder=record.builder,
        node=record.node,
        commit=record.commit,
        dirty=record.dirty,
        tools=dict(record.tools),
    )
    path = _directory(checkout, node.project.name) / f"{record.facts.image_id}{_ORIGIN}"
    _write(path, {"name": node.project.name, "image_id": record.facts.image_id, **document(origin)})
    # Trim here too: a build may never be published.
    _trim(path.parent)


def _files_of_context(node: ImageNode, record: Record) -> dict[str, str]:
    if node.project.recipe is not None:
        # One value for all files: each of the versions that are kept would take megabytes.
        contexts = shown_files(node.project, filter(is_whole, record.inputs))
        return {f"{directory}/": record.inputs[part] for part, directory in contexts.items()}
    return {
        part.removeprefix(CONTEXT): value
        for part, value in record.inputs.items()
        if part.startswith(CONTEXT)
    }


def put(checkout: Checkout, manifest: Manifest) -> None:
    """Write the manifest of a published image, and remove the oldest ones of its name."""
    path = _directory(checkout, manifest.name) / f"{manifest.image_id}{_SUFFIX}"
    content = document(manifest)
    # The origin has its own file: each build writes it, even one that gives the same image.
    del content["origin"]
    _write(path, content)
    _trim(path.parent)


def bases(node: ImageNode, record: Record) -> dict[str, str]:
    """Return for each base of a built image its image ID or registry digest; empty when unknown."""
    local = {base: record.inputs.get(BASE + base, "") for base in node.bases}
    return local | {base: record.bases.get(base, "") for base in node.remote}


def present_id(checkout: Checkout, name: str) -> str:
    """Return the ID of the image that is published now, or an empty string."""
    with contextlib.suppress(OSError, DecodeError, KeyError):
        document = load(read_bytes(checkout.graph.images[name].project.image_json))
        if isinstance(image_id := document.get("image_id"), str):
            return image_id
    record = checkout.records.get(Step.ENROOT, name)
    return record.inputs.get("image", "") if record is not None else ""


def builds(checkout: Checkout, name: str) -> tuple[Build, ...]:
    """Return the builds of an image whose manifests are kept: the present one, then the newest first.

    In a clone, include those of the official checkout.
    """
    present = present_id(checkout, name)
    by_id = {
        manifest.image_id: Build(manifest, manifest.image_id == present)
        for manifest in _manifests(_files(_directory(checkout, name)), name)
    }
    official = official_of(checkout)
    if official is not None:
        for manifest in _manifests(official.files(f"{_DIRECTORY}/{name}"), name):
            theirs = Build(manifest, manifest.image_id == present, official.root)
            by_id.setdefault(manifest.image_id, theirs)
    newest = sorted(by_id.values(), key=lambda build: build.manifest.published_at, reverse=True)
    return tuple(sorted(newest, key=lambda build: not build.present))


def kept(checkout: Checkout, name: str) -> list[Path]:
    """Return this checkout's manifest files: that of the present image, then the newest first.

    Return none when the present image has none.
    """
    by_time = []
    directory = _directory(checkout, name)
    for file in reading.names(directory):
        if file.endswith(_SUFFIX) and not file.endswith(_ORIGIN):
            with contextlib.suppress(FileNotFoundError):
                by_time.append(((directory / file).stat().st_mtime, directory / file))
    present = present_id(checkout, name)
    newest = [path for _, path in sorted(by_time, reverse=True)]
    newest.sort(key=lambda path: path.stem != present)
    return newest if newest and newest[0].stem == present else []


def origin_of(manifest: Path) -> Origin | None:
    """Return the origin that belongs to the file of a manifest."""
    text = reading.content(manifest.parent / f"{manifest.stem}{_ORIGIN}")
    return parse_origin(text) if text is not None else None


def origin(checkout: Checkout, name: str, image_id: str) -> Origin | None:
    """Return the origin of a build of an image, or None when this checkout keeps none."""
    return origin_of(_directory(checkout, name) / f"{image_id}.json")


def rename(checkout: Checkout, old: str, new: str) -> None:
    """Give the manifests of an image to its new name; go on after a kill. Raise OSError."""
    directory = _directory(checkout, new)
    merge_directories(_directory(checkout, old), directory)
    for file in reading.names(directory):
        if file.endswith(_SUFFIX):
            replace_name(directory / file, new, indent=None)


def _manifests(files: dict[str, bytes], name: str) -> Iterator[Manifest]:
    for file, text in files.items():
        if file.endswith(_ORIGIN) or not file.endswith(_SUFFIX):
            continue
        image_id = file.removesuffix(_SUFFIX)
        origin = files.get(f"{image_id}{_ORIGIN}")
        manifest = parse_manifest(text, parse_origin(origin) if origin is not None else None)
        if manifest is not None and (manifest.name, manifest.image_id) == (name, image_id):
            yield manifest


def _files(directory: Path) -> dict[str, bytes]:
    texts = {name: reading.content(directory / name) for name in reading.names(directory)}
    return {name: text for name, text in texts.items() if text is not None}


def _directory(checkout: Checkout, name: str) -> Path:
    return checkout.root / GENERATED / _DIRECTORY / name


def _write(path: Path, value: dict[str, object]) -> None:
    sweep_temporaries(path.parent, path.name)
    write_atomically(path, json.dumps(value, separators=(",", ":")) + "\n")


def _trim(directory: Path) -> None:
    """Keep the newest manifests, and as many origins."""
    times: dict[str, list[tuple[float, Path]]] = {_SUFFIX: [], _ORIGIN: []}
    for path in directory.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            kind = _ORIGIN if path.name.endswith(_ORIGIN) else _SUFFIX
            times[kind].append((path.stat().st_mtime, path))
    kept = {path.name.partition(".")[0] for _, path in sorted(times[_SUFFIX])[-_KEEP:]}
    for dated in times.values():
        for _, path in sorted(dated)[:-_KEEP]:
            if dated is times[_SUFFIX] or path.name.partition(".")[0] not in kept:
                with contextlib.suppress(OSError):
                    os.unlink(path)
