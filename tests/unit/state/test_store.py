"""The store on a node that cannot read it: nothing that others can read is removed."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rc_tasks.errors import ArtifactError
from rc_tasks.state.store.loading import load_images
from rc_tasks.state.store.store import Store
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman

LAYER = b"a layer"
CONFIG = b"a configuration"
IMAGE = hashlib.sha256(CONFIG).hexdigest()


class Empty(Podman):
    """A podman that has no image, and can bring none."""

    def lacking(self, image_ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(image_ids)

    def pull_directories(self, directories: Iterable[Path]) -> Command:
        return Command(("false",))


class Taking(Empty):
    """A podman beside which somebody takes a part of the store away."""

    def pull_directories(self, directories: Iterable[Path]) -> Command:
        parts = (str(path / IMAGE) for path in directories)
        return Command(
            ("sh", "-c", 'for each; do rm -f "$(readlink -f "$each")"; done; false', "sh", *parts)
        )


def test_what_is_taken_away_while_it_is_loaded_is_reported(
    kept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_images(kept, Taking(), IMAGE) == (IMAGE,)
    assert f"{kept.blob(IMAGE)} is missing; removed" in capsys.readouterr().out


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    """A store with one image."""
    store = Store(tmp_path / "store")
    view = store.image(IMAGE)
    view.mkdir(parents=True)
    parts = []
    for text in (CONFIG, LAYER):
        digest = hashlib.sha256(text).hexdigest()
        store.blob(digest).parent.mkdir(parents=True, exist_ok=True)
        store.blob(digest).write_bytes(text)
        (view / digest).symlink_to(f"../../blobs/sha256/{digest}")
        parts.append({"digest": f"sha256:{digest}", "size": len(text)})
    (view / "manifest.json").write_text(json.dumps({"config": parts[0], "layers": parts[1:]}))
    return store


def files(store: Store) -> set[str]:
    return {str(path) for path in store.directory.rglob("*")}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("fails", ["size", "size-later", "digest", "manifest"])
def test_what_this_node_cannot_read_is_told_and_stays(
    kept: Store, monkeypatch: pytest.MonkeyPatch, number: int, fails: str
) -> None:
    layer = hashlib.sha256(LAYER).hexdigest()
    asked: list[str] = []
    stat, read = Path.stat, Path.read_bytes

    def failing_stat(path: Path, **more: Any) -> os.stat_result:
        if path.name != layer:
            return stat(path, **more)
        asked.append(path.name)
        if fails == "size-later" and len(asked) == 1:
            return kept.directory.stat()
        raise OSError(number, os.strerror(number), str(path))

    def failing_read(path: Path) -> bytes:
        if path.name == "manifest.json":
            raise OSError(number, os.strerror(number))
        return read(path)

    def failing_digest(file: object, name: str) -> object:
        raise OSError(number, os.strerror(number))

    if fails == "digest":
        monkeypatch.setattr(hashlib, "file_digest", failing_digest)
    elif fails == "manifest":
        monkeypatch.setattr(Path, "read_bytes", failing_read)
    else:
        monkeypatch.setattr(Path, "stat", failing_stat)
    before = files(kept)
    with pytest.raises(ArtifactError) as caught:
        load_images(kept, Empty(), IMAGE)
    monkeypatch.undo()
    where = kept.blob(layer) if fails == "size-later" else f"{kept.image(IMAGE)}/"
    assert str(where) in str(caught.value)
    assert f": cannot be read: {os.strerror(number)}\n  next: nothing was removed: " in str(caught.value)
    assert files(kept) == before
