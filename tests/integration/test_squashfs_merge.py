"""Merged SquashFS layers, beside what the kernel's overlayfs shows of the same directories."""

import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.squashfs.edit import Edit, IdRange
from rc_tasks.squashfs.merge import merge
from rc_tasks.squashfs.options import MixedLayersError
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.squashfs.write import Written, write
from rc_tasks.steps.container import rootfs
from rc_tasks.tools import command
from rc_tasks.tools.podman import Podman
from tests.support.images import Layer, load
from tests.support.layers import Seen, applied, mounted, overlaid, require_root, seen, squash
from tests.support.tools import require_tools

Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_tools("mksquashfs", "unsquashfs", "mount")
    require_root()


def merged(layers: list[Path], target: Path, edit: Edit | None = None) -> Written:
    tree = merge([read_layer(layer) for layer in layers], edit or Edit())
    return write(tree, target, made_at=1_700_000_000)


def stack(tmp_path: Path, *makes: Make, options: tuple[str, ...] = ()) -> tuple[list[Path], list[Path]]:
    """Directories that are filled by functions, and a SquashFS of each."""
    directories = []
    for number, make in enumerate(makes):
        directory = tmp_path / f"layer{number}"
        directory.mkdir()
        make(directory)
        directories.append(directory)
    images = [squash(each, each.with_suffix(".sqsh"), *options) for each in directories]
    return directories, images


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o020000, 0)


def compare(tmp_path: Path, *makes: Make, options: tuple[str, ...] = ()) -> Path:
    """Merge layers; assert that the kernel shows of the result what overlayfs shows of the layers.

    So do plain file operations, and so does mksquashfs of what they make.
    """
    directories, images = stack(tmp_path, *makes, options=options)
    target = tmp_path / "merged.sqsh"
    merged(images, target)
    result = shown(target, tmp_path)
    with overlaid(directories, tmp_path / "overlay") as expected:
        assert result == seen(expected)
    plain = applied(directories, tmp_path / "applied")
    assert result == seen(plain)
    assert result == shown(squash(plain, tmp_path / "plain.sqsh", *options), tmp_path)
    unpacked(target, tmp_path)
    return target


def shown(image: Path, tmp_path: Path) -> dict[str, Seen]:
    """What the kernel shows of an image; the number of links of each file is that of its names."""
    with mounted(image, tmp_path / "mounted") as root:
        result = seen(root)
        for path, one in result.items():
            assert not one.links or (root / path).lstat().st_nlink == len(one.links)
    return result


def unpacked(image: Path, tmp_path: Path) -> None:
    """Assert that unsquashfs reads an image without a complaint, and sees what the kernel sees."""
    argv = ("unsquashfs", "-no-progress", "-dest", tmp_path / "unpacked", image)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert seen(tmp_path / "unpacked") == shown(image, tmp_path)


def base(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root\n")
    (root / "etc/shadow").write_text("")
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/big").write_bytes(os.urandom(300_000))
    (root / "usr/lib/text").write_bytes(b"text " * 100_000)
    (root / "usr/lib/gone").write_bytes(b"gone " * 10_000)
    (root / "usr/share").mkdir()
    (root / "usr/share/a").write_text("a")
    (root / "usr/share/b").write_text("b")
    (root / "lib").symlink_to("usr/lib")


def test_layers_that_add_replace_and_delete(tmp_path: Path) -> None:
    def second(root: Path) -> None:
        (root / "etc").mkdir(mode=0o700)
        (root / "etc/passwd").write_text("root\nada\n")
        (root / "new").write_bytes(os.urandom(200_000))
        whiteout(root / "usr/lib/gone")
        whiteout(root / "usr/share")

    def third(root: Path) -> None:
        (root / "usr/share").mkdir(parents=True)
        (root / "usr/share/c").write_text("c")
        root.chmod(0o711)
        os.chown(root, 5, 6)

    compare(tmp_path, base, second, third)


ABOVE: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("file"),
    "directory": lambda path: (path.mkdir(), (path / "inside").write_text("inside")),
    "symlink": lambda path: path.symlink_to("/usr"),
    "fifo": os.mkfifo,
    "device": lambda path: os.mknod(path, 0o060600, os.makedev(7, 3)),
}


