"""Versions of this project side by side: each builds with its own doit, in a checkout of its own.

A node is a directory in memory for podman's images, as on nodes without disks.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT
from tests.support.storage import remove_storage

# Isolation that works in a container too.
_EVERYWHERE = {
    "RC_RUNNER": "local",
    "RC_PODMAN_DRIVER": "overlay",
    "RC_PODMAN_ISOLATION": "chroot",
}
_SAMPLE_S = 0.1


@dataclass(frozen=True)
class Usage:
    """What a run of doit took; the bytes are the most on its node, and in the memory of its steps."""

    seconds: float
    stored_bytes: int
    resident_bytes: int


@dataclass(frozen=True)
class Version:
    """A version of this project: its program `doit`, and what its environment needs."""

    name: str
    doit: Path = Path(DOIT)
    environ: Mapping[str, str] = field(default_factory=dict)

    def write_checkout(self, root: Path, files: Mapping[str, str]) -> Path:
        """Write a checkout with these files, and with the dodo.py and the templates of this version."""
        write_checkout(root, files)
        source = self.doit.absolute().parents[2]
        shutil.copy(source / "dodo.py", root)
        shutil.copytree(source / "templates", root / "templates", dirs_exist_ok=True)
        return root

    def environ_on(self, node: Path) -> dict[str, str]:
        """The environment of a run on a node."""
        return {**os.environ, **_EVERYWHERE, **self.environ, "RC_PODMAN_STORAGE": str(node)}

    def run(self, root: Path, node: Path, *argv: str, environ: Mapping[str, str] | None = None) -> Usage:
        """Run doit in a checkout on a node; exit with its output if it fails."""
        # What was written before is not what is measured.
        os.sync()
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            doit = subprocess.Popen(
                (self.doit, *argv),
                cwd=root,
                env={**self.environ_on(node), **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            with _peaks(doit.pid, node) as peaks:
                status = doit.wait()
            took_s = time.monotonic() - started
            if status != 0:
                output.seek(0)
                raise SystemExit(f"{self.doit} in {root}:\n{output.read()}")
        return Usage(took_s, peaks.stored_bytes, peaks.resident_bytes)


HERE = Version("here", environ={"RC_STORE_MOUNT": "always"})


def older(doit: str) -> Version:
    """The version of another checkout's program, such as /var/tmp/old/.venv/bin/doit."""
    return Version("older", Path(doit))


def step_s(root: Path, step: str, name: str) -> float:
    """The seconds that a step has taken, as its record says."""
    record = json.loads((root / f".rc/state/{step}:{name}.json").read_text())
    return float(record["duration_s"])


@contextlib.contextmanager
def empty_node() -> Iterator[Path]:
    """A file system in memory for podman's images; nothing of it stays."""
    # The path of a runroot may have 50 characters.
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as name:
        subprocess.run(("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", name), check=True)
        node = Path(name, "node")
        node.mkdir(mode=0o700)
        try:
            yield node
        finally:
            remove_storage(node)
            subprocess.run(("umount", "--lazy", name), check=True)


def tree_bytes(directory: Path) -> int:
    """What a directory takes on its disk: each file once."""
    argv = ("du", "--summarize", "--block-size=1", directory)
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


@dataclass
class _Peaks:
    stored_bytes: int = 0
    resident_bytes: int = 0


@contextlib.contextmanager
def _peaks(pid: int, node: Path) -> Iterator[_Peaks]:
    """Look at a node, and at the processes of the steps below doit, while the body runs."""
    peaks, stop = _Peaks(), threading.Event()

    def look() -> None:
        while True:
            space = os.statvfs(node)
            stored_bytes = (space.f_blocks - space.f_bfree) * space.f_frsize
            peaks.stored_bytes = max(peaks.stored_bytes, stored_bytes)
            resident_bytes = sum(map(_resident_bytes, _step_processes(pid)))
            peaks.resident_bytes = max(peaks.resident_bytes, resident_bytes)
            if stop.wait(_SAMPLE_S):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def _step_processes(doit: int) -> list[int]:
    """The processes of the steps below doit."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field is the program's name in parentheses and may hold anything.
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(entry.parent.name))
    steps, todo = [], [(child, False) for child in below.get(doit, ())]
    while todo:
        pid, is_below = todo.pop()
        with contextlib.suppress(OSError):
            is_below |= b"rc_tasks.steps" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if is_below:
            steps.append(pid)
        todo += ((child, is_below) for child in below.get(pid, ()))
    return steps


def _resident_bytes(pid: int) -> int:
    """The memory of a process; of what it shares with others, its share."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
