"""Merged SquashFS layers, beside what the kernel's overlayfs shows of the same directories."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.squashfs.edit import Edit
from rc_tasks.squashfs.merge import merge
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.write import Written, write
from tests.support.layers import mounted, overlaid, require_root, seen, squash
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
    """Merge layers; assert that the kernel shows of the result what overlayfs shows of the layers."""
    directories, images = stack(tmp_path, *makes, options=options)
    target = tmp_path / "merged.sqsh"
    merged(images, target)
    with (
        overlaid(directories, tmp_path / "overlay") as expected,
        mounted(target, tmp_path / "m") as found,
    ):
        assert seen(found) == seen(expected)
        for path, one in seen(found).items():
            if one.links:
                assert (found / path).lstat().st_nlink == len(one.links)
    unpacked(target, tmp_path)
    return target


def unpacked(image: Path, tmp_path: Path) -> None:
    """Assert that unsquashfs reads an image without a complaint, and sees what the kernel sees."""
    argv = ("unsquashfs", "-no-progress", "-dest", tmp_path / "unpacked", image)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with mounted(image, tmp_path / "m") as found:
        assert seen(tmp_path / "unpacked") == seen(found)


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