def test_every_kind_replaces_every_other_and_is_replaced_again(tmp_path: Path) -> None:
    def kinds(root: Path, shift: int) -> None:
        for first in range(len(ABOVE)):
            for second, make in enumerate(ABOVE.values()):
                if (second - first) % len(ABOVE) == shift:
                    make(root / f"place{first}")

    makes = [lambda root, shift=shift: kinds(root, shift) for shift in (0, 1, 3, 1, 2, 4)]
    compare(tmp_path, *makes)


def test_a_symlink_in_place_of_a_directory_hides_all_that_was_in_it(tmp_path: Path) -> None:
    def link(root: Path) -> None:
        (root / "usr").symlink_to("opt")

    def directory(root: Path) -> None:
        (root / "usr/lib").mkdir(parents=True)
        (root / "usr/lib/only").write_text("only this")

    target = compare(tmp_path, base, link, directory)
    with mounted(target, tmp_path / "m") as root:
        assert [path.name for path in (root / "usr").rglob("*")] == ["lib", "only"]


FLAGS = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")


@pytest.mark.parametrize("form", [*FLAGS, ".wh..wh..opq"])
def test_an_opaque_directory_in_every_form(tmp_path: Path, form: str) -> None:
    def opaque(root: Path) -> None:
        for name in ("usr", "usr/share"):
            (root / name).mkdir()
            if form in FLAGS:
                os.setxattr(root / name, form, b"y")
            else:
                (root / name / form).touch()
        (root / "usr/share/own").write_text("own")

    directories, images = stack(tmp_path, base, opaque)
    merged(images, tmp_path / "merged.sqsh")
    result = shown(tmp_path / "merged.sqsh", tmp_path)
    assert sorted(path for path in result if path.startswith("usr/")) == ["usr/share", "usr/share/own"]
    assert result == seen(applied(directories, tmp_path / "applied"))
    if form.endswith("overlay.opaque"):
        options = ",userxattr" if form.startswith("user") else ""
        with overlaid(directories, tmp_path / "overlay", options) as expected:
            assert result == seen(expected)


def test_deletions_in_the_form_of_oci_layers(tmp_path: Path) -> None:
    def second(root: Path) -> None:
        (root / "usr/lib").mkdir(parents=True)
        (root / "usr/lib/.wh.gone").touch()
        (root / "usr/.wh.share").touch()
        # It deletes the file below, not the one beside it.
        (root / "etc").mkdir()
        (root / "etc/.wh.passwd").touch()
        (root / "etc/passwd").write_text("new")
        (root / ".wh.nothing").touch()
        (root / ".wh..wh.plnk").mkdir()

    _, images = stack(tmp_path, second, base, second)
    merged(images, tmp_path / "merged.sqsh")
    result = shown(tmp_path / "merged.sqsh", tmp_path)
    assert not {"usr/lib/gone", "usr/share"} & result.keys()
    assert result["etc/passwd"].content == b"new"
    assert not [path for path in result if ".wh." in path]


def test_deletions_of_an_overlayfs_on_overlayfs(tmp_path: Path) -> None:
    def second(root: Path) -> None:
        (root / "usr/lib").mkdir(parents=True)
        os.setxattr(root / "usr/lib", "trusted.overlay.opaque", b"x")
        for name in ("gone", "empty"):
            (root / "usr/lib" / name).touch()
        os.setxattr(root / "usr/lib/gone", "trusted.overlay.whiteout", b"")

    directories, images = stack(tmp_path, base, second)
    merged(images, tmp_path / "merged.sqsh")
    result = shown(tmp_path / "merged.sqsh", tmp_path)
    assert "usr/lib/gone" not in result
    assert {"usr/lib/text", "usr/lib/empty"} <= result.keys()
    # Linux before 6.7 does not know them.
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 7):
        with overlaid(directories, tmp_path / "overlay") as expected:
            assert result == seen(expected)


def test_hard_links_stay_links_and_are_counted_again(tmp_path: Path) -> None:
    def links(root: Path) -> None:
        (root / "a").mkdir()
        (root / "b").mkdir()
        (root / "a/one").write_bytes(os.urandom(5000))
        for name in ("a/two", "b/three", "four", "five"):
            (root / name).hardlink_to(root / "a/one")
        os.mkfifo(root / "pipe")
        os.link(root / "pipe", root / "b/pipe")

    def fewer(root: Path) -> None:
        (root / "four").write_text("no longer a link")
        whiteout(root / "a/two")
        whiteout(root / "b/pipe")

    target = compare(tmp_path, links, fewer)
    assert shown(target, tmp_path)["five"].links == ("a/one", "b/three", "five")


