"""Damaged and hostile images: an error that names the file, or a result; never anything else."""

import contextlib
import os
import random
import struct
import time
from pathlib import Path

import pytest

from rc_tasks.squashfs.compression import compressor
from rc_tasks.squashfs.merge import merge
from rc_tasks.squashfs.metadata import stored_block
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import NO_TABLE, Compressor, SquashfsError, Superblock
from rc_tasks.squashfs.tree import NO_XATTRS, Directory, File, Form, Node, Symlink, Tree
from rc_tasks.squashfs.write import write
from tests.support.layers import squash
from tests.support.soak import ROUNDS
from tests.support.tools import require_tools

PLAIN = ("-noI", "-noX", "-noF")


def small_image(directory: Path, *options: str) -> Path:
    """Made by mksquashfs, with a little of everything that an ordinary user can make."""
    require_tools("mksquashfs")
    source = directory / "source"
    (source / "usr/lib").mkdir(parents=True)
    (source / "usr/lib/large").write_bytes(random.Random(1).randbytes(20_000))
    (source / "usr/lib/text").write_bytes(b"text " * 3000)
    (source / "usr/link").symlink_to("lib/text")
    (source / "usr/hard").hardlink_to(source / "usr/lib/text")
    os.mkfifo(source / "pipe")
    for number in range(300):
        (source / "usr" / f"{number}").touch()
    # A tmpfs has none before Linux 6.6.
    with contextlib.suppress(OSError):
        for name, value in (("user.a", b"x" * 100), ("user.b", b"y")):
            os.setxattr(source / "usr/lib/large", name, value)
        os.setxattr(source / "usr/lib", "user.c", b"x" * 100)
    return squash(source, directory / "image.sqsh", *options)


