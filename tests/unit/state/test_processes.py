"""Process identity: what lives in another PID namespace of this host is neither robbed nor swept."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.state.disk import processes
from rc_tasks.state.disk.locks import holder

# A process that is still running makes a file while the directory is removed.
NOT_EMPTY = """
import os, shutil, sys
from pathlib import Path
from rc_tasks.state.disk.files import temporary_directory
rmdir = os.rmdir
def with_new_file(path, *, dir_fd=None):
    if path == "images":
        os.close(os.open("images/new", os.O_CREAT, dir_fd=dir_fd))
    rmdir(path, dir_fd=dir_fd)
os.rmdir = with_new_file
with temporary_directory(Path(sys.argv[1]), "rc_tasks") as directory:
    (directory / "images").mkdir()
print("done")
"""

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

# Holds a lock and a temporary directory until it is ended; what waits and touches does so quickly.
HOLDS = """
import sys, time
from pathlib import Path
from rc_tasks.state.disk import locks
from rc_tasks.state.disk.files import temporary_directory
locks._TOUCH_S = 0.1
with temporary_directory(Path(sys.argv[1]), "rc_tasks"):
    with locks.held(Path(sys.argv[1], "x.json"), "podman:x"):
        print("held", flush=True)
        time.sleep(1000)
"""

# Tries to take the lock, and sweeps.
TAKES = """
import os, sys
from pathlib import Path
from rc_tasks.state.disk import locks
from rc_tasks.state.disk.files import sweep_temporaries
locks._WATCH_S = 1.0
sweep_temporaries(Path(sys.argv[1]), "rc_tasks")
try:
    with locks.held(Path(sys.argv[1], "x.json"), "podman:x"):
        print("taken")
except locks.LockedError as error:
    print(error.what)
"""


def python(script: str, directory: Path, *before: str) -> tuple[str, ...]:
    return (*before, sys.executable, "-c", script, str(directory))


def output(script: str, directory: Path, *before: str) -> str:
    done = subprocess.run(
        python(script, directory, *before), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(params=[False, True], ids=["from the host", "in a namespace"])
def living(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock, on the host or in a PID namespace of its own."""
    if subprocess.run((*UNSHARE, "true"), capture_output=True, check=False).returncode != 0:
        pytest.skip("PID namespaces cannot be made here")
    before = UNSHARE if request.param else ()
    with subprocess.Popen(
        python(HOLDS, tmp_path, *before), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def scratch(directory: Path) -> list[Path]:
    return list(directory.glob(".rc_tasks.*"))


def test_what_lives_in_another_namespace_keeps_its_lock_and_its_files(
    living: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    found = holder(tmp_path / "x.json")
    assert found is not None and found.node == os.uname().nodename
    # From the host as well as from a third namespace.
    for before in ((), UNSHARE):
        said = output(TAKES, tmp_path, *before)
        assert " has been running podman:x since " in said, said
        assert len(scratch(tmp_path)) == 1
    assert living.poll() is None


def test_the_age_decides_of_what_was_left_in_another_namespace(
    living: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    end(living)
    until_s = time.monotonic() + 10
    while subprocess.run(("pgrep", "-f", str(tmp_path)), capture_output=True, check=False).stdout:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    said = output(TAKES, tmp_path, *UNSHARE)
    assert " has been running podman:x since " in said, said
    (left,) = scratch(tmp_path)
    for path, age_s in ((tmp_path / "x.json", 61), (left, 90_000)):
        then = time.time() - age_s
        os.utime(path, (then, then))
    assert output(TAKES, tmp_path, *UNSHARE) == "taken"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_kept_fresh(living: "subprocess.Popen[str]", tmp_path: Path) -> None:
    """A build of two days has an old directory only while its host is stopped."""
    (made,) = scratch(tmp_path)
    os.utime(made, (1, 1))
    until_s = time.monotonic() + 10
    while made.stat().st_mtime < time.time() - 60:
        assert living.poll() is None and time.monotonic() < until_s
        time.sleep(0.05)


def test_a_namespace_with_the_number_of_one_that_has_ended_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.space.cache_clear()
    first = tmp_path / "stat"
    monkeypatch.setattr(processes, "_FIRST_PROCESS", first)
    found = []
    for began in ("100", "100", "200"):
        first.write_text(f"1 (init (x) y) S {' '.join(['0'] * 18)} {began} 0 0\n")
        found.append(processes.space())
        processes.space.cache_clear()
    assert found[0] == found[1] != found[2]
    first.unlink()
    assert processes.space() not in found
    processes.space.cache_clear()


def test_where_the_kernel_names_no_boot_nobody_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processes.visible(os.uname().nodename, processes.space())
    monkeypatch.setattr(processes, "_BOOT", tmp_path / "boot_id")
    processes.space.cache_clear()
    try:
        assert processes.space() == ""
        assert not processes.visible(os.uname().nodename, "")
    finally:
        processes.space.cache_clear()


def test_what_cannot_be_removed_is_left_to_the_next_sweep(tmp_path: Path) -> None:
    assert output(NOT_EMPTY, tmp_path) == "done"
    assert list(tmp_path.glob("*/images/new"))
    assert output(TAKES, tmp_path) == "taken"
    assert not list(tmp_path.glob(".rc_tasks*"))