# What setcap cap_net_raw=ep writes: struct vfs_cap_data of version 2.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def test_attributes_are_kept_but_for_those_of_overlayfs(tmp_path: Path) -> None:
    def attributes(root: Path) -> None:
        for name in ("ping", "other", "third"):
            (root / name).write_text(name)
            os.setxattr(root / name, "security.capability", CAPABILITY)
        # The same large value is stored once.
        for name in ("ping", "third"):
            os.setxattr(root / name, f"user.{name}", b"value" * 200)
        (root / "directory").mkdir()
        os.setxattr(root / "directory", "user.empty", b"")
        (root / "link").symlink_to("ping")
        os.mkfifo(root / "pipe")
        os.mknod(root / "device", 0o020600, os.makedev(1, 3))
        for name in ("link", "pipe", "device"):
            os.setxattr(root / name, "trusted.some", b"thing", follow_symlinks=False)
        os.setxattr(root, "trusted.root", b"1")
        os.setxattr(root / "other", "trusted.overlay.origin", b"handle")

    def replaced(root: Path) -> None:
        (root / "third").write_text("without attributes")
        (root / "directory").mkdir()
        os.setxattr(root / "directory", "user.new", b"x" * 3000)

    target = compare(tmp_path, attributes, replaced)
    result = shown(target, tmp_path)
    assert result["ping"].xattrs == {"security.capability": CAPABILITY, "user.ping": b"value" * 200}
    assert result["other"].xattrs == {"security.capability": CAPABILITY}


def test_more_attributes_than_one_block_holds(tmp_path: Path) -> None:
    def many(root: Path) -> None:
        for number in range(1200):
            (root / f"{number}").touch()
            os.setxattr(root / f"{number}", "user.number", b"%d" % number * 5)

    compare(tmp_path, many, base)


def test_special_files(tmp_path: Path) -> None:
    def special(root: Path) -> None:
        os.mkfifo(root / "pipe")
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
        os.mknod(root / "disk", 0o060660, os.makedev(259, 70_000))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(root / "socket"))
        (root / "set").touch()
        (root / "set").chmod(0o6755)
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)

    def whiteouts(root: Path) -> None:
        whiteout(root / "never/there")
        whiteout(root / "socket")

    compare(tmp_path, whiteouts, special, whiteouts)


def test_sparse_empty_and_huge_files(tmp_path: Path) -> None:
    def files(root: Path) -> None:
        (root / "empty").touch()
        for name, size in (("holes", 1 << 20), ("zeros", 300_000), ("huge", (5 << 30) + 7)):
            with (root / name).open("wb") as file:
                file.truncate(size)
                if name != "zeros":
                    file.seek(size - 1000)
                    file.write(b"end")
        (root / "whole").write_bytes(os.urandom(131072 * 2))
        (root / "zero block").write_bytes(os.urandom(131072) + bytes(131072) + b"end")

    directories, images = stack(tmp_path, base, files)
    merged(images, tmp_path / "merged.sqsh")
    result = shown(tmp_path / "merged.sqsh", tmp_path)
    with overlaid(directories, tmp_path / "overlay") as expected:
        assert result == seen(expected)
    with (
        mounted(tmp_path / "merged.sqsh", tmp_path / "m") as root,
        mounted(images[1], tmp_path / "l") as layer,
    ):
        with (root / "huge").open("rb") as file:
            file.seek(5 << 30)
            file.seek((5 << 30) + 7 - 1000)
            assert file.read(4) == b"end\0"
        for name in ("huge", "holes", "zeros"):
            assert (root / name).stat().st_blocks == (layer / name).stat().st_blocks


def test_names_and_targets_of_any_length_and_any_bytes(tmp_path: Path) -> None:
    def names(root: Path) -> None:
        for number in range(400):
            (root / f"{number:0255}").write_text(f"{number}")
        (root / "\udcff\n\\ \x01é").write_text("odd")
        (root / "link").symlink_to("x" * 4095)
        deep = root
        for _ in range(40):
            deep /= "d" * 60
            deep.mkdir()

    compare(tmp_path, names, base)


