"""podman's storage in a job, as an ordinary user: one directory per job, and nothing of it stays."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.images import BUSYBOX
from tests.support.tools import require_tools
from tests.support.users import User, ordinary_user, python

pytestmark = pytest.mark.podman

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY rootfs/ /\nRUN echo base > /base\n",
    "projects/one:1/Dockerfile": "FROM base\nRUN sleep 0.5; echo one > /one\n",
    "projects/two:1/Dockerfile": "FROM base\nRUN sleep 0.5; echo two > /two\n",
    "projects/slow:1/Dockerfile": "FROM base\nRUN sleep 246.8 & (sleep 246.8; sleep 246.8)\n",
}


@dataclass(frozen=True, slots=True)
class Job:
    """A job of an ordinary user on this host: Slurm is a list of jobs that have not ended."""

    user: User
    python: tuple[str, ...]
    root: Path
    id: str = "4711"

    @property
    def storages(self) -> Path:
        """Where the storages of all their jobs lie."""
        return Path("/dev/shm", self.user.name, "rc_tasks")

    @property
    def storage(self) -> Path:
        return self.storages / self.id

    def start(self, *step: str) -> "subprocess.Popen[str]":
        """`python -m rc_tasks.steps STEP…`, running in this job."""
        path = f"PATH={self.user.home}/bin:/usr/bin:/bin"
        variables = (
            path,
            f"SLURM_JOB_ID={self.id}",
            "RC_PODMAN_ISOLATION=chroot",
            "RC_STORE_ENABLED=false",
        )
        in_job = (*self.user.argv, "env", f"--chdir={self.root}", *variables)
        return subprocess.Popen(
            (*in_job, *self.python, "-m", "rc_tasks.steps", *step),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *step: str, status: int = 0) -> str:
        return self.end(self.start(*step), status)

    def end(self, started: "subprocess.Popen[str]", status: int = 0) -> str:
        with started:
            output, _ = started.communicate(timeout=120)
        assert started.returncode == status, output
        return output

    def running(self, *jobs: str) -> None:
        """Say which jobs have not ended."""
        squeue = self.user.home / "bin/squeue"
        squeue.parent.mkdir(exist_ok=True)
        squeue.write_text("#!/bin/sh\n" + "".join(f"echo {job}\n" for job in jobs))
        squeue.chmod(0o755)

    def processes(self) -> list[str]:
        """What runs as this user."""
        argv = ("ps", "-u", self.user.name, "-o", "stat=,pid=,args=")
        lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
        # The dead are there until init collects them.
        return [line for line in lines if not line.startswith("Z")]


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox", "useradd", "runuser")
    if os.geteuid() != 0:
        pytest.skip("only root can make an ordinary user")
    with ordinary_user() as user:
        root = write_checkout(user.home / "it's a checkout", FILES)
        programs = root / "base/rootfs/bin"
        programs.mkdir(parents=True)
        shutil.copy(BUSYBOX, programs / "busybox")
        for applet in ("sh", "sleep"):
            (programs / applet).symlink_to("busybox")
        subprocess.run(("chown", "--recursive", "--no-dereference", f"{user.name}:", root), check=True)
        made = Job(user, python(user), root)
        made.running(made.id)
        made.run("podman", "base")
        yield made


def test_steps_of_a_job_work_at_the_same_time(job: Job) -> None:
    """Also when the process that keeps podman's namespace ends with the step that started it."""
    steps = [job.start(*each) for each in (("enroot", "base"), ("podman", "one:1"), ("podman", "two:1"))]
    end_pause(job)
    for step in steps:
        job.end(step)
    end_pause(job)
    again = [job.start("enroot", "one:1"), job.start("enroot", "two:1")]
    for step in again:
        job.end(step)
    assert sorted(each.name for each in job.storage.iterdir()) == ["root", "run", "users", "xdg"]
    assert not list((job.user.home / "run").iterdir())
    # An ID that was given to another process of the user in the meantime.
    with subprocess.Popen((*job.user.argv, "sleep", "60")) as other:
        (job.storage / "xdg/libpod/tmp/pause.pid").write_text(str(other.pid))
        job.run("podman", "one:1")
        other.kill()


def end_pause(job: Job) -> None:
    noted = job.storage / "xdg/libpod/tmp/pause.pid"
    if noted.exists() and noted.read_text():
        os.kill(int(noted.read_text()), signal.SIGKILL)


def test_what_a_dead_job_left_is_cleared_and_nothing_else(job: Job) -> None:
    step = job.start("podman", "slow:1")
    deadline = time.monotonic() + 60
    while not any("246.8" in line for line in job.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    # As Slurm ends a job: all of it at once, and not politely.
    for line in job.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[1]), signal.SIGKILL)
    job.end(step, 128 + signal.SIGKILL)
    later = replace(job, id="4712")
    others = [job.storages / name for name in ("4713", "notes")]
    for other in others:
        other.mkdir()
        shutil.chown(other, job.user.name)
    (job.storages / "5000").mkdir()  # somebody else's, of a job that is not theirs
    (job.storages / "5001").symlink_to(job.root)
    job.running()
    assert "cleared" not in later.run("podman", "base")
    job.running("4712", "4713", "4712_1")
    assert f"job 4711, which has ended: cleared ({job.storage})" in later.run("podman", "base")
    left = sorted(each.name for each in job.storages.iterdir())
    assert left == ["4712", "4713", "5000", "5001", "notes"]
    assert later.run("clear") == ""
    assert not later.storage.exists()
    assert later.run("clear") == ""
    assert not later.storage.exists()
    assert job.processes() == []
    assert (job.root / "base/Dockerfile").exists()
