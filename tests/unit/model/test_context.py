"""The build context: which ignore file counts, what it says, and what cannot be in a context.

What the patterns match is compared with podman itself in tests/integration.
"""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.errors import ProjectError
from rc_tasks.model.graph import context

OURS = "image.sqsh\nimage.json\nenv.toml\nproject.toml\n.image.*.tmp.sqsh\n.image.json.*\n.env.toml.*\n"


def paths(directory: Path) -> list[str]:
    return list(context.listing(directory).paths)


def test_paths_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_text("x")
    (tmp_path / "a-b").write_text("x")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "Dockerfile").write_text("FROM a\n")
    assert paths(tmp_path) == ["Dockerfile", "a", "a-b", "a/b", "link"]


def replaced(path: Path) -> None:
    """Content of the same size and time in another file, as `rsync -t` and `mv` leave it."""
    status = path.stat()
    path.unlink()
    path.write_text("y")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "size": lambda root: (root / "sub/f").write_text("xx"),
    "time": lambda root: os.utime(root / "sub/f", (1, 1)),
    "mode": lambda root: (root / "sub/f").chmod(0o755),
    "inode": lambda root: replaced(root / "sub/f"),
    "added": lambda root: (root / "sub/g").write_text("x"),
    "added directory": lambda root: (root / "sub/d").mkdir(),
    "removed": lambda root: (root / "sub/f").unlink(),
    "renamed": lambda root: (root / "sub/f").rename(root / "sub/g"),
    "moved up": lambda root: (root / "sub/f").rename(root / "f"),
    "mode of a directory": lambda root: (root / "sub").chmod(0o700),
    "target of a link": lambda root: ((root / "link").unlink(), (root / "link").symlink_to("g")),
    "file made a directory": lambda root: ((root / "sub/f").unlink(), (root / "sub/f").mkdir()),
    "shown": lambda root: (root / ".dockerignore").write_text("out\n!out/f\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_changes_gives_another_signature(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    for name in ("sub/f", "out/f", "other/f"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to("f")
    (tmp_path / ".dockerignore").write_text("out\n")
    before = context.listing(tmp_path)
    # Neither is in the image, nor is what becomes of the directories' times.
    (tmp_path / "out/g").write_text("x")
    (tmp_path / "image.sqsh").write_text("x")
    assert context.listing(tmp_path) == before
    time.sleep(0.01)
    change(tmp_path)
    assert context.listing(tmp_path).signature != before.signature


def test_an_empty_directory_is_an_empty_context(tmp_path: Path) -> None:
    assert paths(tmp_path) == []
    assert context.ignore_text(tmp_path) == OURS


def test_our_own_files_are_never_in_it_at_the_top_and_nothing_brings_them_back(tmp_path: Path) -> None:
    ours = (
        "image.sqsh",
        "image.json",
        "env.toml",
        "project.toml",
        ".image.0123456789abcdef.tmp.sqsh",
        ".image.json.x",
    )
    (tmp_path / "sub").mkdir()
    for name in (*ours, ".env.toml.tmp", "sub/env.toml", "image.sqsh.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / ".dockerignore").write_text("!**\n!*.sqsh\n!env.toml\n!.*\n")
    assert paths(tmp_path) == [".dockerignore", "image.sqsh.txt", "sub", "sub/env.toml"]
    assert context.ignore_text(tmp_path).endswith(OURS)


@pytest.mark.parametrize(
    ("present", "kept"),
    [
        ((".dockerignore",), ".dockerignore"),
        ((".dockerignore", ".containerignore"), ".containerignore"),
        ((".dockerignore", ".containerignore", "Dockerfile.dockerignore"), "Dockerfile.dockerignore"),
        ((".containerignore", "Dockerfile.containerignore"), "Dockerfile.containerignore"),
    ],
)
def test_one_ignore_file_counts(tmp_path: Path, present: tuple[str, ...], kept: str) -> None:
    for name in present:
        (tmp_path / name).write_text(f"not-for{name}\n")
        (tmp_path / f"not-for{name}").write_text("")
    assert [path for path in paths(tmp_path) if path.startswith("not-for")] == sorted(
        f"not-for{name}" for name in present if name != kept
    )


def test_the_ignore_file_may_bear_the_name_of_a_containerfile(tmp_path: Path) -> None:
    for name in ("Containerfile.dockerignore", "Dockerfile.dockerignore", ".containerignore"):
        (tmp_path / name).write_text(f"not-for-{name}\n")
    ours, theirs = (context.ignore_text(tmp_path, name) for name in ("Containerfile", "Dockerfile"))
    assert ours == f"not-for-Containerfile.dockerignore\n{OURS}"
    assert theirs == f"not-for-Dockerfile.dockerignore\n{OURS}"


def test_an_empty_containerignore_still_wins(tmp_path: Path) -> None:
    (tmp_path / ".containerignore").write_text("")
    (tmp_path / ".dockerignore").write_text("*\n")
    assert paths(tmp_path) == [".containerignore", ".dockerignore"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a", "a\n"),
        ("/a/./b//", "a/b\n"),
        ("  ! /a ", "!a\n"),
        ("# comment", ""),
        (" # no comment", "\\# no comment\n"),
        ("a/..", ""),
        ("a+b(1)", "a\\+b\\(1\\)\n"),
        ("\\!a", "\\!a\n"),
        ("!!a", "!\\!a\n"),
        ("\\a", "a\n"),
        ("**/*.l?g", "**/*.l?g\n"),
        ("[^a-c*]", "[^a-c\\*]\n"),
        ("größe", "größe\n"),
    ],
)
def test_the_ignore_file_is_written_so_that_builders_agree(
    tmp_path: Path, pattern: str, text: str
) -> None:
    (tmp_path / ".dockerignore").write_text(f"\ufeffx\r\n{pattern}\r\n", newline="")
    assert context.ignore_text(tmp_path) == f"x\n{text}{OURS}"
    # Reading what was written changes nothing any more.
    (tmp_path / ".dockerignore").write_text(f"x\n{text}")
    assert context.ignore_text(tmp_path) == f"x\n{text}{OURS}"


@pytest.mark.parametrize("pattern", ["[", "[]", "[]a]", "[a", "[a-]", "[z-a]", "a\\", "[\\", "!", "! "])
def test_malformed_patterns_are_told_with_their_line(tmp_path: Path, pattern: str) -> None:
    (tmp_path / ".dockerignore").write_text(f"a\n{pattern}\n")
    with pytest.raises(ProjectError) as caught:
        context.ignore_text(tmp_path)
    assert caught.value.where == f"{tmp_path}/.dockerignore:2"
    assert caught.value.hint


def test_patterns_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_bytes(b"# gr\xfc\xdfe\ngr\xfc\xdfe\n")
    with pytest.raises(ProjectError, match=r"\.dockerignore:2: .*not UTF-8"):
        context.listing(tmp_path)


@pytest.mark.parametrize("patterns", ["", "*\n!sub\n"])
def test_pipes_and_sockets_are_told_unless_ignored(
    tmp_path: Path, patterns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dockerignore").write_text(patterns)
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub/pipe")
    with pytest.raises(ProjectError, match="sub/pipe"):
        context.listing(tmp_path)
    (tmp_path / "sub/pipe").unlink()
    # The path of a socket may have at most 107 bytes.
    monkeypatch.chdir(tmp_path / "sub")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(ProjectError, match="sub/socket"):
            context.listing(tmp_path)
    (tmp_path / ".dockerignore").write_text("sub/socket\n")
    assert "sub" in paths(tmp_path)


def test_ignored_directories_are_not_read(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git/pipe")
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data/pipe")
    (tmp_path / "src/data").mkdir(parents=True)
    (tmp_path / "src/data/keep").write_text("")
    (tmp_path / ".dockerignore").write_text("*\n!src/data/keep\n")
    assert paths(tmp_path) == ["src/data/keep"]


def test_a_directory_that_is_missing_or_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="does not exist"):
        context.listing(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectError, match="Not a directory"):
        context.listing(tmp_path / "file")


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"gr\xfc\xdfe")).write_text("")
    assert [os.fsencode(path) for path in paths(tmp_path)] == [b"gr\xfc\xdfe"]
