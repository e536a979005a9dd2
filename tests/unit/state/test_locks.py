"""Locks: one holder at a time, over processes; who is gone is inherited from."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from msgspec import to_builtins

from rc_tasks.engine.run.diagnosis import diagnose
from rc_tasks.errors import RcError
from rc_tasks.state import logs
from rc_tasks.state.disk import files, locks, processes
from rc_tasks.state.disk.files import put_in_place, write_atomically
from rc_tasks.state.disk.locks import Holder, LockedError, LostLockError, held, holder
from rc_tasks.steps.error_report import ErrorReport


@pytest.fixture(autouse=True)
def short_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that looks old is watched for long; here nobody touches one but those who say so."""
    monkeypatch.setattr(locks, "_WATCH_S", 0.1)
    monkeypatch.setattr(locks, "_LOOK_S", 0.01)


def leave(
    path: Path, *, node: str = "", pid: int = 0, age_s: float = 0.0, space: str | None = None
) -> None:
    """A lock as somebody would have left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    here, where = os.uname().nodename, processes.space() if space is None else space
    made = Holder("podman:x", "somebody", node or here, pid, "17", "2026-01-02T03:04:05", where)
    path.write_text(json.dumps(to_builtins(made)))
    then = time.time() - age_s
    os.utime(path, (then, then))


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(("true",)) as process:
        process.wait()
    return process.pid


def test_a_held_lock_names_its_holder_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "x:1.json"
    with held(path, "podman:x:1"):
        found = holder(path)
        assert found is not None
        assert (found.step, found.pid, found.node) == ("podman:x:1", os.getpid(), os.uname().nodename)
        with pytest.raises(LockedError, match=r"has been running podman:x:1 since 20") as caught:
            held(path, "enroot:x:1").__enter__()
        assert caught.value.hint == "wait for it, then run the same command again"
    assert holder(path) is None
    assert list(path.parent.iterdir()) == []


def test_the_lock_is_given_back_when_the_work_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(KeyboardInterrupt), held(path, "podman:x"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "free"),
    [
        pytest.param({"pid": -1}, True, id="its process on this node has ended"),
        pytest.param({"node": "other", "pid": 1, "age_s": 61}, True, id="not touched for a minute"),
        pytest.param({"pid": -1, "space": "other"}, False, id="touched in another PID namespace"),
        pytest.param({"pid": -1, "space": ""}, False, id="touched by a process of an older version"),
        pytest.param({"pid": -1, "space": "other", "age_s": 61}, True, id="not touched there"),
        pytest.param({"node": "other", "pid": 1, "age_s": 50}, False, id="touched on another node"),
        pytest.param({"pid": os.getppid()}, False, id="its process runs"),
        pytest.param(
            {"pid": os.getppid(), "age_s": 61}, True, id="its number belongs to another process"
        ),
    ],
)
def test_a_lock_is_taken_over_only_from_who_is_gone(
    tmp_path: Path, left: dict[str, int | str], free: bool
) -> None:
    path = tmp_path / "x.json"
    leave(path, **{key: gone() if value == -1 else value for key, value in left.items()})
    assert (holder(path) is None) is free
    if not free:
        with pytest.raises(LockedError, match=r"somebody has been running podman:x .*, job 17"):
            held(path, "podman:x").__enter__()
        return
    with held(path, "podman:x"):
        found = holder(path)
        assert found is not None
        assert found.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_locks_of_ended_processes_of_this_host_are_cleared(tmp_path: Path) -> None:
    gone = subprocess.Popen(("true",))
    gone.wait()
    leave(tmp_path / "ended.json", pid=gone.pid)
    leave(tmp_path / "elsewhere.json", pid=gone.pid, node="another-host", age_s=1000)
    leave(tmp_path / "living.json", pid=os.getpid())
    locks.clear_ended(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.json", "living.json"]
    locks.clear_ended(tmp_path / "missing")


@pytest.mark.parametrize(
    ("age_s", "expected"), [(50, False), (61, True), (None, False)], ids=["touched", "untouched", "free"]
)
def test_a_lock_that_nobody_touches_for_a_minute_is_lost(
    tmp_path: Path, age_s: float | None, expected: bool
) -> None:
    path = tmp_path / "x.json"
    if age_s is not None:
        leave(path, pid=os.getppid(), age_s=age_s)
    assert locks.expired(path) is expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}', "\xff"])
def test_a_damaged_lock_counts_until_it_is_old(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    assert holder(path) is not None
    os.utime(path, (1, 1))
    assert holder(path) is None
    with held(path, "podman:x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_has_lost_the_lock_does_not_remove_the_heirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped for a long time goes on, while another one has taken over."""
    monkeypatch.setattr(locks, "_TOUCH_S", 0.01)
    path = tmp_path / "x.json"
    with held(path, "podman:x"):
        path.unlink()
        leave(path, node="other", pid=1, age_s=30)
        age_s = time.time() - path.stat().st_mtime
        time.sleep(0.1)
    found = holder(path)
    assert found is not None
    assert found.node == "other"
    assert time.time() - path.stat().st_mtime >= age_s


