"""Contents of files in an image, beside the files that it was made of."""

import os
from pathlib import Path

import pytest

from rc_tasks.squashfs.contents import FileReader
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import Compressor, SquashfsError
from rc_tasks.squashfs.tree import File, Layer, walk
from tests.support.layers import squash
from tests.support.tools import require_tools

BLOCK_BYTES = 131072
CONTENTS = {
    "empty": b"",
    "small": b"a few words\n",
    "block": b"x" * BLOCK_BYTES,
    "blocks": b"".join(b"%08d" % number for number in range(40_000)),
    "zeros": bytes(3 * BLOCK_BYTES + 7),
    "hole": b"begin" + bytes(4 * BLOCK_BYTES) + b"end",
    "random": os.urandom(2 * BLOCK_BYTES + 100),
    **{f"many/{number}": f"file {number}\n".encode() * number for number in range(200)},
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    require_tools("mksquashfs")
    made = tmp_path / "tree"
    for name, content in CONTENTS.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    return made


def read(layer: Layer) -> dict[str, bytes]:
    with FileReader(layer.source) as reader:
        return {
            path.decode(): b"".join(reader.pieces(node))
            for path, node in walk(layer.root)
            if isinstance(node, File)
        }


@pytest.mark.parametrize("compressor", ["gzip", "xz", "zstd", "lz4"])
def test_contents_are_those_of_the_files(directory: Path, tmp_path: Path, compressor: str) -> None:
    made = squash(directory, tmp_path / "image.sqsh", "-comp", compressor)
    assert read(read_layer(made)) == CONTENTS


@pytest.mark.parametrize("options", [("-noD", "-noF"), ("-no-fragments",), ("-b", "4096")], ids=str)
def test_contents_that_are_stored_in_another_way(
    directory: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    made = squash(directory, tmp_path / "image.sqsh", "-comp", "zstd", *options)
    assert read(read_layer(made)) == CONTENTS


def test_lzo_is_not_read(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(SquashfsError, match=Compressor.LZO):
        read(read_layer(squash(directory, tmp_path / "image.sqsh", "-comp", "lzo")))


def test_an_image_that_changed_is_refused(directory: Path, tmp_path: Path) -> None:
    made = squash(directory, tmp_path / "image.sqsh")
    layer = read_layer(made)
    os.utime(made, (1, 1))
    with pytest.raises(SquashfsError, match="has changed since it was read"):
        FileReader(layer.source)
    made.unlink()
    with pytest.raises(SquashfsError, match="No such file"):
        FileReader(layer.source)


def test_damaged_data_is_an_error_and_ends(directory: Path, tmp_path: Path) -> None:
    made = squash(directory, tmp_path / "image.sqsh")
    good = made.read_bytes()
    layer = read_layer(made)
    ends = layer.source.superblock.inode_table
    told = 0
    for at in range(110, ends, max(1, ends // 40)):
        with made.open("r+b") as file:
            file.seek(at)
            file.write(bytes(byte ^ 0xFF for byte in good[at : at + 8]))
        try:
            assert read(read_layer(made)).keys() == CONTENTS.keys()
        except SquashfsError as error:
            told += 1
            assert str(made) in str(error)
        made.write_bytes(good)
    assert told > 0
