"""A run that is killed at any moment: nothing half-made looks finished, and the next run goes on."""

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rc_tasks.state.records import Step
from rc_tasks.tools import command
from tests.support.family import Family, published, started, write_family
from tests.support.storage import own_storage, remove_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

TARGET = "build:left:1"
BUILT = ("base", "left:1")
STEPS = {f"{step}:{name}" for step in (Step.PODMAN, Step.ENROOT) for name in BUILT}
SEED = 20260102
ROUNDS_PER_VICTIM = 6
# What RUN does, told from every other process by these numbers of seconds.
NAP_S, LONG_S = "0.4321", "321.09"
# A killed doit leaves a step that ends by itself; so long at most is it waited for.
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Two images whose RUN lasts long enough to be hit."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox")
    with own_storage() as (podman, environment):
        root = write_family(tmp_path_factory.mktemp("kill") / "it's a checkout")
        # What xz takes a second for, so that mksquashfs can be hit.
        (root / "base/rootfs/filler").write_bytes(random.Random(SEED).randbytes(4_000_000))
        home = tmp_path_factory.mktemp("home")
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot", "HOME": str(home)}
        made = Family(root, podman, environment)
        made.run(TARGET)
        yield made


def make_stale(family: Family, mark: str) -> None:
    family.write(
        "base/Dockerfile", f"FROM scratch\nCOPY rootfs/ /\nRUN sleep {NAP_S}; echo {mark} > /etc/base\n"
    )
    family.write(
        "projects/left:1/Dockerfile", f"FROM base\nRUN sleep {NAP_S}; echo {mark} > /etc/left\n"
    )


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    argv: tuple[str, ...]
    cwd: str

    def concerns(self, *places: Path) -> bool:
        """Whether it works in one of these directories or was given one."""
        words = (*self.argv, self.cwd)
        return any(str(place) in word for place in places for word in words)


def processes() -> list[Process]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                argv = entry.joinpath("cmdline").read_text(errors="replace").split("\0")
                if argv != [""]:
                    found.append(Process(int(entry.name), tuple(argv), os.readlink(entry / "cwd")))
    return found


def ours(family: Family) -> list[Process]:
    """Every process of a run of doit in this checkout."""
    places = (family.root, Path(family.podman.root).parent)
    naps = {NAP_S, LONG_S}
    return [each for each in processes() if each.concerns(*places) or not naps.isdisjoint(each.argv)]


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@dataclass(slots=True)
class Watch:
    """Looks at each image.sqsh whenever it changes: what is published can always be read."""

    family: Family
    problems: list[str] = field(default_factory=list)
    seen: int = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(self, stop: threading.Event) -> None:
        known: dict[str, tuple[int, int, int]] = {}
        while not stop.wait(0.01):
            for name in BUILT:
                path = self.family.artifact(name)
                now = published(path)
                if known.get(name) == now:
                    continue
                known[name] = now
                self.seen += 1
                for option in ("-s", "-l"):
                    done = subprocess.run(
                        ("unsquashfs", option, path), capture_output=True, text=True, check=False
                    )
                    if done.returncode != 0:
                        self.problems.append(f"{path} {option}: {done.stdout[-200:]}{done.stderr}")


def is_step(process: Process) -> bool:
    return "rc_tasks.steps" in process.argv


def is_podman_build(process: Process) -> bool:
    return process.argv[0].endswith("podman") and "build" in process.argv


def is_mksquashfs(process: Process) -> bool:
    return process.argv[0].endswith("mksquashfs")


def left_over(family: Family) -> list[str]:
    """Files in the project directories that are neither recipes nor results."""
    known = {"Dockerfile", "rootfs", "data", ".containerignore", "image.sqsh", "image.json", "env.toml"}
    return [
        entry.name
        for name in BUILT
        for entry in family.directory(name).iterdir()
        if entry.name not in known
    ]


def containers(family: Family) -> list[str]:
    """The names of all containers, those of unfinished builds too."""
    listed = family.podman.command("container", "ls", "--all", "--external", "--format", "{{.Names}}")
    return command.capture(listed).stdout.split()


def of_squashing(family: Family) -> list[str]:
    return [name for name in containers(family) if "working-container" not in name]


def recover(family: Family) -> str:
    """The output of runs of doit until one does not meet a step that outlived its doit."""
    deadline = time.monotonic() + PATIENCE_S
    output = ""
    while True:
        with family.start(TARGET) as process:
            said, _ = process.communicate()
        output += said
        if process.returncode == 0:
            return output
        assert "is being built by" in said, said
        assert time.monotonic() < deadline, output
        time.sleep(0.1)


