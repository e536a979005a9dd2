"""An ordinary user's steps that end at any moment while layers are mounted with squashfuse.

Whatever happens: what is published is whole, nothing is left that runs or is mounted, and the same step
in the same job brings the image up to date. There is one exception: a kill -9 that comes when podman has
made the container of a smoke test and not started it leaves podman's two processes. They are Slurm's to
end; without Slurm, the next step ends them.
"""

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.plan import PHASES, VARIABLE, Action, Injection, Phase
from tests.integration.test_mounted_images import wait_until, with_base
from tests.support.user_jobs import Jobs

pytestmark = pytest.mark.podman

CHILD = """\
FROM base
RUN sleep 0.5; cat /kept/k > /seen; echo {text} > /child
"""
# An ordinary user's enroot step mounts nothing.
MOMENTS = {
    "podman": (*PHASES["podman"], Phase.BEFORE_MOUNT, Phase.MOUNTING),
    "enroot": PHASES["enroot"],
}
ENDS = (Action.KILL_STEP, Action.TERM_STEP)
CASES = (
    *((step, phase, end) for step, phases in MOMENTS.items() for phase in phases for end in ENDS),
    ("podman", Phase.MOUNTING, Action.KILL_TOOL),
    ("podman", Phase.DURING, Action.KILL_TOOL),
    ("podman", Phase.DURING, Action.KILL_FUSE),
)
# The processes of a container that podman has made and not started.
NOT_STARTED = re.compile(r"\S+ +(\S*/)?(conmon .* -n rc-smoke-\w+ .*|runc init)")
# What the person reads.
SAYS = {
    Action.TERM_STEP: "interrupted\n",
    Action.KILL_TOOL: "was killed, as happens when memory runs out",
    Action.KILL_FUSE: "a file system gives no answer",
}


@dataclass(slots=True)
class Ground:
    """A user's checkout whose base is published; each case has jobs of its own."""

    jobs: Jobs
    scratch: Path
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def change(self, text: str) -> None:
        """Write another recipe of the child."""
        recipe = self.jobs.root / "projects/child/Dockerfile"
        recipe.write_text(CHILD.format(text=text))

    def hit(self, job: str, step: str, phase: Phase, action: Action) -> tuple[int, str]:
        """Run a step of the child to which something happens; return its exit status and output."""
        done = self.scratch / f"{job}.done"
        injection = Injection(step, "child", phase, action, str(self.jobs.root), "", str(done))
        variables = {VARIABLE: injection.text()}
        modules = self.scratch / "inject"
        with self.jobs.started(job, step, "child", modules=modules, **variables) as process:
            output, _ = process.communicate(timeout=120)
        assert done.exists(), f"the moment did not come: {output}"
        return process.returncode, output

    def running(self) -> list[str]:
        """The user's processes, without the one with which podman keeps their namespace."""
        argv = ("ps", "-ww", "-u", self.jobs.user.name, "-o", "stat=,args=")
        lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
        return [line for line in lines if not re.fullmatch(r"Z.*|\S+ +(\S*/)?podman( pause)?", line)]

    def has_not_started(self) -> bool:
        """Whether a container that has not started is all that runs."""
        running = self.running()
        return len(running) == 2 and all(map(NOT_STARTED.fullmatch, running))

    def child(self) -> str:
        """What the published image of the child says; empty before the first one."""
        image = self.jobs.root / "projects/child/image.sqsh"
        if not image.exists():
            return ""
        argv = ("unsquashfs", "-cat", str(image), "child", "seen")
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stdout.endswith("k\n")
        return done.stdout.removesuffix("k\n").strip()

    def left(self) -> list[str]:
        """Temporary files in the home, the store, the project and on the nodes."""
        home, root = self.jobs.user.home, self.jobs.root
        places = (home.glob("*rc_tasks*"), root.glob(".rc/store/.*"), root.glob("projects/child/.*"))
        return [str(path) for path in itertools.chain(*places)]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with with_base(CHILD) as jobs:
        scratch = jobs.user.home / "faults"
        tests = Path(__file__).parents[1]
        shutil.copytree(tests / "faults/inject", scratch / "inject")
        for name in ("__init__.py", "faults/__init__.py", "faults/injected.py", "faults/plan.py"):
            copy = scratch / "inject/tests" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tests / name, copy)
        shutil.chown(scratch, jobs.user.name)
        for step in ("podman", "enroot"):
            jobs.run("99", step, "base")
        yield Ground(jobs, scratch)


@pytest.mark.parametrize(("step", "phase", "action"), CASES)
def test_a_step_that_ends_at_any_moment(ground: Ground, step: str, phase: Phase, action: Action) -> None:
    number = next(ground.numbers)
    before, text = ground.child(), f"text-{number}"
    ground.change(text)
    if step == "enroot":
        assert "loading" not in ground.jobs.run(str(number), "podman", "child")
        number = next(ground.numbers)
    status, output = ground.hit(str(number), step, phase, action)
    assert (status == 0) <= (action is Action.KILL_FUSE or phase is Phase.AFTER_RECORD), output
    assert not re.search(r"^Traceback ", output, re.MULTILINE), output
    assert SAYS.get(action, "") in output
    may_stay = step == "enroot" and action is Action.KILL_STEP
    wait_until(lambda: not ground.running() or (may_stay and ground.has_not_started()), ground.running)
    assert ground.child() in ({before, text} if step == "enroot" else {before})
    for following in ("podman", "enroot"):
        again = ground.jobs.run(str(number), following, "child")
        assert "loading" not in again
    assert ground.child() == text
    assert not ground.running() and not ground.left()


def test_a_container_that_has_not_started_goes_with_the_next_step(ground: Ground) -> None:
    home, before, text = ground.jobs.user.home, ground.child(), "not started"
    ground.change(text)
    number = str(next(ground.numbers))
    ground.jobs.run(number, "podman", "child")
    # Without this step there is nobody who starts what runc makes.
    runc = home / "bin/runc-without-step"
    runc.write_text(
        '#!/bin/sh\ncase " $* " in *" create "*)\n'
        'pkill -KILL -u "$(id -u)" -f "rc_tasks.steps enroot"; sleep 1;; esac\nexec runc "$@"\n'
    )
    runc.chmod(0o755)
    settings = home / ".config/containers/containers.conf"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f'[engine.runtimes]\nrunc = ["{runc}"]\n')
    number = str(next(ground.numbers))
    with ground.jobs.started(number, "enroot", "child") as process:
        output, _ = process.communicate(timeout=120)
    settings.unlink()
    assert "smoke test 1 of 1" in output
    wait_until(ground.has_not_started, ground.running)
    assert ground.child() == before
    ground.jobs.run(number, "podman", "child")
    assert not ground.running()
    ground.jobs.run(number, "enroot", "child")
    assert ground.child() == text