def test_a_directory_of_many_entries_can_be_searched(tmp_path: Path) -> None:
    def many(root: Path, numbers: range) -> None:
        (root / "many").mkdir()
        for number in numbers:
            os.mknod(root / "many" / f"entry-{number}")

    _, images = stack(
        tmp_path, lambda root: many(root, range(60_000)), lambda root: many(root, range(55_000, 100_000))
    )
    merged(images, tmp_path / "merged.sqsh")
    with mounted(tmp_path / "merged.sqsh", tmp_path / "m") as root:
        assert sorted(os.listdir(root / "many")) == sorted(f"entry-{n}" for n in range(100_000))
        for number in range(0, 100_000, 7):
            os.lstat(f"{root}/many/entry-{number}")
        for name in ("entry-", "entry-100000", "zzz", "a", "entry-99999x"):
            assert not os.path.lexists(root / "many" / name)


def test_owners_and_times_are_those_of_the_layers(tmp_path: Path) -> None:
    def files(root: Path) -> None:
        for number in range(3000):
            (root / f"{number}").touch()
            os.chown(root / f"{number}", number, 1_000_000 + number // 2)
        for name, time_s in (
            ("1960", -315_619_200),
            ("1970", 0),
            ("2106", 0xFFFFFFFF),
            ("2200", 7 << 30),
        ):
            (root / name).touch()
            os.utime(root / name, (time_s, time_s))

    _, images = stack(tmp_path, files, base)
    merged(images, tmp_path / "merged.sqsh")
    result, layer = shown(tmp_path / "merged.sqsh", tmp_path), shown(images[0], tmp_path)
    for path in layer.keys() - {"."}:
        assert result[path] == layer[path]


COMPRESSORS = [("-comp", name) for name in ("gzip", "xz", "zstd")]
PLAIN = ("-noI", "-noF", "-noX")


@pytest.mark.parametrize(
    "options",
    [
        *COMPRESSORS,
        ("-comp", "lz4"),
        ("-comp", "lz4", "-Xhc", *PLAIN),
        ("-comp", "lzo", *PLAIN),
        ("-comp", "xz", "-Xdict-size", "8K", "-b", "16K"),
        ("-comp", "xz", "-Xbcj", "x86"),
        ("-comp", "gzip", "-noI", "-noD", "-noF", "-noX"),
        ("-comp", "zstd", "-noD"),
        ("-comp", "zstd", "-noId", "-no-exports"),
        *(("-comp", "zstd", "-b", size) for size in ("4K", "32K", "1M")),
        ("-comp", "zstd", "-no-fragments"),
        ("-comp", "zstd", "-always-use-fragments"),
        ("-comp", "zstd", "-no-duplicates"),
        ("-comp", "gzip", "-no-xattrs"),
    ],
    ids=" ".join,
)
def test_every_form_of_layers(tmp_path: Path, options: tuple[str, ...]) -> None:
    def second(root: Path) -> None:
        (root / "usr/lib").mkdir(parents=True)
        (root / "usr/lib/more").write_bytes(b"more " * 70_000)
        os.setxattr(root / "usr/lib/more", "security.capability", CAPABILITY)
        whiteout(root / "usr/lib/gone")

    if "-no-xattrs" in options:
        directories, images = stack(tmp_path, base, base, options=options)
        merged(images, tmp_path / "merged.sqsh")
        assert shown(tmp_path / "merged.sqsh", tmp_path) == seen(applied(directories, tmp_path / "all"))
        return
    target = compare(tmp_path, base, second, options=options)
    if options == ("-comp", "lz4"):
        # Its lists of files are written uncompressed.
        return
    # What unsquashfs prints of the superblock is what it prints of a layer.
    words = [_superblock(image) for image in (target, tmp_path / "layer1.sqsh")]
    assert words[0] == words[1]


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        # Linux needs the larger dictionary, and finds filters by itself.
        (
            ("-comp", "xz", "-Xdict-size", "8K"),
            ("-comp", "xz", "-Xdict-size", "64K", "-Xbcj", "x86"),
            struct.pack("<II", 65536, 1),
        ),
        (("-comp", "xz", "-Xdict-size", "8K"), ("-comp", "xz"), b""),
        (("-comp", "lz4"), ("-comp", "lz4", "-Xhc"), struct.pack("<II", 1, 1)),
        (("-comp", "zstd", "-Xcompression-level", "1"), ("-comp", "zstd"), b""),
        (("-comp", "gzip", "-Xcompression-level", "1"), ("-comp", "gzip", "-Xwindow-size", "10"), b""),
    ],
    ids=["xz", "xz default", "lz4", "zstd", "gzip"],
)
def test_layers_of_different_levels(
    tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...], options: bytes
) -> None:
    # Files of both layers are left.
    def more(root: Path) -> None:
        (root / "more").write_bytes(b"more " * 100_000)

    directories, images = stack(tmp_path, base, more)
    for directory, image, given in zip(directories, images, (first, second), strict=True):
        squash(directory, image, *given)
    tree = merge([read_layer(image) for image in images])
    assert tree.form.options == options
    write(tree, tmp_path / "merged.sqsh", made_at=0)
    assert shown(tmp_path / "merged.sqsh", tmp_path) == seen(applied(directories, tmp_path / "applied"))


