"""Trees that are made in memory, written and read again; what the format cannot hold is refused."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rc_tasks.squashfs import data
from rc_tasks.squashfs.edit import Edit, edited
from rc_tasks.squashfs.inodes import InodeWriter
from rc_tasks.squashfs.merge import merge
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import Compressor, Flag, SquashfsError, inspect
from rc_tasks.squashfs.tree import (
    NO_XATTRS,
    BlockDevice,
    CharacterDevice,
    Directory,
    Fifo,
    File,
    Form,
    Layer,
    Node,
    Socket,
    Symlink,
    Tree,
    walk,
)
from rc_tasks.squashfs.write import Written, write
from rc_tasks.squashfs.xattrs import XattrWriter
from tests.support.layers import squash
from tests.support.tools import require_tools

COMPRESSORS = [Compressor.GZIP, Compressor.XZ, Compressor.ZSTD, Compressor.LZ4, Compressor.LZO]


def directory(**children: Node) -> Directory:
    return Directory(0o755, 0, 0, 0, NO_XATTRS, {name.encode(): node for name, node in children.items()})


def file(mtime_s: int = 0, uid: int = 0) -> File:
    return File(0o644, uid, 0, mtime_s, NO_XATTRS)


def written(root: Directory, target: Path, form: Form | None = None) -> Written:
    return write(Tree(form or Form(Compressor.GZIP, 131072), root), target, made_at=1_700_000_000)


def again(root: Directory, tmp_path: Path, form: Form | None = None) -> Layer:
    written(root, tmp_path / "image.sqsh", form)
    inspect(tmp_path / "image.sqsh")
    return read_layer(tmp_path / "image.sqsh")


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_every_kind_of_node_is_read_as_it_was_written(tmp_path: Path, compressor: Compressor) -> None:
    xattrs = {b"user.a": b"1", b"security.capability": b"x" * 100, b"trusted.b": b"x" * 100}
    nodes: list[Node] = [
        File(0o4755, 1, 2, 3, xattrs),
        Directory(0o1777, 4, 5, 6, xattrs),
        Symlink(0o777, 7, 8, 9, xattrs, b"target\xff"),
        BlockDevice(0o660, 0, 0, 0, xattrs, 0x70003),
        CharacterDevice(0o666, 0, 0, 0, xattrs, 0x103),
        Fifo(0o600, 0, 0, 0, xattrs),
        Socket(0o600, 0, 0, 0, xattrs),
    ]
    plain = [type(node)(*[*_values(node)[:4], NO_XATTRS, *_values(node)[5:]]) for node in nodes]
    linked = file()
    root = directory(
        **{f"x{number}": node for number, node in enumerate(nodes)},
        **{f"p{number}": node for number, node in enumerate(plain)},
        one=linked,
        two=directory(three=linked),
    )
    layer = again(root, tmp_path, Form(compressor, 65536))
    found = dict(walk(layer.root))
    assert {path: _values(node) for path, node in found.items()} == {
        path: _values(node) for path, node in walk(root)
    }
    assert found[b"one"] is found[b"two/three"]
    assert layer.source.superblock.made_at == 1_700_000_000


def _values(node: Node) -> list[object]:
    values = [getattr(node, name) for name in ("mode", "uid", "gid", "mtime_s")]
    values.append(dict(node.xattrs))
    for name in ("target", "device", "size_bytes"):
        values += [getattr(node, name)] if hasattr(node, name) else []
    return values


def test_times_out_of_the_format_become_the_nearest(tmp_path: Path) -> None:
    root = directory(early=file(-1), late=file(1 << 32), last=file((1 << 32) - 1))
    found = {name: node.mtime_s for name, node in again(root, tmp_path).root.children.items()}
    assert found == {b"early": 0, b"late": (1 << 32) - 1, b"last": (1 << 32) - 1}


def test_as_many_owners_as_the_format_counts(tmp_path: Path) -> None:
    children = {f"{number}": file(uid=number) for number in range(65_535)}
    layer = again(directory(**children), tmp_path)
    assert layer.source.superblock.ids == 65_535
    assert all(node.uid == int(name) for name, node in layer.root.children.items())
    children["more"] = file(uid=70_000)
    with pytest.raises(SquashfsError, match="more than 65535 different users and groups"):
        written(directory(**children), tmp_path / "more.sqsh")
    assert not (tmp_path / "more.sqsh").exists()


def test_a_large_directory_has_an_index_for_lookups(tmp_path: Path) -> None:
    names = [f"{number:06}" for number in range(100_000)]
    layer = again(directory(big=directory(**{name: file() for name in names})), tmp_path)
    big = layer.root.children[b"big"]
    assert isinstance(big, Directory)
    assert [name.decode() for name in big.children] == names
    # The inode: an entry of the index for each 8 KiB of the listing.
    from rc_tasks.squashfs.metadata import MetadataReader

    superblock = layer.source.superblock
    descriptor = os.open(layer.source.path, os.O_RDONLY)
    inodes = MetadataReader(descriptor, layer.source.path, superblock).run(
        superblock.inode_table, superblock.directory_table
    )
    os.close(descriptor)
    at = inodes.content.index(struct.pack("<HH", 8, 0o755))
    _, size, _, _, count, _, _ = struct.unpack_from("<4I2HI", inodes.content, at + 16)
    assert size // 8192 - 2 <= count <= size // 8192 + 2


def test_deep_trees_need_no_recursion(tmp_path: Path) -> None:
    root = below = directory()
    for _ in range(20_000):
        below.children[b"d"] = inner = directory()
        below = inner
    layer = again(root, tmp_path)
    assert sum(1 for _ in walk(layer.root)) == 20_000
    assert sum(1 for _ in walk(merge([layer, layer]).root)) == 20_000


def test_an_empty_image(tmp_path: Path) -> None:
    assert again(directory(), tmp_path).root.children == {}


TWICE = directory()


@pytest.mark.parametrize(
    ("root", "said"),
    [
        pytest.param(directory(**{"x" * 257: file()}), "the name has 257 bytes", id="name"),
        pytest.param(
            directory(link=Symlink(0o777, 0, 0, 0, NO_XATTRS, b"x" * 4096)),
            "the target of a symlink has 4096 bytes",
            id="target",
        ),
        pytest.param(
            directory(file=File(0o644, 0, 0, 0, {b"system.acl": b""})),
            "cannot hold the extended attribute system.acl",
            id="attribute",
        ),
        pytest.param(
            directory(a=TWICE, b=TWICE),
            "a directory has two names",
            id="directory",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, root: Directory, said: str) -> None:
    with pytest.raises(SquashfsError, match=said) as error:
        written(root, tmp_path / "image.sqsh")
    assert str(error.value).startswith(f"{tmp_path}/image.sqsh: ")
    assert not (tmp_path / "image.sqsh").exists()


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "image.sqsh").write_text("mine")
    with pytest.raises(SquashfsError, match="cannot be written: File exists"):
        written(directory(), tmp_path / "image.sqsh")
    assert (tmp_path / "image.sqsh").read_text() == "mine"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SquashfsError, match="No space left on device") as error:
        written(directory(), tmp_path / "image.sqsh")
    assert "free space" in str(error.value)
    assert not (tmp_path / "image.sqsh").exists()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with data blocks, a fragment and a sparse file."""
    require_tools("mksquashfs")
    source = tmp_path / "source"
    source.mkdir()
    (source / "random").write_bytes(os.urandom(500_000))
    (source / "text").write_bytes(b"some text " * 1000)
    return squash(source, tmp_path / "layer.sqsh")


