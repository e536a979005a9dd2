"""SquashFS superblocks, whole and damaged."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.errors import ArtifactError
from rc_tasks.squashfs.superblock import Compressor, inspect


def superblock(
    *, magic: int = 0x73717368, compressor: int = 6, major: int = 4, used: int = 5000
) -> bytes:
    return struct.pack(
        "<5I6H8Q", magic, 42, 1704164645, 131072, 1, compressor, 17, 0, 1, major, 0, 0, used, *(0,) * 6
    )


def padded(head: bytes, size: int = 8192) -> bytes:
    return head + bytes(size - len(head))


def test_a_whole_image_tells_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "image.sqsh"
    path.write_bytes(padded(superblock()))
    found = inspect(path)
    assert (found.inodes, found.made_at, found.block_size_bytes) == (42, 1704164645, 131072)
    assert (found.compression, found.used_bytes) == (Compressor.ZSTD, 5000)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "it is 0 bytes long, shorter than a SquashFS superblock", id="empty"),
        pytest.param(superblock()[:95], "95 bytes long", id="cut within the superblock"),
        pytest.param(
            superblock(), "it is 96 bytes long and should be 8192", id="cut after the superblock"
        ),
        pytest.param(padded(superblock(), 8191), "should be 8192", id="one byte short"),
        pytest.param(padded(superblock(), 5000), "should be 8192", id="padding missing"),
        pytest.param(padded(superblock(), 12288), "should be 8192", id="something appended"),
        pytest.param(bytes(8192), "does not begin like a SquashFS file", id="zeros"),
        pytest.param(padded(superblock(major=3)), "version 3.0, not 4.0", id="old version"),
        pytest.param(
            padded(superblock(compressor=9)), "unknown compressor, number 9", id="new compressor"
        ),
    ],
)
def test_a_damaged_image_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "an image: é.sqsh"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        inspect(path)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert error.value.hint


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda path: None, "No such file", id="missing"),
        pytest.param(Path.mkdir, "Is a directory", id="directory"),
        pytest.param(lambda path: path.symlink_to("nowhere"), "No such file", id="dangling symlink"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "image.sqsh")
    with pytest.raises(ArtifactError, match=said):
        inspect(tmp_path / "image.sqsh")