def _superblock(image: Path) -> list[str]:
    argv = ("unsquashfs", "-s", str(image))
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    varying = ("Creation", "Filesystem size", "Number of", "Found a valid", "Filesystem is")
    return [line for line in text.splitlines() if not line.startswith(varying)]


def test_what_files_share_is_copied_once(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)

    def twice(root: Path) -> None:
        (root / "one").write_bytes(content)
        (root / "two").write_bytes(content)
        # mksquashfs stores its beginning with that of the others.
        (root / "three").write_bytes(content[: 1 << 19])

    def small(root: Path) -> None:
        for number in range(20):
            (root / f"{number}").write_bytes(os.urandom(1000))

    def fewer(root: Path) -> None:
        for number in range(1, 20):
            whiteout(root / f"{number}")

    _, images = stack(tmp_path, twice, small, fewer)
    written = merged(images, tmp_path / "merged.sqsh")
    # One fragment holds the data of all small files; it is copied for the one that is left.
    assert 1 << 20 <= written.copied_bytes - (1 << 19) <= (1 << 20) + 25_000
    result = shown(tmp_path / "merged.sqsh", tmp_path)
    assert result["one"].content == result["two"].content == content


def test_data_that_no_file_needs_is_left_out(tmp_path: Path) -> None:
    def large(root: Path) -> None:
        for name in "abc":
            (root / name).write_bytes(os.urandom(1 << 20))

    _, images = stack(tmp_path, large, lambda root: whiteout(root / "b"))
    written = merged(images, tmp_path / "merged.sqsh")
    assert written.copied_bytes == 2 << 20
    assert written.size_bytes == (tmp_path / "merged.sqsh").stat().st_size


def test_layers_of_different_form_are_refused_by_name(tmp_path: Path) -> None:
    directories, images = stack(tmp_path, base, base)
    squash(directories[1], images[1], "-comp", "gzip", "-b", "64K")
    with pytest.raises(MixedLayersError) as error:
        merged(images, tmp_path / "merged.sqsh")
    assert error.value.quote == (
        f"{images[0]}: zstd, blocks of 131072 bytes",
        f"{images[1]}: gzip, blocks of 65536 bytes",
    )
    assert not (tmp_path / "merged.sqsh").exists()


def test_metadata_that_python_cannot_decompress_is_refused_with_a_way_out(tmp_path: Path) -> None:
    _, images = stack(tmp_path, base, options=("-comp", "lzo"))
    with pytest.raises(SquashfsError, match="compressed with lzo, which Python lacks") as error:
        read_layer(images[0])
    assert "-noI -noF -noX" in str(error.value)


