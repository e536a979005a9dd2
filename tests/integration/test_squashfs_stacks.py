"""Random stacks of layers: merged as SquashFS files, and as the kernel's overlayfs shows them."""

import os
import random
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rc_tasks.squashfs.merge import merge
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.reader_kinds import Readers
from rc_tasks.squashfs.readers import readers
from rc_tasks.squashfs.write import write
from tests.support.layers import mounted, overlaid, require_root, seen, squash
from tests.support.tools import require_tools

# Few names, so that layers meet; the entries of a layer are made in this order.
NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
KINDS = (
    "file",
    "large",
    "directory",
    "opaque",
    "symlink",
    "pipe",
    "device",
    "whiteout",
    "whiteout",
    "link",
    "xattr",
)
OCI_KINDS = ("oci opaque", "user opaque", "user opaque", "oci whiteout")


def stacks(kinds: tuple[str, ...]) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    return st.lists(
        st.lists(st.tuples(NAMES, st.sampled_from(kinds)), max_size=12), min_size=1, max_size=4
    )


def fill(root: Path, entries: list[tuple[str, str]], chance: random.Random) -> None:
    """Make the entries whose parent is a directory; set modes, owners and times at random."""
    files: list[Path] = []
    for name, kind in entries:
        path = root / name
        parents = [parent for parent in path.parents if parent.is_relative_to(root)]
        if os.path.lexists(path) or not all(_may_be_directory(parent) for parent in parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "file" | "xattr":
                path.write_bytes(chance.randbytes(chance.randrange(3000)))
                files.append(path)
            case "large":
                path.write_bytes(chance.randbytes(9000) * chance.randrange(1, 40))
                files.append(path)
            case "directory":
                path.mkdir()
            case "opaque":
                path.mkdir()
                os.setxattr(path, "trusted.overlay.opaque", b"y")
            case "user opaque":
                path.mkdir()
                os.setxattr(path, "user.overlay.opaque", b"y")
            case "oci opaque":
                path.mkdir()
                (path / ".wh..wh..opq").touch()
            case "oci whiteout":
                (path.parent / f".wh.{path.name}").touch()
            case "symlink":
                path.symlink_to(chance.choice(("a", "b/c", "/nowhere")))
            case "pipe":
                os.mkfifo(path)
            case "device":
                os.mknod(path, 0o060640, os.makedev(chance.randrange(1, 300), chance.randrange(300)))
            case "whiteout":
                os.mknod(path, 0o020000, 0)
            case "link" if files:
                path.hardlink_to(chance.choice(files))
        if kind == "xattr":
            os.setxattr(path, "user.some", chance.randbytes(chance.randrange(20)))
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(chance.randrange(0o10000))
        os.chown(path, chance.randrange(3), chance.randrange(70_000), follow_symlinks=False)
        time_s = chance.randrange(1 << 31)
        os.utime(path, (time_s, time_s), follow_symlinks=False)


def _may_be_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() if os.path.lexists(path) else True


@given(layers=stacks(KINDS), seed=st.integers(0, 1 << 32))
def test_a_merge_is_what_overlayfs_shows(layers: list[list[tuple[str, str]]], seed: int) -> None:
    require_tools("mksquashfs", "mount")
    require_root()
    scratch = Path(tempfile.mkdtemp(prefix="rc-stacks-"))
    try:
        chance = random.Random(seed)
        directories, images = [], []
        options = chance.choice((("-comp", "gzip", "-b", "4K"), ("-comp", "zstd")))
        for number, entries in enumerate(layers):
            directory = scratch / str(number)
            directory.mkdir()
            fill(directory, entries, chance)
            directories.append(directory)
            images.append(read_layer(squash(directory, scratch / f"{number}.sqsh", *options)))
        write(merge(images), scratch / "merged.sqsh", made_at=0)
        with (
            overlaid(directories, scratch / "overlay") as expected,
            mounted(scratch / "merged.sqsh", scratch / "merged") as found,
        ):
            result = seen(found)
            assert result == seen(expected)
            for path, one in result.items():
                assert not one.links or (found / path).lstat().st_nlink == len(one.links)
    finally:
        shutil.rmtree(scratch)


@given(layers=stacks((*KINDS, *OCI_KINDS)), seed=st.integers(0, 1 << 32))
def test_whoever_can_mount_layers_sees_what_a_merge_gives(
    layers: list[list[tuple[str, str]]], seed: int
) -> None:
    require_tools("mksquashfs", "mount")
    require_root()
    scratch = Path(tempfile.mkdtemp(prefix="rc-stacks-"))
    try:
        chance = random.Random(seed)
        images = []
        for number, entries in enumerate(layers):
            directory = scratch / str(number)
            directory.mkdir()
            fill(directory, entries, chance)
            images.append(read_layer(squash(directory, scratch / f"{number}.sqsh")))
        write(merge(images), scratch / "merged.sqsh", made_at=0)
        able = [readers(image) for image in images]
        with ExitStack() as stack:
            expected = stack.enter_context(mounted(scratch / "merged.sqsh", scratch / "merged"))
            points = [
                stack.enter_context(mounted(image.source.path, scratch / f"point{number}"))
                for number, image in enumerate(images)
            ]
            for who, options in ((Readers.ROOT, ""), (Readers.USERS, ",userxattr")):
                if set(able) <= {who, Readers.EVERYBODY}:
                    found = stack.enter_context(overlaid(points, scratch / who, options))
                    assert seen(found) == seen(expected)
    finally:
        shutil.rmtree(scratch)