@pytest.mark.parametrize(
    "options",
    [("-comp", "gzip"), ("-comp", "zstd"), ("-comp", "xz"), ("-comp", "lz4"), ("-b", "4K", *PLAIN)],
    ids=" ".join,
)
def test_flipped_bytes_give_an_error_or_a_result(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = small_image(tmp_path, *options)
    whole = image.read_bytes()
    superblock = Superblock.parse(whole, image)
    chance = random.Random(" ".join(options))
    places = (*range(96), *range(superblock.inode_table, superblock.used_bytes))
    damaged = tmp_path / "damaged.sqsh"
    outcomes = {"error": 0, "result": 0}
    started = time.monotonic()
    for number in range(20 * ROUNDS):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            # Half of them in the superblock, where most depends on it.
            place = chance.choice(places) if number % 2 else chance.randrange(96)
            content[place] = chance.choice((0, 0xFF, chance.randrange(256), content[place] ^ 1))
        if number % 10 == 0:
            content = content[: chance.randrange(len(content))]
        damaged.write_bytes(content)
        (tmp_path / "merged.sqsh").unlink(missing_ok=True)
        try:
            write(merge([read_layer(damaged)]), tmp_path / "merged.sqsh", made_at=0)
            outcomes["result"] += 1
        except SquashfsError as error:
            assert str(error).startswith(f"{damaged}: ")
            outcomes["error"] += 1
    assert min(outcomes.values()) > 0
    # 400 images in less than a few seconds: none took long.
    assert time.monotonic() - started < ROUNDS * 6


def written(root: Directory, target: Path) -> tuple[bytearray, Superblock]:
    """An image without compression, whose tables can be changed in place."""
    form = Form(Compressor.LZ4, 4096)
    write(Tree(form, root), target, made_at=0)
    content = bytearray(target.read_bytes())
    return content, Superblock.parse(bytes(content), target)


def directory(**children: Node) -> Directory:
    return Directory(0o755, 0, 0, 0, NO_XATTRS, {name.encode(): node for name, node in children.items()})


def refused(image: Path, content: bytes, said: str) -> None:
    image.write_bytes(content)
    with pytest.raises(SquashfsError, match=said) as error:
        read_layer(image)
    assert str(error.value).startswith(f"{image}: not a whole SquashFS image: ")
    assert "at byte " in error.value.what


def test_a_directory_that_contains_itself(tmp_path: Path) -> None:
    image = tmp_path / "image.sqsh"
    content, superblock = written(directory(sub=directory()), image)
    # The entry of the subdirectory, after the header of the listing, names the root's inode.
    entry = superblock.directory_table + 2 + 12
    struct.pack_into("<H", content, entry, superblock.root_inode & 0xFFFF)
    refused(image, content, "a directory has two names")


@pytest.mark.parametrize("name", [b"..", b"a/", b"\0a"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: bytes) -> None:
    image = tmp_path / "image.sqsh"
    content, _ = written(directory(zz=File(0o644, 0, 0, 0, NO_XATTRS)), image)
    refused(image, content.replace(b"zz", name), "an entry without a valid name")


def test_one_name_twice(tmp_path: Path) -> None:
    image = tmp_path / "image.sqsh"
    empty = File(0o644, 0, 0, 0, NO_XATTRS)
    content, _ = written(directory(yy=empty, zz=empty), image)
    refused(image, content.replace(b"zz", b"yy"), "an entry without a valid name")


def test_a_file_of_exabytes_has_too_few_blocks(tmp_path: Path) -> None:
    image = tmp_path / "image.sqsh"
    holes = File(0o644, 0, 0, 0, NO_XATTRS, 4096, blocks=bytes(4), sparse_bytes=4096)
    content, superblock = written(directory(holes=holes), image)
    struct.pack_into("<Q", content, superblock.inode_table + 2 + 16 + 8, 1 << 62)
    refused(image, content, f"a file of {1 << 62} bytes has too few blocks")


def test_a_symlink_longer_than_the_image(tmp_path: Path) -> None:
    image = tmp_path / "image.sqsh"
    content, superblock = written(directory(link=Symlink(0o777, 0, 0, 0, NO_XATTRS, b"x")), image)
    struct.pack_into("<I", content, superblock.inode_table + 2 + 20, 0xFFFFFFFF)
    refused(image, content, "a symlink has no valid target")


def test_a_small_image_that_would_take_all_memory(tmp_path: Path) -> None:
    """A table of inodes of many blocks, of which each is a few bytes that become 8 KiB."""
    image = tmp_path / "image.sqsh"
    compress = compressor(Compressor.GZIP)
    block = stored_block(bytes(8192), compress)
    blocks = block * (1 + (300 << 20) // 8192)
    ids = stored_block(bytes(4), None)
    at = 96 + len(blocks)
    superblock = Superblock(
        inodes=1,
        made_at=0,
        block_size_bytes=131072,
        compression=Compressor.GZIP,
        used_bytes=at + len(ids) + 8,
        ids=1,
        id_table=at + len(ids),
        xattr_table=NO_TABLE,
        inode_table=96,
        directory_table=at,
        fragment_table=at,
    )
    content = superblock.pack() + blocks + ids + struct.pack("<Q", at)
    refused(image, content, "a table has more than 256 MiB")


def test_listings_that_overlap_do_not_multiply(tmp_path: Path) -> None:
    image = tmp_path / "image.sqsh"
    names = {f"{number}": File(0o644, 0, 0, 0, NO_XATTRS) for number in range(100)}
    first = Directory(0o701, 0, 0, 0, NO_XATTRS, directory(**names).children)
    second = Directory(0o702, 0, 0, 0, NO_XATTRS)
    content, _ = written(directory(first=first, second=second), image)
    begins = [content.index(struct.pack("<HH", 1, mode)) + 16 for mode in (0o701, 0o702)]
    # The second one gets the listing of the first.
    content[begins[1] : begins[1] + 12] = content[begins[0] : begins[0] + 12]
    refused(image, content, "listings of directories overlap")


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, os.mkfifo], ids=["none", "dir", "pipe"])
def test_what_is_no_file(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "image.sqsh")
    with pytest.raises(SquashfsError, match=r"not a whole SquashFS image: it "):
        read_layer(tmp_path / "image.sqsh")