@pytest.mark.parametrize("name", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
def test_what_a_layer_does_not_hold_itself_is_refused(tmp_path: Path, name: str) -> None:
    def moved(root: Path) -> None:
        base(root)
        os.setxattr(root / "usr/lib", name, b"/old")

    _, images = stack(tmp_path, base, moved)
    with pytest.raises(SquashfsError) as error:
        merged(images, tmp_path / "merged.sqsh")
    assert str(error.value).startswith(f"{images[1]}: /usr/lib has the attribute {name}")
    assert "metacopy=off" in str(error.value)


def test_edits_are_those_that_mksquashfs_makes_for_enroot(tmp_path: Path) -> None:
    def modes(root: Path) -> None:
        base(root)
        deep = root
        for number in range(20):
            deep /= f"deep{number}"
            deep.mkdir()
            (deep / "file").touch()
            for name in ("none", "execute", "group"):
                (deep / name).touch()
        for path in sorted(root.rglob("*"), reverse=True):
            mode = {"none": 0, "execute": 0o001, "group": 0o050}.get(path.name, 0o444)
            path.chmod(
                0o055 if path.is_dir() and path.name != "lib" else mode, follow_symlinks=False
            ) if not path.is_symlink() else None
            os.chown(path, 100_000, 100_001, follow_symlinks=False)
        os.setxattr(root / "etc/passwd", "user.some", b"thing")
        (root / "dev").mkdir()
        os.mknod(root / "dev/null", 0o020666, os.makedev(1, 3))
        (root / "dev/.hidden").touch()
        (root / ".dockerenv").touch()

    directories, images = stack(tmp_path, modes)
    actions = [word for action in rootfs.ACTIONS for word in ("-action", action)]
    excluded = ("-wildcards", "-e", *rootfs.EXCLUDE)
    options = ("-all-root", "-no-xattrs", *actions, *excluded)
    expected = squash(directories[0], tmp_path / "expected.sqsh", *options)
    edit = Edit(
        drop=("dev/*", ".dockerenv"),
        owner_reads=True,
        owner_writes_depth=16,
        all_root=True,
        xattrs=False,
    )
    merged(images, tmp_path / "merged.sqsh", edit)
    assert shown(tmp_path / "merged.sqsh", tmp_path) == shown(expected, tmp_path)


def test_owners_of_a_subordinate_range_become_those_of_the_image(tmp_path: Path) -> None:
    def owned(root: Path) -> None:
        for name, owner in (("root", 1000), ("first", 100_000), ("last", 165_535)):
            (root / name).touch()
            os.chown(root / name, owner, owner)
        os.link(root / "first", root / "link")
        os.chown(root, 1000, 1000)

    _, images = stack(tmp_path, owned)
    ranges = (IdRange(image=0, layer=1000, count=1), IdRange(image=1, layer=100_000, count=65_536))
    merged(images, tmp_path / "merged.sqsh", Edit(uids=ranges, gids=ranges))
    result = shown(tmp_path / "merged.sqsh", tmp_path)
    owners = {path: one.owner[0] for path, one in result.items()}
    assert owners == {".": 0, "root": 0, "first": 1, "link": 1, "last": 65_536}
    assert result["first"].links == ("first", "link")
    with pytest.raises(SquashfsError, match="/first belongs to user 100000, which is in no range"):
        merged(images, tmp_path / "x.sqsh", Edit(uids=ranges[:1], gids=ranges))


@pytest.mark.podman
def test_the_layers_of_an_image_of_podman(podman_storage: Podman, tmp_path: Path) -> None:
    if podman_storage.driver != "overlay":
        pytest.skip("the storage is not overlay")
    second = Layer().directory("data", 0o700).file("data/.wh.a").file("data/c", b"c")
    layers = (
        Layer().busybox().directory("data").file("data/a", b"a" * 200_000).file("data/b", b"b"),
        second.hardlink("data/d", "data/c"),
        Layer().directory("bin").file("bin/.wh..wh..opq").file("bin/own", b"own", 0o4755),
        Layer().file("data/.wh.b").fifo("pipe").device("null", 1, 3),
    )
    image_id = load(podman_storage, tmp_path / "layout", {}, *layers)
    form = ("--format", "{{json .GraphDriver.Data}}")
    inspect = podman_storage.command("image", "inspect", *form, image_id)
    driver = json.loads(command.capture(inspect).stdout)
    directories = [driver["UpperDir"], *driver["LowerDir"].split(":")][::-1]
    images = [
        squash(Path(directory), tmp_path / f"{number}.sqsh")
        for number, directory in enumerate(directories)
    ]
    merged(images, tmp_path / "merged.sqsh")
    result = shown(tmp_path / "merged.sqsh", tmp_path)
    root = command.capture(podman_storage.command("image", "mount", image_id)).stdout.strip()
    assert result == seen(Path(root))
    assert {path for path in result if not path.startswith("data/")} == {
        ".", "bin", "bin/own", "data", "pipe", "null",
    }  # fmt: skip
    command.capture(podman_storage.command("image", "unmount", image_id))