def take_over(path: Path) -> None:
    """What another process does with a lock that was not touched for a minute."""
    path.unlink()
    leave(path, node="other", pid=7, age_s=30)


def test_nothing_is_put_in_place_after_the_lock_was_lost(tmp_path: Path) -> None:
    path, record = tmp_path / "x.json", tmp_path / "record.json"
    with pytest.raises(LostLockError) as caught, held(path, "enroot:x"):
        write_atomically(record, "ours")
        take_over(path)
        record.write_text("theirs")
        write_atomically(record, "ours again")
    assert str(caught.value) == (
        f"{path}: enroot:x lost its lock: this process was stopped or cut off from the file server for"
        " over 60 s, and another process took the lock; somebody has it now for podman:x (on other,"
        " process 7)\n"
        "  next: what the other process published stays; run the same command again for what is left"
    )
    assert record.read_text() == "theirs"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["record.json", "x.json"]
    # Who holds no lock, or another one, has lost none.
    with held(tmp_path / "y.json", "enroot:y"):
        write_atomically(record, "another's")


def test_a_lock_that_was_lost_during_the_rename_is_noticed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is stopped between the question and the rename must not believe that all is well."""
    path, replace = tmp_path / "x.json", os.replace

    def late(temporary: str, final: Path) -> None:
        take_over(path)
        replace(temporary, final)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(LostLockError), held(path, "podman:x"):
        write_atomically(tmp_path / "record", "ours")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["record", "x.json"]


def test_a_step_that_lost_its_lock_is_tried_again_and_keeps_its_log(tmp_path: Path) -> None:
    log, why = tmp_path / "a.log", "/x.json: enroot:x lost its lock: why\n  next: wait"
    log.write_text(f"$ the command\n{why}\n")
    ErrorReport.of(LostLockError("enroot:x lost its lock: why", where="/x.json", hint="wait")).write(
        logs.error_report(log)
    )
    found = diagnose(1, log, None)
    assert (found.locked, found.lost_lock, found.final, found.text) == (True, True, False, why)
    ErrorReport.of(LockedError("somebody")).write(logs.error_report(log))
    assert (diagnose(1, log, None).locked, diagnose(1, log, None).lost_lock) == (True, False)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '{"kind": "nosuch", "text": "x"}', '{"kind": "failed"}', "9" * 5000]
)
def test_an_incomplete_error_report_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert ErrorReport.read(path) is None


def test_a_lock_that_was_lost_and_given_back_meanwhile_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    (tmp_path / "made").touch()
    with pytest.raises(LostLockError, match="; nobody has it now"), held(path, "enroot:x"):
        path.unlink()
        put_in_place(tmp_path / "made", tmp_path / "final")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["made"]


@pytest.mark.parametrize("error", [RcError("mine"), FileNotFoundError("mine")])
def test_what_fails_because_the_lock_was_lost_says_so(tmp_path: Path, error: Exception) -> None:
    """Who takes a lock over removes the files that it finds half written."""
    path = tmp_path / "x.json"
    with pytest.raises(LostLockError) as caught, held(path, "enroot:x"):
        take_over(path)
        raise error
    assert caught.value.__cause__ is error
    with pytest.raises(type(error), match="mine"), held(tmp_path / "y.json", "enroot:y"):
        raise error


def test_of_two_locks_of_a_thread_each_counts_and_those_of_others_do_not(tmp_path: Path) -> None:
    outer, inner, record = tmp_path / "x.json", tmp_path / "y.json", tmp_path / "record"
    with held(outer, "podman:x"):
        with pytest.raises(LostLockError, match="podman:y"), held(inner, "podman:y"):
            take_over(inner)
            write_atomically(record, "1")
        write_atomically(record, "2")
        take_over(outer)
        other = threading.Thread(target=write_atomically, args=(record, "3"))
        other.start()
        other.join()
    assert record.read_text() == "3"


def test_a_lock_that_looks_old_is_watched_before_it_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the holder's node is an hour behind, which on Lustre is the time of its touches."""
    monkeypatch.setattr(locks, "_WATCH_S", 5.0)
    path = tmp_path / "x.json"
    leave(path, node="other", pid=1, age_s=3600)
    sleep, touched = time.sleep, []

    def touch(seconds: float) -> None:
        touched.append(seconds)
        os.utime(path, (time.time() - 3595, time.time() - 3595))
        sleep(0.001)

    monkeypatch.setattr(time, "sleep", touch)
    assert not locks.expired(path) and not locks.abandoned(path)
    assert locks.holder(path) is None
    assert locks.living_holder(path) == locks.Holder(**json.loads(path.read_text()))
    with pytest.raises(LockedError, match="somebody has been running podman:x"):
        held(path, "podman:x").__enter__()
    assert touched


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links_has_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(source: object, destination: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "x.json"
    leave(path, pid=gone())
    with held(path, "podman:x"):
        found = holder(path)
        assert found is not None and found.pid == os.getpid()
        assert path.stat().st_mode & 0o777 == 0o644
        with pytest.raises(LockedError, match="has been running podman:x since"):
            held(path, "podman:x").__enter__()
        write_atomically(tmp_path / "record", "1")
    assert [each.name for each in tmp_path.iterdir()] == ["record"]
    assert not files.has_links(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["record"]
    monkeypatch.undo()
    assert files.has_links(tmp_path)


def test_a_lock_of_a_later_version_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    leave(path, node="other", pid=7)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "green"}))
    found = holder(path)
    assert found is not None and (found.user, found.pid) == ("somebody", 7)


