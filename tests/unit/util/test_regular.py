"""A pipe, a device or an endless file where we read one: told at once, whoever has put it there."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.errors import RcError
from rc_tasks.model.graph import context
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from rc_tasks.util.safe_read import open_regular, read_bytes
from tests.support.checkouts import pretend_built, write_checkout

FILES = {
    "projects/a:1/Dockerfile": "FROM scratch\nCOPY x /\n",
    "projects/a:1/x": "1\n",
    "projects/a:1/project.toml": "",
    "projects/a:1/.containerignore": "",
}


def bind(path: Path) -> None:
    """Make a socket; its path is short where it is bound."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


ODD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": bind,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "directory": Path.mkdir,
    "too large": lambda path: (path.touch(), os.truncate(path, 300_000_000))[0],
}
odd = pytest.mark.parametrize("make", ODD.values(), ids=ODD)


@odd
def test_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")
    with pytest.raises(OSError):
        read_bytes(tmp_path / "a")


def test_what_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "b") == b"x" * 100_000
    with open_regular(str(tmp_path / "a")) as file:
        assert file.read(3) == b"xxx"


def test_of_a_directory_is_said_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        read_bytes(tmp_path)


def test_a_file_that_grows_all_the_time_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a", os.read
    path.write_bytes(b"x" * 1000)

    def read(descriptor: int, size_bytes: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"y" * 1000)
        return real(descriptor, min(size_bytes, 700))

    monkeypatch.setattr(os, "read", read)
    assert read_bytes(path) == b"x" * 1000


@odd
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "path", ["Dockerfile", "project.toml", ".containerignore", "env.toml", "image.json", "image.sqsh"]
)
def test_in_place_of_a_file_of_a_project(
    tmp_path: Path, path: str, make: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    """The image is broken or stale then, and all others are as they were."""
    root = write_checkout(tmp_path / "c", {**FILES, "projects/b:1/Dockerfile": "FROM scratch\n"})
    pretend_built(root)
    place = root / "projects/a:1" / path
    place.unlink()
    make(place)
    checkout = open_checkout(root, {})
    judge = Judge(checkout)
    for step in Step:
        if "a:1" in checkout.graph.images:
            try:
                judge.inputs(step, "a:1")
            except RcError as error:
                assert path in str(error)
        assert judge.inputs(step, "b:1")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_in_the_context(tmp_path: Path, kind: str) -> None:
    make = {"pipe": os.mkfifo, "socket": bind, "device": device}[kind]
    make(tmp_path / "odd")
    with pytest.raises(RcError, match="a socket, a pipe or a device, which cannot be copied"):
        context.listing(tmp_path)
    (tmp_path / ".containerignore").write_text("odd\n")
    assert context.listing(tmp_path).paths == (".containerignore",)


def test_loops_of_links_in_the_context(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, target in (("a", "b"), ("b", "a"), ("sub/up", ".."), ("all", "/")):
        (tmp_path / name).symlink_to(target)
    assert set(context.listing(tmp_path).paths) == {"a", "b", "sub", "sub/up", "all"}


def device(path: Path) -> None:
    """As root alone can make one."""
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
