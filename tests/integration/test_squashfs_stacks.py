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
from rc_tasks.squashfs.neutral import is_neutral, neutral
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.tree import NO_XATTRS, Directory
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
OCI_KINDS = (*KINDS, "oci opaque", "oci whiteout", "oci whiteout")


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


@given(layers=stacks(OCI_KINDS), seed=st.integers(0, 1 << 32))
def test_layers_in_the_neutral_form_show_the_same(
    layers: list[list[tuple[str, str]]], seed: int
) -> None:
    require_tools("mksquashfs", "mount")
    require_root()
    scratch = Path(tempfile.mkdtemp(prefix="rc-stacks-"))
    try:
        chance = random.Random(seed)
        images, neutrals = [], []
        for number, entries in enumerate(layers):
            directory = scratch / str(number)
            directory.mkdir()
            fill(directory, entries, chance)
            images.append(read_layer(squash(directory, scratch / f"{number}.sqsh")))
            below = merge(images[:-1]).root if number else Directory(0o755, 0, 0, 0, NO_XATTRS)
            changed = scratch / f"{number}n.sqsh"
            write(neutral(images[-1], below), changed, made_at=0)
            neutrals.append(read_layer(changed))
            assert is_neutral(neutrals[-1])
        write(merge(images), scratch / "merged.sqsh", made_at=0)
        with ExitStack() as stack:
            expected = stack.enter_context(mounted(scratch / "merged.sqsh", scratch / "merged"))
            points = [
                stack.enter_context(mounted(layer.source.path, scratch / f"point{number}"))
                for number, layer in enumerate(neutrals)
            ]
            # With this option the kernel does not see what root's overlay keeps in attributes.
            found = stack.enter_context(overlaid(points, scratch / "overlay", ",userxattr"))
            assert seen(found) == seen(expected)
    finally:
        shutil.rmtree(scratch)
