"""Two runs in one checkout at once: each step is done once, and both end right."""

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.state.records.records import Step
from tests.support.checkouts import write_checkout
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.runs import Site, lines, until
from tests.support.storage import remove_storage

pytestmark = [pytest.mark.podman, pytest.mark.timeout(240)]

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n"
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\n',
    "projects/one:1/Dockerfile": "FROM base\nRUN echo one > /made\n",
    "projects/two:1/Dockerfile": "FROM one:1\nRUN echo two > /made\n",
}
NAMES = ("base", "one:1", "two:1")
WHO = r"\w+ has been running \S+ since \d\d \w{3} \d\d:\d\d \(\S+, (process|job) \d+\)"


def made(directory: Path, storage: Path, environ: dict[str, str]) -> Site:
    """A checkout in which nothing is built yet."""
    root = write_checkout(directory / "imgs ä", FILES)
    shutil.copy("/bin/busybox", root / "base/busybox")
    signs = directory / "signs"
    signs.mkdir()
    environ |= {
        "RC_PODMAN_STORAGE": str(storage),
        "RC_PODMAN_ISOLATION": "chroot",
        "RC_PODMAN_VOLUMES": f"{signs}:/signs",
    }
    return Site(root, signs, environ)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Site]:
    """A checkout on a host without Slurm."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        yield made(tmp_path, Path(storage), {"RC_RUNNER": "local"})
        remove_storage(Path(storage))


@pytest.fixture
def slurm(cluster: Cluster, tmp_path: Path) -> Iterator[Site]:
    """A checkout on a cluster."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        environ = {**cluster.environment, "RC_RUNNER": "slurm", "RC_SLURM_ACCOUNT": ACCOUNT}
        yield made(tmp_path, Path(storage, "${SLURMD_NODENAME}"), environ)
        cluster.end_jobs()
        for node in Path(storage).iterdir():
            remove_storage(node)


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(request.param)
    return found


def all_done_once(site: Site) -> None:
    """Each step has one log: nothing was done twice, and the trying leaves none."""
    assert {(name, step): len(site.logs(name, step)) for name in NAMES for step in Step} == {
        (name, step): 1 for name in NAMES for step in Step
    }
    assert not [path for path in (site.root / ".rc/locks").iterdir() if path.suffix == ".json"]
    assert lines(site.run("build"), "start", "FAILED") == []


def test_both_end_right_and_each_step_is_done_once(site: Site) -> None:
    with site.running("build") as first, site.running("build") as second:
        texts = first.end(), second.end()
    started = [line.split()[1] for text in texts for line in lines(text, "start")]
    done = [
        line for text in texts for line in lines(text, "done") if not line.endswith("by another run")
    ]
    assert {line.split()[1] for line in done} == {f"{step}:{name}" for step in Step for name in NAMES}
    assert len(done) == 9, "\n".join(texts)
    assert len(started) >= 9
    all_done_once(site)


def test_who_waits_says_for_whom_and_takes_over_when_that_one_is_killed(site: Site) -> None:
    site.waiting("one:1")
    with site.running("build") as first:
        until(lambda: site.begun("one:1"), lambda: first.text)
        with site.running("build") as second:
            second.says(rf"wait    podman:one:1  {WHO}")
            (site.signs / "one").unlink()
            first.process.kill()
            until(lambda: site.begun("one:1"), lambda: second.text)
            site.go()
            text = second.end()
    assert "podman:one:1" in [line.split()[1] for line in lines(text, "done")]
    assert lines(text, "FAILED") == []
    assert len(site.logs("one:1")) == 2
    assert lines(site.run("build"), "start", "FAILED") == []


@contextlib.contextmanager
def touched(path: Path, behind_s: float = 0.0) -> Iterator[None]:
    """Keep a file as a living lock is kept, by a host whose clock may be behind."""
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.2):
            now_s = time.time() - behind_s
            os.utime(path, (now_s, now_s))

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def annas_lock(site: Site) -> Path:
    """The lock of a builder on another host."""
    lock = site.root / ".rc/locks/base.json"
    lock.parent.mkdir(parents=True)
    holder = {
        "step": "enroot:base",
        "user": "anna",
        "node": "nid001234",
        "pid": 1,
        "job_id": "4711",
        "since": "2026-01-02T03:04:05+00:00",
    }
    lock.write_text(json.dumps(holder))
    return lock


def test_a_builder_whose_clock_is_behind_is_waited_for(local: Site) -> None:
    """On Lustre each client stamps its own files: the lock always looks five minutes old."""
    lock = annas_lock(local)
    behind_s = time.time() - 300
    os.utime(lock, (behind_s, behind_s))
    with local.running("podman:base") as run:
        with touched(lock, behind_s=300):
            run.says(r"wait    podman:base  anna has been running enroot:base since .*")
            time.sleep(5)
            # The step itself finds out first, and once.
            assert len(lines(run.text, "start")) == len(lines(run.text, "wait")) == 1
        lock.unlink()
        text = run.end()
    assert len(lines(text, "done")) == 1


def test_a_builder_on_another_host_is_waited_for_until_it_shows_no_life(local: Site) -> None:
    lock = annas_lock(local)
    with local.running("podman:base") as run:
        with touched(lock):
            run.says(
                r"wait    podman:base  anna has been running enroot:base since 0[12] Jan \d\d:\d\d"
                r" \(nid001234, job 4711\)"
            )
        assert lines(run.text, "start") == []
        # As if nobody had touched it for more than a minute.
        os.utime(lock, (time.time() - 61, time.time() - 61))
        text = run.end()
    assert len(lines(text, "wait")) == len(lines(text, "start")) == len(lines(text, "done")) == 1


def test_a_run_that_waits_for_another_one_can_be_ended(local: Site) -> None:
    local.waiting("one:1")
    with local.running("podman:one:1") as first:
        until(lambda: local.begun("one:1"), lambda: first.text)
        with local.running("podman:one:1") as second:
            second.says(rf"wait    podman:one:1  {WHO}")
            second.process.send_signal(signal.SIGINT)
            second.end(130)
        local.go()
        first.end()
