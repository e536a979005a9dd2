"""A run that is killed at any moment: nothing half-made looks finished, and the next run goes on."""

import contextlib
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.state.records.records import Record, Step
from rc_tasks.steps.node.podman_storage import mounts_below
from rc_tasks.tools import command
from tests.support.doit import unstamped
from tests.support.family import Family, published, started, write_family
from tests.support.soak import ROUNDS
from tests.support.storage import own_storage, remove_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

TARGET = "build:left:1"
BUILT = ("base", "left:1")
STEPS = {f"{step}:{name}" for step in (Step.PODMAN, Step.ENROOT) for name in BUILT}
SEED = 20260102
# What RUN does, told from every other process by these numbers of seconds.
NAP_S, LONG_S = "0.4321", "321.09"
# How long what was killed may take to be gone with all that it started, on a busy machine.
GONE_S = 30.0


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Two images whose RUN lasts long enough to be hit, in a storage that a setting names."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox")
    root = write_family(tmp_path_factory.mktemp("kill") / "it's a checkout")
    # What xz takes a second for, so that mksquashfs can be hit.
    (root / "base/rootfs/filler").write_bytes(random.Random(SEED).randbytes(4_000_000))
    with own_storage() as (podman, _), tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as name:
        made = replace(podman, root=f"{name}/root", runroot=f"{name}/run")
        environment = {
            "RC_RUNNER": "local",
            "RC_PODMAN_STORAGE": name,
            "RC_PODMAN_DRIVER": podman.driver,
            "RC_PODMAN_ISOLATION": "chroot",
            "HOME": str(tmp_path_factory.mktemp("home")),
            "TMPDIR": str(tmp_path_factory.mktemp("temporary files")),
        }
        family = Family(root, made, environment)
        try:
            family.run(TARGET)
            yield family
        finally:
            remove_storage(Path(name))


def make_stale(family: Family, mark: str) -> None:
    """Give both images a RUN that works in the background too, as `make -j` does."""
    for name, base in (("base", "scratch\nCOPY rootfs/ /"), ("left:1", "base")):
        directory = family.directory(name).relative_to(family.root)
        nap = f"sleep {NAP_S} & sleep {NAP_S}; wait"
        written = f"FROM {base}\nRUN {nap}; echo {mark} > /etc/mark\n"
        family.write(f"{directory}/Dockerfile", written)


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


VICTIMS = {
    "doit": None,
    "step": is_step,
    "podman build": is_podman_build,
    "mksquashfs": is_mksquashfs,
}


@pytest.mark.soak
def test_kills_at_random_moments_leave_nothing(family: Family) -> None:
    """What ended well is not done again, and what a kill leaves goes soon or with the next run."""
    chance = random.Random(SEED)
    watch = Watch(family)
    hits = dict.fromkeys(VICTIMS, 0)
    before: dict[str, Record] = {}
    with watch.watching():
        for number in range(ROUNDS):
            victim = list(VICTIMS)[number % len(VICTIMS)]
            if not before or victim == "podman build" or done_since(before, family) >= STEPS:
                before = family.records()
                make_stale(family, f"kill-{number}")
            done = done_since(before, family)
            output, hit = kill_one(family, victim, chance)
            hits[victim] += hit
            assert not done & set(started(output)), output
            # What is killed is a failed step like others, unless it had done its work already.
            assert "FAILED " in output or victim == "doit" or not hit or is_done(family), output
            assert wait_until(lambda: not ours(family), GONE_S), ours(family)
        family.run(TARGET)
    assert_all_is_right(family)
    assert watch.problems == []
    assert watch.seen > len(BUILT)
    assert all(hits.values()), hits


def done_since(before: Mapping[str, Record], family: Family) -> set[str]:
    return {task for task, record in family.records().items() if before.get(task) != record}


def is_done(family: Family) -> bool:
    states = family.states()
    return all(states[name] in {"fresh", "missing"} for name in BUILT)


