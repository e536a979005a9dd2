"""`doit watch` with a stand-in for the build: when it builds again, and what it says."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rc_tasks.commands import watch
from rc_tasks.engine.watched import Inputs, look
from rc_tasks.tools import inotify
from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT, doit
from tests.support.terminal import Terminal

FILES = {
    "base/Dockerfile": "FROM scratch\n",
    "projects/app:1/Dockerfile": "FROM base\nCOPY . /\n",
    "projects/app:1/.containerignore": "*.log\n",
    "projects/app:1/file": "1",
}
Edit = Callable[[Path], object]


class Ended(Exception):
    """The test has seen enough builds."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(watch, "_POLL_S", 0.05)
    monkeypatch.setattr(watch, "_SETTLE_S", 0.15)
    return write_checkout(tmp_path / "imgs", FILES, 'runner = "local"')


@pytest.fixture(params=[False, True], ids=["inotify", "poll"])
def poll(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def require_builds(
    root: Path, expected: int, *, poll: bool, during: list[Edit], after: list[Edit]
) -> None:
    """Watch app:1, and assert how often it is built.

    Build N makes the edit `during[N]`, and `after[N]` comes a moment later.
    """
    count = 0
    ended = threading.Event()

    def build() -> int:
        nonlocal count
        if count < len(during):
            during[count](root)
        if count < len(after):
            threading.Timer(0.1, after[count], (root,)).start()
        count += 1
        return 0

    def see(seen: Inputs | None) -> Inputs:
        if ended.is_set():
            raise Ended
        return look(root, ("app:1",), seen)

    def end() -> None:
        deadline_s = time.monotonic() + 30
        while count < expected and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.5)
        ended.set()
        # inotify waits for an event.
        (root / "projects/app:1/end.log").touch()

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(Ended):
        watch.Watch(see, build, root).run(poll=poll)
    ending.join()
    assert count == expected


def write(path: str, text: str = "changed") -> Edit:
    return lambda root: (root / path).write_text(text)


def nothing(_root: Path) -> None:
    """No edit."""


def many(root: Path) -> None:
    for number in range(30):
        (root / f"projects/app:1/file{number}").write_text("1")
        time.sleep(0.01)


def saved(root: Path) -> None:
    """Save a file as vim does."""
    (root / "projects/app:1/4913").touch()
    (root / "projects/app:1/4913").unlink()
    (root / "projects/app:1/file").rename(root / "projects/app:1/file~")
    (root / "projects/app:1/file").write_text("2")
    (root / "projects/app:1/file~").unlink()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (write("projects/app:1/file"), "projects/app:1/file"),
        (write("projects/app:1/project.toml", "frozen = true\n"), "projects/app:1/project.toml"),
        (write("projects/app:1/Dockerfile", "FRM base\n"), "projects/app:1/Dockerfile"),
        (write("base/Dockerfile", "FROM scratch\nENV A=1\n"), "base/Dockerfile"),
        (saved, "projects/app:1/file"),
        (many, ", ".join(f"projects/app:1/file{n}" for n in (0, 1, 10, 11, 12)) + " and 25 more"),
    ],
    ids=["file", "project.toml", "broken", "base", "editor", "many"],
)
def test_a_change_leads_to_one_build(
    root: Path, poll: bool, edit: Edit, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    require_builds(root, 2, poll=poll, during=[], after=[edit])
    said = capsys.readouterr().out.splitlines()
    way = "polling every 0.05 s: --poll was given" if poll else "inotify"
    assert said[0] == f"changes are noticed by {way}"
    assert said[2] == f"changed: {words}"
    assert [line for line in said if line.startswith("changed")] == said[2:3]
    assert said[1].startswith("watching ") and said[1].endswith(" files of 2 images; Ctrl-C ends")
    assert len(said) == 4


def test_other_files_lead_to_none(root: Path, poll: bool) -> None:
    def edit(root: Path) -> None:
        for name in ("run.log", "image.sqsh", ".image.7.tmp.sqsh", ".file.swp"):
            (root / "projects/app:1" / name).touch()

    require_builds(root, 1, poll=poll, during=[], after=[edit])


def test_a_change_during_a_build_leads_to_another_one(root: Path, poll: bool) -> None:
    require_builds(root, 2, poll=poll, during=[write("projects/app:1/file")], after=[])


def test_what_a_build_writes_does_not(root: Path, poll: bool) -> None:
    """But it counts when a person edits it afterwards."""
    during = [write("projects/app:1/env.toml"), write("bases.lock", "")]
    after = [write("projects/app:1/env.toml", "mine")]
    require_builds(root, 2, poll=poll, during=during, after=after)


def test_a_change_that_is_undone_at_once_does_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_SETTLE_S", 0.4)

    def briefly(root: Path) -> None:
        (root / "projects/app:1/new").touch()
        time.sleep(0.15)
        (root / "projects/app:1/new").unlink()

    require_builds(root, 1, poll=False, during=[], after=[briefly])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "its limit fs.inotify.max_user_watches is reached"),
        (errno.EMFILE, "its limit fs.inotify.max_user_instances is reached"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_polling_replaces_an_inotify_that_fails(
    root: Path,
    number: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_directories: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(watch, "Events", refuse)
    require_builds(root, 2, poll=False, during=[], after=[write("projects/app:1/file")])
    said = capsys.readouterr().out
    assert f"\nchanges are noticed by polling every 0.05 s: inotify failed: {words}\n" in said
    assert said.count("polling") == 1


def test_a_network_file_system_is_polled(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = inotify.Blind(root, "lustre")
    monkeypatch.setattr(watch, "blind_spot", lambda _directories: blind)
    require_builds(root, 2, poll=False, during=[], after=[write("projects/app:1/file")])
    said = capsys.readouterr().out
    reason = f"{root} is lustre, where inotify misses changes of other nodes"
    assert said.startswith(f"changes are noticed by polling every 0.05 s: {reason}\n")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "NAME is missing"),
        (("ap:1",), "there is no image named 'ap:1' in this checkout"),
    ],
)
def test_a_name_is_needed(root: Path, argv: tuple[str, ...], told: str) -> None:
    ran = doit(root, "watch", *argv)
    assert ran.status == 3
    assert ran.text.startswith(f"ERROR: {told}")


@pytest.fixture
def broken(root: Path) -> Iterator[Terminal]:
    """`doit watch` of an image whose build fails at once, at a terminal."""
    write("projects/app:1/Dockerfile", "FRM base\n")(root)
    with Terminal((DOIT, "watch", "app:1"), root, {}, 120, 24) as shown:
        yield shown


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_cleanly_while_it_waits(broken: Terminal, number: signal.Signals | None) -> None:
    text = broken.shows(lambda text: text.endswith("; Ctrl-C ends"))
    # The error is that of `doit build:NAME`.
    assert "projects/app:1/Dockerfile:1" in text and "Traceback" not in text
    if number is None:
        broken.type("\x03")
    else:
        broken.signal(number)
    status, text = broken.end()
    assert status == 130
    assert text.endswith("interrupted")