def cannot_copy(number: int) -> Callable[..., int]:
    """A way to copy that does not work: it fails with an error, or copies nothing if that is 0."""

    def copy(*_: object) -> int:
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    return copy


@pytest.mark.parametrize("number", [0, 18, 22, 38, 95])
def test_data_is_copied_where_ranges_cannot_be(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    layer = read_layer(image)
    write(merge([layer]), tmp_path / "fast.sqsh", made_at=0)
    monkeypatch.setattr(os, "copy_file_range", cannot_copy(number))
    with monkeypatch.context() as patched:
        patched.setattr(data, "_WAYS", data._WAYS[:2])
        write(merge([layer]), tmp_path / "sent.sqsh", made_at=0)
    monkeypatch.setattr(os, "sendfile", cannot_copy(number))
    monkeypatch.setattr(data, "_BUFFER_BYTES", 1000)
    write(merge([layer]), tmp_path / "slow.sqsh", made_at=0)
    fast = (tmp_path / "fast.sqsh").read_bytes()
    assert (tmp_path / "sent.sqsh").read_bytes() == fast
    assert (tmp_path / "slow.sqsh").read_bytes() == fast


def test_a_layer_that_changes_meanwhile_is_noticed(tmp_path: Path, image: Path) -> None:
    layer = read_layer(image)
    with image.open("ab") as file:
        file.write(b"more")
    with pytest.raises(SquashfsError, match="the layer changed while it was merged") as error:
        write(merge([layer]), tmp_path / "merged.sqsh", made_at=0)
    assert str(error.value).startswith(f"{image}: ")
    assert not (tmp_path / "merged.sqsh").exists()


def test_a_layer_that_is_written_to_during_the_copy_is_noticed(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = read_layer(image)
    copy_range = os.copy_file_range

    def and_write(*arguments: Any) -> int:
        copied = copy_range(*arguments)
        with image.open("r+b") as file:
            file.write(b"damage")
        return copied

    monkeypatch.setattr(os, "copy_file_range", and_write)
    with pytest.raises(data.ChangedLayerError, match="the layer changed while it was merged"):
        write(merge([layer]), tmp_path / "merged.sqsh", made_at=0)
    assert not (tmp_path / "merged.sqsh").exists()


def test_writing_the_same_again_gives_the_same_bytes(tmp_path: Path, image: Path) -> None:
    for name in ("one", "two"):
        write(merge([read_layer(image)]), tmp_path / name, made_at=0)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_superblock_says_what_is_there(tmp_path: Path, image: Path) -> None:
    tree = merge([read_layer(image)])
    write(tree, tmp_path / "exportable", made_at=0)
    write(tree, tmp_path / "other", made_at=0, exportable=False)
    one, other = inspect(tmp_path / "exportable"), inspect(tmp_path / "other")
    assert (one.inodes, one.fragments, one.ids) == (3, 1, 1)
    assert one.flags == Flag.DUPLICATES_REMOVED | Flag.EXPORTABLE | Flag.NO_XATTRS | 0x400
    assert other.flags == one.flags & ~Flag.EXPORTABLE


def test_data_behind_four_gibibytes_needs_the_long_inode(tmp_path: Path, image: Path) -> None:
    layer = read_layer(image)
    for begin, kind in ((96, 2), (5 << 30, 9)):
        writer = InodeWriter(layer.root, None, XattrWriter(None))
        writer.write(
            data.lay_out([node for _, node in walk(layer.root) if isinstance(node, File)], begin)
        )
        # Behind the length of the block, the first inode: its type, and where its data begins.
        inodes = writer.inodes.finish()
        assert struct.unpack_from("<H", inodes, 2)[0] == kind
        assert struct.unpack_from("<I" if kind == 2 else "<Q", inodes, 18)[0] == begin


def test_a_merge_leaves_the_layers_as_they_are(image: Path) -> None:
    layer = read_layer(image)
    before = dict(walk(layer.root))
    merge([layer], Edit(drop=("random",), owner_reads=True, all_root=True))
    assert dict(walk(layer.root)) == before


def test_paths_are_dropped_by_pattern() -> None:
    root = directory(
        dev=directory(null=file(), **{".x": file()}, pts=directory(p=file())),
        var=directory(a=directory(cache=directory(x=file())), b=directory(cache=file(), keep=file())),
        **{".dockerenv": file()},
    )
    edited(root, Edit(drop=("dev/*", "/var/*/cache", ".dockerenv", "nothing/here")))
    assert sorted(path for path, _ in walk(root)) == [b"dev", b"var", b"var/a", b"var/b", b"var/b/keep"]
