"""Jobs of an ordinary user on a node: steps that mount layers with squashfuse."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import require_tools
from tests.support.users import User, ordinary_user, python


@dataclass(frozen=True, slots=True)
class Jobs:
    """Jobs of an ordinary user, who may open /dev/fuse as on most hosts.

    Steps run in `root` with the user's `python`; `fuse` is the device that they see.
    """

    user: User
    python: tuple[str, ...]
    root: Path
    fuse: Path

    def run(self, job: str, *step: str, **more: str) -> str:
        """The output of `python -m rc_tasks.steps STEP…` in a job; all earlier ones have ended."""
        with self.started(job, *step, **more) as process:
            output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def started(
        self, job: str, *step: str, modules: Path | None = None, **more: str
    ) -> "subprocess.Popen[str]":
        """`python -m rc_tasks.steps STEP…` in a job, running; it finds `modules` before all others."""
        before = "PYTHONPATH=" if modules is None else f"PYTHONPATH={modules}:"
        python = (word.replace("PYTHONPATH=", before) for word in self.python)
        squeue = self.user.home / "bin/squeue"
        squeue.parent.mkdir(exist_ok=True)
        squeue.write_text(f"#!/bin/sh\necho {job}\n")
        squeue.chmod(0o755)
        with_fuse = ("sh", "-c", f'mount --bind {self.fuse} /dev/fuse && exec "$@"', "sh")
        variables = (f"PATH={squeue.parent}:/usr/bin:/bin", f"SLURM_JOB_ID={job}")
        return subprocess.Popen(
            (
                *("unshare", "--mount", "--propagation", "private", *with_fuse),
                *(*self.user.argv, "env", f"--chdir={self.root}", *variables),
                *("RC_PODMAN_ISOLATION=chroot", *(f"{key}={value}" for key, value in more.items())),
                # A killed build leaves files of subordinate IDs, which only root can remove.
                *("RC_PODMAN_RUNTIME=runc", f"TMPDIR={self.user.home}"),
                *(*python, "-m", "rc_tasks.steps", *step),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def own(self) -> None:
        """Give the user all files of the checkout."""
        owner = f"{self.user.name}:"
        subprocess.run(("chown", "--recursive", "--no-dereference", owner, self.root), check=True)

    def serving(self) -> list[str]:
        """What still serves mounts to this user."""
        argv = ("ps", "-u", self.user.name, "-o", "stat=,args=")
        lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
        return [line for line in lines if "squashfuse" in line and not line.startswith("Z")]


@contextlib.contextmanager
def jobs_of_a_user() -> Iterator[Jobs]:
    """A user, whom only root can make, with a Python for steps and a device for FUSE.

    Their checkout is not there yet.
    """
    require_tools(
        "podman", "skopeo", "mksquashfs", "busybox", "useradd", "runuser", "squashfuse_ll", "runc"
    )
    with ordinary_user() as user, tempfile.TemporaryDirectory(dir="/var/tmp") as devices:
        Path(devices).chmod(0o755)
        fuse = Path(devices, "fuse")
        os.mknod(fuse, 0o020666, os.makedev(10, 229))
        fuse.chmod(0o666)
        yield Jobs(user, python(user), user.home / "imgs", fuse)