def kill_one(family: Family, victim: str, chance: random.Random) -> tuple[str, bool]:
    """Start a run and kill its part; returns the output, and whether it was hit before the run ended."""
    chosen = VICTIMS[victim]
    slowly = {"RC_SQUASH_COMPRESSION": "xz", "RC_SQUASH_METHOD": "direct"}
    slowly = slowly if chosen is is_mksquashfs else {}
    hit = False
    with family.start(TARGET, **slowly) as doit:
        try:
            if chosen is None:
                time.sleep(chance.uniform(0.1, 2.5))
                hit = doit.poll() is None
                doit.kill()
            else:
                appeared = wait_until(
                    lambda: any(map(chosen, ours(family))) or doit.poll() is not None, GONE_S
                )
                assert appeared
                time.sleep(chance.uniform(0, 0.4))
                hit = killed(family, chosen)
                # A layer of these images is squashed in a moment: hit one of the next.
                while chosen is is_mksquashfs and not hit and doit.poll() is None:
                    hit = killed(family, chosen)
        finally:
            output, _ = doit.communicate()
    assert "Traceback" not in output, output
    return output, hit


def killed(family: Family, chosen: Callable[[Process], bool]) -> bool:
    """Kill each chosen process of a run; return whether there was one."""
    hit = False
    for process in filter(chosen, ours(family)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
            hit = True
    return hit


def assert_all_is_right(family: Family) -> None:
    """All is built from what stands there now, and nothing lies around."""
    assert family.run(TARGET) == {}
    for name in BUILT:
        wanted = re.search(r"echo (\S+) >", (family.directory(name) / "Dockerfile").read_text())
        argv = ("unsquashfs", "-cat", family.artifact(name), "etc/mark")
        found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert wanted is not None and found == f"{wanted[1]}\n"
    assert ours(family) == []
    storage = Path(family.podman.root)
    # podman keeps a mount of this directory onto itself.
    assert [each for each in mounts_below(storage) if each != storage / "overlay"] == []
    assert containers(family) == []
    assert command.capture(family.podman.command("images", "--all", "--quiet")).stdout
    assert list(Path(family.environment["TMPDIR"]).iterdir()) == []
    assert [each for each in (family.root / ".rc/locks").iterdir() if each.suffix == ".json"] == []
    assert left_over(family) == []


@pytest.mark.parametrize(
    ("number", "options"),
    [
        pytest.param(signal.SIGINT, (), id="Ctrl-C"),
        pytest.param(signal.SIGTERM, ("-n", "2"), id="TERM, two at a time"),
        pytest.param(signal.SIGHUP, ("-n", "2"), id="HUP, two at a time"),
    ],
)
def test_a_signal_ends_the_run_with_all_that_it_started(
    family: Family, number: signal.Signals, options: tuple[str, ...]
) -> None:
    chance = random.Random(f"{SEED} {number.name}")
    make_stale(family, f"signal-{number.name}")
    before = family.records()
    with family.start(*options, TARGET) as doit:
        wait_until(lambda: any(map(is_step, ours(family))), GONE_S)
        time.sleep(chance.uniform(0, 2.0))
        ended_before = doit.poll() is not None
        doit.send_signal(number)
        began = time.monotonic()
        output, _ = doit.communicate()
    assert time.monotonic() - began < 9, "nothing had to be killed"
    assert ours(family) == []
    if not ended_before and doit.returncode != 0:
        assert doit.returncode == 130
        (told,) = re.findall(r"^interrupted: (.*)$", unstamped(output), re.MULTILINE)
        assert re.fullmatch(r"(ending \w+:\S+(, \w+:\S+)*; )?what is finished stays finished", told)
    assert "Traceback" not in output
    assert list((family.root / ".rc/locks").glob("*.json")) == []
    done = done_since(before, family)
    assert not set(family.run(TARGET)) & done
    assert_all_is_right(family)


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
