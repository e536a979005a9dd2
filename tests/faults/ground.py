"""The checkout on which faults happen, and what is right and wrong there."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from rc_tasks.state.records.records import Record, Records, Step
from rc_tasks.steps.node.podman_storage import mounts_below
from rc_tasks.tools import command
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman
from tests.faults.plan import LOST_VARIABLE, MOVING, VARIABLE, Injection
from tests.support.checkouts import write_checkout
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.doit import DOIT
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage, remove_storage

BASE, CHILD = "base", "left:1"
IMAGES = (BASE, CHILD)
# A file of the base that never changes.
FILLER = "filler"
# The checkout has a file system of its own, small enough to be filled.
SPACE = "400m"
_SOURCE = Path(__file__).resolve().parents[2]
_GONE_S = 60.0
# A run that takes longer never ends. One whose step was lost in its first second takes five minutes.
_HANGS_S = 480.0
# How long a step whose doit was killed may take to be ended.
_ENDING_S = 20.0
# What differs from one healthy tree to the next.
_NAMES = (
    # Of a kept image; which of them there are is a setting.
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.[0-9a-f]{12}\b"), "KEPT"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.\d+"), "TIME"),
    # The newest log of a failure is kept on purpose.
    (re.compile(r"failed\.log$"), "latest.log"),
)


class Place(StrEnum):
    """Where steps run: here, here with layers that are mounted, or on the nodes of a cluster."""

    HOST = "host"
    MOUNTING = "mounting"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Ended:
    """A run of doit that has ended."""

    status: int
    text: str

    @property
    def started(self) -> list[str]:
        """The steps that it started, in order."""
        return re.findall(r"\bstart   (\S+)  ", self.text)

    @property
    def done(self) -> set[str]:
        """The steps that it did itself."""
        return set(re.findall(r"\bdone    (\S+)  \d", self.text))


@dataclass(slots=True)
class Ground:
    """Two images, one built on the other, published and fresh; `marks` is what their recipes write.

    Steps run on this host, or on the nodes of `cluster`.
    """

    root: Path
    podman: Podman
    environment: Mapping[str, str]
    scratch: Path
    cluster: Cluster | None = None
    marks: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    shape: frozenset[str] = frozenset()
    number: int = 0

    @property
    def filler(self) -> Path:
        """A file that may fill the file system of the checkout."""
        return self.root.parent / "filler"

    def directory(self, image: str) -> Path:
        """An image's directory."""
        return self.root / image if image == BASE else self.root / "projects" / image

    def artifact(self, image: str) -> Path:
        """An image's published file."""
        return self.directory(image) / "image.sqsh"

    def record_path(self, step: Step, image: str) -> Path:
        """Where a step's record lies."""
        return self.root / f".rc/state/{step}:{image}.json"

    def change(self, image: str, *, large: bool = False) -> None:
        """Change an image's recipe, and what every env.toml says; `large` makes a layer of 3 MB."""
        self.number += 1
        self.before = dict(self.marks)
        self.marks[image] = f"{image}-{self.number}"
        origin = "scratch\nCOPY rootfs/ /" if image == BASE else BASE
        text = f"FROM {origin}\nRUN sleep 0.3; echo {self.marks[image]} > /etc/{_mark(image)}\n"
        if large:
            text += "RUN busybox head -c 3000000 /dev/urandom > /etc/large\n"
        (self.directory(image) / "Dockerfile").write_text(text)
        settings = f'images_root = "/official"\n[tool.rc_tasks.edf]\nworkdir = "/w{self.number}"\n'
        (self.root / "pyproject.toml").write_text(f"[tool.rc_tasks]\n{settings}")

    def start(self, *argv: str, injection: Injection | None = None, **variables: str) -> "Run":
        """`doit argv…` running, with a fault in one of its steps."""
        more = dict(variables)
        if injection is not None:
            more[VARIABLE] = injection.text()
        if injection is not None or LOST_VARIABLE in more:
            here = str(Path(__file__).parent / "inject")
            more["PYTHONPATH"] = f"{here}:{_SOURCE}"
        output = self.scratch / f"{self.number}.{time.monotonic_ns()}.out"
        with output.open("wb") as out:
            process = subprocess.Popen(
                # It finds its own number in its environment, for those who mean to kill it.
                ("sh", "-c", 'TEST_RUN=$$ exec "$0" "$@"', DOIT, *argv),
                cwd=self.root,
                env={**os.environ, **self.environment, **more},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return Run(process, output)

    def run(self, *argv: str, injection: Injection | None = None, **variables: str) -> Ended:
        """A whole run, with all that it started ended."""
        ended = self.start(*argv, injection=injection, **variables).end()
        self.settle()
        return ended

    def settle(self) -> None:
        """Wait until nothing of a run is left."""
        deadline = time.monotonic() + _GONE_S
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)

    def lift(self) -> None:
        """End every fault that lasts."""
        while self.root in mounts_below(self.root.parent):
            subprocess.run(("umount", self.root), check=True)
        self.filler.unlink(missing_ok=True)
        for directory, _, _ in os.walk(self.root):
            os.chown(directory, os.getuid(), os.getgid())

    def records(self) -> dict[str, Record]:
        """What is recorded now, by task."""
        records = Records(self.root / ".rc/state")
        found = {f"{step}:{image}": records.get(step, image) for step in Step for image in IMAGES}
        return {task: record for task, record in found.items() if record is not None}

    def logs(self) -> dict[str, str]:
        """What the logs of all steps say, by path."""
        found = (each for each in (self.root / ".rc/logs").rglob("*.log") if not each.is_symlink())
        return {str(each): each.read_text(errors="replace") for each in found}

    def states(self) -> dict[str, str]:
        """The state of each image in `doit list`, once the step of a killed run has been ended."""
        until_s = time.monotonic() + _ENDING_S
        while True:
            listed = self.run("list", "--json")
            try:
                found = {image["name"]: image["state"] for image in json.loads(listed.text)}
            except ValueError:
                return dict.fromkeys(IMAGES, f"unknown: {listed.text}")
            if "building" not in found.values() or time.monotonic() > until_s:
                return found

    def wrong(self) -> list[str]:
        """What is published and should not be: half an image, one of other recipes, one called fresh."""
        found: list[str] = []
        states = self.states()
        for image in IMAGES:
            path = self.artifact(image)
            whole = _unsquash(path, "-l")
            mark = _unsquash(path, "-cat", f"etc/{_mark(image)}") or ""
            allowed = {self.marks[image], self.before.get(image)}
            if whole is None or mark.strip() not in allowed:
                found.append(f"{image}: image.sqsh holds {mark.strip() or 'nothing'}, not {allowed}")
            stale = mark.strip() != self.marks[image]
            stale |= image == CHILD and self._base_mark(path) != self.marks[BASE]
            if states.get(image) == "fresh" and stale:
                found.append(f"{image}: called fresh, and holds {mark.strip()}")
            if not _same(path, FILLER, self.root / "base/rootfs" / FILLER):
                found.append(f"{image}: {FILLER} has other bytes")
            moving = (self.root / MOVING).read_text()
            if states.get(image) == "fresh" and _unsquash(path, "-cat", "moving") != moving:
                found.append(f"{image}: called fresh, and holds a file that has gone again")
            if states.get(image) not in {"fresh", "stale", "failed", "missing"}:
                found.append(f"{image}: state {states.get(image)}")
            try:
                tomllib.loads((self.directory(image) / "env.toml").read_text())
            except (OSError, ValueError) as error:
                found.append(f"{image}: env.toml: {error}")
        return found

    def not_right(self) -> list[str]:
        """What is not as it should be after a run without a fault."""
        found = self.wrong()
        for image, state in self.states().items():
            if state != "fresh":
                found.append(f"{image} is {state}")
        for image in IMAGES:
            edf = tomllib.loads((self.directory(image) / "env.toml").read_text())
            if edf.get("workdir") != f"/w{self.number}":
                found.append(f"{image}: env.toml says {edf.get('workdir')}")
            public = json.loads((self.directory(image) / "image.json").read_text())
            record = self.records()[f"podman:{image}"]
            if record.facts is None or public["image_id"] != record.facts.image_id:
                found.append(f"{image}: image.json names another image")
        return found

    def leftovers(self) -> list[str]:
        """What lies around, is mounted or runs that was not there after the first healthy run."""
        found = [f"file {each}" for each in sorted(self.tree() - self.shape)]
        found += [f"process {each}" for each in self.processes()]
        temporary = Path(self.environment["TMPDIR"])
        found += [f"temporary file {each}" for each in temporary.iterdir()]
        if self.cluster is not None:
            return found + [f"job {each}" for each in self._jobs(self.cluster)]
        storage = Path(self.podman.root)
        # podman keeps a mount of this directory onto itself.
        mounts = (*mounts_below(storage.parent), *mounts_below(temporary))
        found += [f"mount {each}" for each in mounts if each != storage / "overlay"]
        loops = command.capture(Command(("losetup", "--list", "--noheadings", "--output", "BACK-FILE")))
        found += [
            f"loop device of {each}" for each in loops.stdout.splitlines() if str(self.root) in each
        ]
        listing = self.podman.command("container", "ls", "--all", "--external", "--format", "{{.Names}}")
        found += [f"container {each}" for each in command.capture(listing).stdout.split()]
        return found

    def _jobs(self, cluster: Cluster) -> list[str]:
        """The jobs that have not ended, once those that are ending have had their time."""
        until_s = time.monotonic() + _GONE_S
        while True:
            jobs = cluster.client("squeue", "--noheader", "--format=%i %j %T").stdout.splitlines()
            if not any("COMPLETING" in each for each in jobs) or time.monotonic() > until_s:
                return jobs
            time.sleep(0.2)

    def clear(self) -> None:
        """Remove the files that were left over."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            if self._shown(path) not in self.shape:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def tree(self) -> frozenset[str]:
        """Every path of the checkout, with the names that differ each time made equal.

        How a step ended stays beside its log, and is removed with it.
        """
        logs = self.root / ".rc/logs"
        return frozenset(
            self._shown(path)
            for path in self.root.rglob("*")
            if not (
                logs in path.parents and path.suffix == ".json" and path.with_suffix(".log").exists()
            )
        )

    def processes(self) -> list[str]:
        """The command lines of all that runs for this checkout."""
        places = (str(self.root), str(Path(self.podman.root).parent))
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    argv = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                    words = (argv, os.readlink(entry / "cwd"))
                    if argv and any(place in word for place in places for word in words):
                        found.append(argv)
        return found

    def _shown(self, path: Path) -> str:
        shown = str(path.relative_to(self.root))
        for pattern, word in _NAMES:
            shown = pattern.sub(word, shown)
        return shown

    def _base_mark(self, path: Path) -> str:
        return (_unsquash(path, "-cat", f"etc/{_mark(BASE)}") or "").strip()


@dataclass(slots=True)
class Run:
    """A run of doit whose output goes to a file."""

    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.output.read_text(errors="replace")

    def started(self, task: str) -> bool:
        """Wait until a step has begun; false when the run ends without it."""
        while f"start   {task}  " not in self.text:
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def end(self, number: signal.Signals | None = None) -> Ended:
        """Wait for its end, after a signal."""
        if number is not None:
            self.process.send_signal(number)
        try:
            self.process.wait(_HANGS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return Ended(-1, f"{self.text}\nthis did not end by itself")
        return Ended(self.process.returncode, self.text)


@contextlib.contextmanager
def ground(place: Place = Place.HOST) -> Iterator[Ground]:
    """The checkout on a small file system, built once, healthy."""
    with contextlib.ExitStack() as stack:
        made, _ = stack.enter_context(own_storage())
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp")))
        stack.callback(remove_storage, temporary / "storage")
        disk, scratch = temporary / "disk", temporary / "scratch"
        for each in (disk, scratch, temporary / "home", temporary / "temporary files"):
            each.mkdir()
        subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", disk), check=True)
        stack.callback(subprocess.run, ("umount", "--lazy", disk), check=False)
        root = _checkout(disk / "it's a checkout")
        storage = temporary / "storage"
        storage.mkdir()
        cluster, where, surroundings = None, storage, {"RC_RUNNER": "local"}
        if place is Place.MOUNTING:
            surroundings["RC_STORE_MOUNT"] = "always"
        if place is Place.CLUSTER:
            conf = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
            cluster = stack.enter_context(Cluster(Path(conf)))
            where = storage / "${SLURMD_NODENAME}"
            surroundings = {
                **cluster.environment,
                "RC_RUNNER": "slurm",
                "RC_SLURM_ACCOUNT": ACCOUNT,
                "RC_SLURM_NODES": "2",
            }
        podman = Podman(root=f"{storage}/root", runroot=f"{storage}/run", driver=made.driver)
        environment = {
            **surroundings,
            "RC_PODMAN_STORAGE": str(where),
            "RC_PODMAN_DRIVER": made.driver,
            "RC_PODMAN_ISOLATION": "chroot",
            # So slow that squashing can be hit.
            "RC_SQUASH_COMPRESSION": "xz",
            # Two days of images would fill the disk.
            "RC_STORE_PREVIOUS_DAYS": "0",
            "HOME": str(temporary / "home"),
            "TMPDIR": str(temporary / "temporary files"),
        }
        here = Ground(root, podman, environment, scratch, cluster)
        here.change(BASE)
        here.change(CHILD)
        first = here.run()
        # A second change has files that only a rebuild leaves, such as the list of cached images.
        here.change(BASE)
        second = here.run()
        if first.status or second.status or (problems := here.not_right()):
            problems = [] if first.status or second.status else problems
            sys.exit(f"the healthy runs failed:\n{first.text}\n{second.text}\n{problems}")
        here.shape = here.tree()
        yield here


def _checkout(root: Path) -> Path:
    write_checkout(root, {})
    programs = root / "base/rootfs/bin"
    programs.mkdir(parents=True)
    (root / "base/rootfs/etc").mkdir()
    (root / "projects/left:1").mkdir(parents=True)
    (root / MOVING).write_text("as it is\n")
    shutil.copy(BUSYBOX, programs / "busybox")
    for applet in ("sh", "sleep"):
        (programs / applet).symlink_to("busybox")
    # What xz takes most of a second for.
    (root / "base/rootfs" / FILLER).write_bytes(random.Random(1).randbytes(3_000_000))
    return root


def _mark(image: str) -> str:
    return image.partition(":")[0]


def _unsquash(path: Path, *argv: str) -> str | None:
    """What unsquashfs prints about an image; None when it cannot be read."""
    option, *names = argv
    done = subprocess.run(
        ("unsquashfs", option, path, *names),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout if done.returncode == 0 else None


def _same(image: Path, name: str, file: Path) -> bool:
    """Whether a file of an image has the bytes of another file."""
    done = subprocess.run(("unsquashfs", "-cat", image, name), capture_output=True, check=False)
    return done.stdout == file.read_bytes()
