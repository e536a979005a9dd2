"""Modes that lock readers out: who is told, in what words, and where a mode is a person's own choice."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from rc_tasks.commands import doctor
from rc_tasks.engine.session import Session
from rc_tasks.state import rights
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk import locks, reading
from rc_tasks.state.disk.files import refused
from rc_tasks.state.disk.trust import user
from rc_tasks.state.judge import Judge
from rc_tasks.state.published.verify import Verification
from rc_tasks.state.records.records import Step
from rc_tasks.state.store.garbage import last_used, unneeded
from rc_tasks.steps.doctor.finding import Level
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import DOIT
from tests.support.tools import limited

FILES = {"base/Dockerfile": "FROM scratch\nCOPY . /\n", "base/data": "data\n"}
ME = user(os.geteuid())


@pytest.fixture
def official(tmp_path: Path) -> Path:
    root = tmp_path / "official ümgs"
    write_checkout(root, FILES, f'images_root = "{root}"')
    pretend_built(root)
    return root


def opened(root: Path) -> Session:
    checkout = open_checkout(root, {})
    return Session(checkout, Judge(checkout))


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "no", tmp_path / "file/below", tmp_path / "no/below"):
        assert reading.content(path) is None
        assert reading.names(path) == []
        assert reading.status(path) is None
    assert reading.content(tmp_path) is None
    assert reading.names(tmp_path / "file") == []
    assert reading.content(tmp_path / "file") == b"x"
    assert reading.names(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
def test_what_cannot_be_read_is_never_taken_for_missing(
    official: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing file server, as much as a mode: an image was built again for it."""

    def fail(path: object, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), os.fspath(path))  # type: ignore[call-overload]

    judge = opened(official).judge
    monkeypatch.setattr(reading, "read_bytes", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        judge.image("base")
    told = refused(raised.value)
    assert told is not None and str(told.where).endswith(".rc/state/podman:base.json") and told.hint


def test_the_command_is_for_the_owner(official: Path) -> None:
    for path, command in (
        (official / ".rc/state/podman:base.json", f"chmod -R u+rX '{official}/.rc'"),
        (official / ".rc/store", f"chmod -R u+rX '{official}/.rc'"),
        (official / "base/image.sqsh", f"chmod u+r '{official}/base/image.sqsh'"),
        (official / "base", f"chmod u+rx '{official}/base'"),
    ):
        mode = path.stat().st_mode
        path.chmod(0)
        below = path / "below" if path.is_dir() else path
        program = (
            "import sys; from pathlib import Path; from rc_tasks.state.disk.reading import denied;"
            "found = denied(Path(sys.argv[1])); print(found.where, found.what, found.hint, sep='|')"
        )
        python = Path(DOIT).with_name("python")
        argv = (*limited(), python, "-c", program, below)
        told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        path.chmod(mode)
        what = f"cannot be read: Permission denied (owner {ME}, mode 0000)"
        assert told == f"{path}|{what}|{command}\n"
    assert reading.denied(official / ".rc/state") is None
    assert reading.denied(official / "no such") is None


@pytest.mark.parametrize(
    ("mode", "closed"), [(0o644, False), (0o640, False), (0o604, False), (0o600, True), (0o400, True)]
)
def test_an_official_image_that_others_cannot_read_is_named(
    official: Path, mode: int, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a host where the test's group is one of several people.
    monkeypatch.setattr(rights, "is_private", lambda gid, uid: False)
    artifact = official / "base/image.sqsh"
    artifact.chmod(mode)
    session = opened(official)
    words = "only the owner may read image.sqsh"
    assert session.judge.image("base").reasons == ((words,) if closed else ())
    notes = Verification(session.checkout, lambda _size: None, 1).verify("base").notes
    shown = f"base/image.sqsh (owner {ME}, mode {mode:04o})"
    note = f"{shown} locks everybody else out: chmod go+r '{artifact}'"
    assert (note in notes) is closed
    found = [
        finding
        for finding in doctor.host_findings(session)
        if finding.what.startswith("only the owner may read")
    ]
    assert bool(found) is closed
    if closed:
        assert found[0].level is Level.WARNING
        assert found[0].what.endswith(f"may read {shown}: jobs and clones of other users fail")
        assert found[0].hint == (
            f"chmod -R go+rX '{official}', and `umask 022` before the next build"
            " (002 where a group shares it)"
        )


def test_a_users_private_group_is_nobody_else(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (official / "base/image.sqsh").chmod(0o640)
    monkeypatch.setattr(rights, "is_private", lambda gid, uid: True)
    assert opened(official).judge.image("base").reasons


def test_modes_in_a_clone_are_its_owners_choice(official: Path, tmp_path: Path) -> None:
    clone = write_checkout(tmp_path / "clone", FILES, f'images_root = "{official}"')
    pretend_built(clone)
    for path in ("base/image.sqsh", ".rc/state/podman:base.json"):
        (clone / path).chmod(0o600)
    session = opened(clone)
    assert session.judge.image("base").reasons == ()
    assert not [each for each in doctor.host_findings(session) if "only the owner" in each.what]


def test_state_of_the_official_checkout_that_is_closed_is_named(official: Path) -> None:
    (official / ".rc").chmod(0o700)
    findings = [finding.what for finding in doctor.host_findings(opened(official))]
    told = [what for what in findings if "only the owner" in what]
    assert told == [
        f"only the owner may read .rc (owner {ME}, mode 0700): jobs and clones of other users fail"
    ]


@pytest.mark.parametrize(("mask", "closing"), [(0o077, "0077"), (0o022, ""), (0o002, ""), (0o027, "")])
def test_a_umask_that_locks_others_out(
    official: Path, mask: int, closing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "is_private", lambda gid, uid: False)
    before = os.umask(mask)
    try:
        assert rights.closing_umask(opened(official).checkout) == closing
    finally:
        os.umask(before)


def test_a_run_that_publishes_warns_of_the_umask_once(official: Path) -> None:
    def run(mask: int) -> str:
        argv = (DOIT, "env:base")
        environment = os.environ | {"RC_RUNNER": "local"}
        done = subprocess.run(
            argv, cwd=official, env=environment, umask=mask, capture_output=True, text=True, check=True
        )
        return done.stderr

    template = official / "templates/env.toml.j2"
    template.write_text(template.read_text() + "# one line more\n")
    assert run(0o077) == (
        "warning: with umask 0077, other users cannot read the images that this run publishes, or start"
        " jobs from them\n"
        "  next: to share the images, press Ctrl-C, run `umask 022` (002 where a group shares the"
        " checkout), then doit again\n"
    )
    assert run(0o077) == "", "nothing is published"
    template.write_text(template.read_text() + "# another line\n")
    assert run(0o022) == ""


def test_the_garbage_collector_takes_nothing_that_it_cannot_judge(
    official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another member's image is made of, or their build relies on, looked as if unneeded."""
    store = open_checkout(official, {}).store
    image = next((store.directory / "images").iterdir())
    allowed = os.listdir

    def listed(path: str | Path) -> list[str]:
        if str(path).startswith(str(image)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return allowed(path)

    used_ns = last_used(store)
    assert unneeded(store, used_ns, (), 0.0).images == {}
    monkeypatch.setattr(os, "listdir", listed)
    with pytest.raises(PermissionError):
        unneeded(store, used_ns, (), 0.0)


@pytest.mark.parametrize("setgid", [0, 0o2000], ids=oct)
def test_others_can_read_what_a_writer_to_the_store_relies_on(official: Path, setgid: int) -> None:
    """In a directory of a group, what is made there stays the group's."""
    store = open_checkout(official, {}).store
    store.directory.chmod(0o755 | setgid)
    before = os.umask(0o022)
    try:
        with store.scratch() as scratch:
            assert scratch.stat().st_mode & 0o7777 == 0o755 | setgid
            (scratch / "wanted").write_text("abc def")
            assert store.wanted() == {"abc", "def"}
    finally:
        os.umask(before)


def test_a_lock_that_may_not_be_read_is_no_builder(official: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from rc_tasks.state.disk.locks import holder;"
        "print(holder(Path(sys.argv[1])))"
    )
    directory = tmp_path / "locks"
    directory.mkdir(mode=0)
    argv = (*limited(), Path(DOIT).with_name("python"), "-c", program, directory / "base.json")
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    directory.chmod(0o700)
    assert "PermissionError" in done.stderr and not done.stdout
    assert locks.holder(directory / "base.json") is None


def test_records_say_whether_they_are_there(official: Path) -> None:
    records = open_checkout(official, {}).records
    assert records.version(Step.PODMAN, "base") is not None
    assert records.version(Step.PODMAN, "other") is None
    assert records.failure(Step.PODMAN, "base") is None