def test_a_holder_that_works_for_long_keeps_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_TOUCH_S", 0.01)
    path = tmp_path / "x.json"
    with held(path, "podman:x"):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < time.time() - 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)


CRITICAL = """
import os, sys, time
from pathlib import Path
from rc_tasks.state.disk.locks import LockedError, held
lock, inside, done = map(Path, sys.argv[1:])
deadline = time.monotonic() + 2
while time.monotonic() < deadline:
    try:
        with held(lock, "podman:x"):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails when somebody else is inside
            time.sleep(0.001)
            inside.unlink()
            with done.open("a") as file:
                file.write("x")
    except LockedError:
        time.sleep(0.0005)
"""


NO_LINKS = """
import os
def link(*arguments):
    raise PermissionError(1, "Operation not permitted")
os.link = link
"""


@pytest.mark.parametrize("script", [CRITICAL, NO_LINKS + CRITICAL], ids=["link", "no hard links"])
def test_of_many_processes_one_is_inside_at_a_time(tmp_path: Path, script: str) -> None:
    """They begin with a lock that a dead process left, and race to inherit it."""
    lock = tmp_path / "locks" / "x.json"
    leave(lock, pid=gone())
    argv = (sys.executable, "-c", script, lock, tmp_path / "inside", tmp_path / "done")
    processes = [subprocess.Popen(argv, stderr=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    assert len((tmp_path / "done").read_text()) > 5
    assert list(lock.parent.iterdir()) == []


def test_who_waits_says_for_whom_and_gets_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LOOK_S", 0.01)
    said: list[str] = []
    # pytest's capture cannot be read while another thread prints.
    monkeypatch.setattr(locks, "print", lambda line, **_: said.append(line), raising=False)
    lock = tmp_path / "base.lock"
    entered = threading.Event()

    def wait() -> None:
        with held(lock, "the pull of debian:12", wait=True):
            entered.set()

    with held(lock, "the pull of debian:12"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        deadline = time.monotonic() + 10
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "waiting for " in said[0] and "the pull of debian:12 since " in said[0]
        assert not entered.is_set()
    waiting.join()
    assert entered.is_set()
    assert len(said) == 1, "it is said once"
    assert list(tmp_path.iterdir()) == []


def test_a_file_server_that_fails_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(descriptor: int) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyError, match="mine"), held(tmp_path / "x.json", "podman:x"):
        monkeypatch.setattr(os, "fstat", stale)
        raise KeyError("mine")
    monkeypatch.undo()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_of_two_heirs_of_an_old_lock_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is just going to remove what a process of last week has left when the other one comes."""
    path = tmp_path / "x.json"
    leave(path, node="other", pid=1, age_s=7 * 86_400)
    unlink = Path.unlink
    told: list[str] = []

    def slowly(self: Path, missing_ok: bool = False) -> None:
        if self == path and not told:
            with pytest.raises(LockedError) as caught:
                held(path, "podman:x").__enter__()
            told.append(str(caught.value))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", slowly)
    with held(path, "podman:x"):
        assert told == [
            f"{path}: another process is reclaiming this lock, whose holder is dead\n"
            "  next: run the same command again in a minute"
        ]
    assert list(tmp_path.iterdir()) == []


def test_an_heir_that_was_killed_is_waited_for_no_longer_than_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    leave(path, pid=gone())
    found = locks._look(path)
    assert found is not None
    (tmp_path / f".x.json.claim-{found.mark}").touch()
    with pytest.raises(LockedError, match="another process is reclaiming"):
        held(path, "podman:x").__enter__()
    monkeypatch.setattr(locks, "server_time_s", lambda _: time.time() + 61)
    with held(path, "podman:x"):
        pass
    assert list(tmp_path.iterdir()) == []
