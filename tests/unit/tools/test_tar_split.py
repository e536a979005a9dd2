"""Archives of layers from recipes, as podman writes these; test_store has real ones."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.tree import Layer
from rc_tasks.tools import tar_split
from rc_tasks.tools.tar_split import Archive, RecipeError
from tests.support.layers import squash
from tests.support.tools import require_tools

FILES = {"a/one": b"one\n", "a/two": b"2" * 300_000, "empty": b""}


def entry(kind: int, **more: object) -> bytes:
    return json.dumps({"type": kind, **more}).encode() + b"\n"


def recipe(path: Path, archive: bytes, renamed: dict[str, dict[str, object]] | None = None) -> Path:
    """Write the recipe of a tar archive: the contents of files by name, and all else as it is."""
    lines, at = [], 0
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if member.isfile() and member.size:
                header = archive[at : member.offset_data]
                lines.append(entry(2, payload=base64.b64encode(header).decode()))
                named = (renamed or {}).get(member.name, {"name": member.name})
                lines.append(entry(1, size=member.size, payload="", **named))
                at = member.offset_data + member.size
    lines.append(entry(2, payload=base64.b64encode(archive[at:]).decode()))
    path.write_bytes(gzip.compress(b"".join(lines)))
    return path


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    require_tools("mksquashfs")
    for name, content in FILES.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    (tmp_path / "tree/link").symlink_to("a")
    return read_layer(squash(tmp_path / "tree", tmp_path / "layer.sqsh"))


@pytest.fixture
def archive(layer: Layer, tmp_path: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as members:
        members.add(tmp_path / "tree", ".")
    return made.getvalue()


def test_the_archive_comes_out_byte_for_byte(layer: Layer, archive: bytes, tmp_path: Path) -> None:
    made = recipe(tmp_path / "recipe", archive)
    assert b"".join(tar_split.archive(made, layer)) == archive
    assert tar_split.measured(made, layer) == Archive(len(archive), hashlib.sha256(archive).hexdigest())


@pytest.mark.parametrize(
    "named",
    [
        {"name": "link/one"},
        {"name": "/a//./one"},
        {"name_raw": base64.b64encode(b"a/one").decode()},
    ],
    ids=["through a symlink", "not clean", "raw"],
)
def test_a_file_has_many_names(
    layer: Layer, archive: bytes, tmp_path: Path, named: dict[str, object]
) -> None:
    made = recipe(tmp_path / "recipe", archive, {"./a/one": named})
    assert b"".join(tar_split.archive(made, layer)) == archive


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (entry(1, name="gone", size=3), "gone is not the file that it was"),
        (entry(1, name="a", size=3), "a is not the file that it was"),
        (entry(1, name="a/one", size=3), "a/one is not the file that it was"),
        (entry(1, name="../../../etc/passwd", size=3), "is not the file that it was"),
        (entry(3), "an entry of an unknown type, 3"),
        (entry(2, payload=7), "cannot be made again"),
        (b"{", "cannot be made again"),
        (b"[]", "cannot be made again"),
        (b"\xff", "cannot be made again"),
    ],
    ids=["gone", "directory", "size", "outside", "type", "payload", "json", "list", "bytes"],
)
def test_what_is_no_recipe_is_refused(layer: Layer, tmp_path: Path, lines: bytes, why: str) -> None:
    path = tmp_path / "recipe"
    path.write_bytes(gzip.compress(lines))
    with pytest.raises(RecipeError, match="cannot be made again") as caught:
        list(tar_split.archive(path, layer))
    assert why in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"{}\n" * 9)[:-9]], ids=["other", "cut off"]
)
def test_a_recipe_that_is_not_whole_is_refused(layer: Layer, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        list(tar_split.archive(path, layer))
    with pytest.raises(RecipeError, match="No such file"):
        list(tar_split.archive(tmp_path / "nosuch", layer))


def test_lz4_is_too_slow_to_read(tmp_path: Path, layer: Layer) -> None:
    slow = read_layer(squash(tmp_path / "tree", tmp_path / "slow.sqsh", "-comp", "lz4"))
    with pytest.raises(RecipeError, match="files of a layer with lz4 are not read here"):
        list(tar_split.archive(tmp_path / "recipe", slow))
