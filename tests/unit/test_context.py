"""The build context: which ignore file counts, what it says, and what cannot be in a context.

What the patterns match is compared with podman itself in tests/integration.
"""

import os
import socket
from pathlib import Path

import pytest

from rc_tasks.errors import ProjectError
from rc_tasks.model import context
from rc_tasks.model.context import Entry, Kind

OURS = "image.sqsh\nimage.json\nenv.toml\nproject.toml\n.image.*.tmp.sqsh\n.image.json.*\n.env.toml.*\n"


def paths(directory: Path) -> list[str]:
    return [entry.path for entry in context.entries(directory)]


def test_entries_are_sorted_and_keep_their_kind_and_mode(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o750)
    (tmp_path / "a/b").write_text("x")
    (tmp_path / "a/b").chmod(0o640)
    (tmp_path / "a-b").write_text("x")
    (tmp_path / "a-b").chmod(0o4755)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "Dockerfile").write_text("FROM a\n")
    (tmp_path / "Dockerfile").chmod(0o644)
    assert list(context.entries(tmp_path)) == [
        Entry("Dockerfile", Kind.FILE, 0o644),
        Entry("a", Kind.DIRECTORY, 0o750),
        # podman copies neither set-user-ID nor set-group-ID.
        Entry("a-b", Kind.FILE, 0o755),
        Entry("a/b", Kind.FILE, 0o640),
        Entry("link", Kind.SYMLINK, 0o777),
    ]


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
        list(context.entries(tmp_path))


@pytest.mark.parametrize("patterns", ["", "*\n!sub\n"])
def test_pipes_and_sockets_are_told_unless_ignored(
    tmp_path: Path, patterns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dockerignore").write_text(patterns)
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub/pipe")
    with pytest.raises(ProjectError, match="sub/pipe"):
        context.entries(tmp_path)
    (tmp_path / "sub/pipe").unlink()
    # The path of a socket may have at most 107 bytes.
    monkeypatch.chdir(tmp_path / "sub")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(ProjectError, match="sub/socket"):
            context.entries(tmp_path)
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
        context.entries(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectError, match="Not a directory"):
        context.entries(tmp_path / "file")


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"gr\xfc\xdfe")).write_text("")
    assert [os.fsencode(path) for path in paths(tmp_path)] == [b"gr\xfc\xdfe"]
