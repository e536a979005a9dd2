"""What a step costs beyond the step: milliseconds of doit's dispatch above a bare srun.

    python -m tests.bench.dispatch [IMAGES]          (default: 20)

In one allocation of a real cluster, one after the other: `srun true`; the env steps of some images
by srun as we call it, without doit; and the same steps by `doit`, less what a `doit` with nothing to do
takes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rc_tasks.tools import slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.doit import doit_process


def main(images: int) -> None:
    """Measure once; each part takes seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as conf,
        Cluster(Path(conf), nodes=1) as cluster,
    ):
        os.environ.update(cluster.environment)
        done = subprocess.run(
            [
                "salloc",
                "--exclusive",
                f"--account={ACCOUNT}",
                sys.executable,
                "-m",
                __spec__.name,
                "--inside",
                str(images),
            ],
            check=False,
        )
        raise SystemExit(done.returncode)


def inside(images: int) -> None:
    """The measurement, in an allocation."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {f"projects/p{number}/Dockerfile": "FROM scratch\n" for number in range(images)}
        root = write_checkout(Path(scratch) / "imgs", files)
        pretend_built(root)
        nothing_s = timed(lambda: doit_process(root, "-n", "1"))
        bare = slurm.srun(Command(("true",)), StepRequest("bare", cpus=1))
        bare_s = timed(lambda: [run(bare, root) for _ in range(images)]) / images
        steps = [
            slurm.srun(
                Command((sys.executable, "-m", "rc_tasks.steps", "env", f"p{number}")),
                StepRequest("env", cpus=1),
            )
            for number in range(images)
        ]
        step_s = timed(lambda: [run(step, root) for step in steps]) / images
        for path in root.glob(".rc/state/env:*.json"):
            path.unlink()
        doit_s = (timed(lambda: doit_process(root, "-n", "1")) - nothing_s) / images
        print(f"a bare srun                      {bare_s * 1000:6.0f} ms")
        print(f"an env step by srun              {step_s * 1000:6.0f} ms")
        print(f"an env step by doit              {doit_s * 1000:6.0f} ms")
        print(f"dispatch above the step by srun  {(doit_s - step_s) * 1000:6.0f} ms")
        print(f"all above a bare srun            {(doit_s - bare_s) * 1000:6.0f} ms")


def run(command: Command, root: Path) -> None:
    """One step, as we start it."""
    subprocess.run(command.argv, cwd=root, env=command.environment(), check=True, capture_output=True)


def timed(work: Callable[[], object]) -> float:
    """The seconds that something takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 20)
