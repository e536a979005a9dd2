"""How long the steps of a child take whose last instruction changed, for an ordinary user.

    python -m tests.bench.rootless [--older CHECKOUT] [--rounds N] [MEGABYTES]     (default: 3, 800)

As root, which makes the user. The child is that of `rebuild`. Each way runs in turn, each time in a new
job, whose node has nothing, and with another last instruction: base and cache mounted with squashfuse,
loaded, and by the steps of an older version, which is in CHECKOUT. Prints medians.
"""

import argparse
import dataclasses
import itertools
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.bench.publish import copy_files, files
from tests.bench.rebuild import BASE, child, write_programs
from tests.support.checkouts import write_checkout
from tests.support.user_jobs import Jobs, jobs_of_a_user

STEPS = ("podman", "enroot")


@dataclasses.dataclass(frozen=True)
class Way:
    """The steps of a version in a checkout of its own, which finds `modules` before all others."""

    jobs: Jobs
    modules: Path | None = None
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def steps_s(self, job: str, name: str) -> float:
        """The seconds of the steps of an image in a job."""
        started = time.monotonic()
        for step in STEPS:
            with self.jobs.started(job, step, name, modules=self.modules, **self.environ) as process:
                output, _ = process.communicate()
            if process.returncode != 0:
                raise SystemExit(output)
        return time.monotonic() - started


def main(size_mb: int, rounds: int, other: Path | None) -> None:
    """Measure."""
    with jobs_of_a_user() as jobs, tempfile.TemporaryDirectory(dir=jobs.user.home) as scratch:
        content = Path(scratch, "content")
        copy_files(files(), content, size_mb * 1_000_000)
        ways = {"here": Way(checkout(jobs, content, "here"))}
        ways["loaded"] = Way(checkout(jobs, content, "loaded"), environ={"RC_STORE_MOUNT": "never"})
        if other is not None:
            modules = Path(scratch, "older")
            shutil.copytree(other / "rc_tasks", modules / "rc_tasks")
            Path(scratch).chmod(0o755)
            ways["older"] = Way(checkout(jobs, content, "older"), modules)
        numbers = itertools.count(100)
        for way in ways.values():
            job = str(next(numbers))
            for name in ("base", "child"):
                way.steps_s(job, name)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                job = str(next(numbers))
                (way.jobs.root / "projects/child/Dockerfile").write_text(child(job))
                found[name].append(way.steps_s(job, "child"))
    ours_s = statistics.median(found["here"])
    for name, times_s in found.items():
        took_s = statistics.median(times_s)
        print(f"  {name:8} {took_s:5.1f} s; here takes {ours_s / took_s:.2f} of it", flush=True)


def checkout(jobs: Jobs, content: Path, name: str) -> Jobs:
    """The same user's jobs in a checkout of its own, with a base of that content."""
    own = dataclasses.replace(jobs, root=jobs.user.home / name)
    write_checkout(own.root, {"base/Dockerfile": BASE, "projects/child/Dockerfile": child("first")})
    write_programs(own.root / "base/programs")
    subprocess.run(("cp", "-al", content, own.root / "base/content"), check=True)
    own.own()
    return own


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--older", metavar="CHECKOUT", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("megabytes", type=int, nargs="?", default=800)
    options = parser.parse_args()
    main(options.megabytes, options.rounds, options.older)