VICTIMS = {
    "doit": None,
    "step": is_step,
    "podman build": is_podman_build,
    "mksquashfs": is_mksquashfs,
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_after_a_kill_the_next_run_goes_on(family: Family, victim: str) -> None:
    chance = random.Random(f"{SEED} {victim}")
    watch = Watch(family)
    hits = 0
    with watch.watching():
        for number in range(ROUNDS_PER_VICTIM):
            make_stale(family, f"{victim.replace(' ', '-')}-{number}")
            before = family.records()
            hits += kill_one(family, victim, chance)
            finished = {task for task, record in family.records().items() if before[task] != record}
            output = recover(family)
            again = set(started(output))
            assert not again & finished, output
            assert set(family.states().values()) <= {"fresh", "missing"}
            assert family.run(TARGET) == {}
            assert left_over(family) == []
            assert of_squashing(family) == []
            assert list((family.root / ".rc/locks").glob("*.json")) == []
    assert watch.problems == []
    assert watch.seen > ROUNDS_PER_VICTIM
    assert hits > 0


def kill_one(family: Family, victim: str, chance: random.Random) -> bool:
    """Start a run, and kill its part; returns whether it was hit before the run ended."""
    chosen = VICTIMS[victim]
    slowly = {"RC_SQUASH_COMPRESSION": "xz"} if chosen is is_mksquashfs else {}
    with family.start(TARGET, **slowly) as doit:
        try:
            if chosen is None:
                time.sleep(chance.uniform(0.1, 3.0))
                hit = doit.poll() is None
                doit.kill()
            else:
                skip, hit = chance.randint(0, 1), False
                seen: set[int] = set()

                def appeared() -> bool:
                    seen.update(process.pid for process in ours(family) if chosen(process))
                    return len(seen) > skip or doit.poll() is not None

                wait_until(appeared, 30)
                time.sleep(chance.uniform(0, 0.4))
                for process in ours(family):
                    if chosen(process):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(process.pid, signal.SIGKILL)
                            hit = True
        finally:
            output, _ = doit.communicate()
    assert "Traceback" not in output, output
    return hit


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda each: each.name
)
@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one at a time", "in parallel"])
def test_a_signal_ends_the_run_with_all_that_it_started(
    family: Family, number: signal.Signals, options: tuple[str, ...]
) -> None:
    chance = random.Random(f"{SEED} {number.name} {options}")
    for attempt in range(2):
        make_stale(family, f"{number.name}-{len(options)}-{attempt}")
        before = family.records()
        with family.start(*options, TARGET) as doit:
            wait_until(lambda: any(map(is_step, ours(family))), 30)
            time.sleep(chance.uniform(0, 2.0))
            ended_before = doit.poll() is not None
            doit.send_signal(number)
            began = time.monotonic()
            output, _ = doit.communicate()
        assert time.monotonic() - began < 9, "nothing had to be killed"
        assert ours(family) == []
        if not ended_before and doit.returncode != 0:
            assert doit.returncode == 130
            assert output.endswith("interrupted: what was finished stays finished\n")
        assert "Traceback" not in output
        assert list((family.root / ".rc/locks").glob("*.json")) == []
        finished = {task for task, record in family.records().items() if before[task] != record}
        assert not set(family.run(TARGET)) & finished
        assert of_squashing(family) == []
        assert left_over(family) == []


def test_a_step_that_ignores_the_signal_is_ended_all_the_same(family: Family) -> None:
    stubborn = f"trap '' TERM INT HUP; sleep {LONG_S}; sleep {LONG_S}"
    family.write("projects/left:1/Dockerfile", f"FROM base\nRUN {stubborn}\n")
    with family.start(TARGET) as doit:
        begun = wait_until(lambda: any(each.argv[:2] == ("sleep", LONG_S) for each in processes()), 30)
        doit.terminate()
        try:
            doit.communicate(timeout=40)
            left = ours(family)
        finally:
            for process in ours(family):
                os.kill(process.pid, signal.SIGKILL)
    assert begun
    assert left == []
    assert doit.returncode == 130
    make_stale(family, "after the stubborn one")
    assert set(family.run(TARGET)) == STEPS


def test_no_container_of_an_ended_build_is_left(family: Family) -> None:
    """In a job, podman's storage is memory; a user's own storage is theirs."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as name:
        own = replace(family.podman, root=f"{name}/root", runroot=f"{name}/run")
        variables = {"RC_PODMAN_STORAGE": name, "RC_PODMAN_DRIVER": own.driver}
        try:
            end_a_build(replace(family, podman=own, environment={**family.environment, **variables}))
        finally:
            remove_storage(Path(name) / "root")


def end_a_build(family: Family) -> None:
    make_stale(family, "before it is ended")
    with family.start(TARGET) as doit:
        wait_until(lambda: any(each.argv[:2] == ("sleep", NAP_S) for each in processes()), 30)
        doit.terminate()
    family.run(TARGET)
    assert containers(family) == []
