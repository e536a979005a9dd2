"""What a step needs on the node it runs on: podman's storage, temporary space, who and where we are."""

import contextlib
import fcntl
import getpass
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.errors import SettingsError, ToolNotFoundError
from rc_tasks.model.project import Project
from rc_tasks.model.settings import PodmanSettings
from rc_tasks.state.records import Artifact, Facts, Record
from rc_tasks.tools import command, git, podman
from rc_tasks.tools.podman import Podman

# podman 4.3 refuses to start with a longer one.
_LONGEST_RUNROOT = 50


@dataclass(frozen=True, slots=True)
class Node:
    """Where a step runs; `job_id` is empty outside Slurm."""

    name: str
    job_id: str
    architecture: str


def this_node() -> Node:
    """The node that this process runs on."""
    uname = os.uname()
    # Several nodes may share one host name where Slurm runs them on one machine.
    name = os.environ.get("SLURMD_NODENAME", uname.nodename)
    return Node(name, os.environ.get("SLURM_JOB_ID", ""), uname.machine)


def now() -> str:
    """The time now, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Start:
    """When a step began."""

    at: str
    monotonic_s: float


def begin() -> Start:
    """Now, as the beginning of a step."""
    return Start(now(), time.monotonic())


def record(
    start: Start,
    project: Project,
    inputs: Mapping[str, str],
    *,
    facts: Facts | None = None,
    artifact: Artifact | None = None,
    tools: Mapping[str, str] | None = None,
    intermediate: tuple[str, ...] = (),
) -> Record:
    """The record of a step that ends now, on this node."""
    here = this_node()
    commit = git.commit(project.directory)
    return Record(
        inputs=inputs,
        started_at=start.at,
        ended_at=now(),
        duration_s=round(time.monotonic() - start.monotonic_s, 3),
        node=here.name,
        job_id=here.job_id,
        builder=getpass.getuser(),
        commit=commit.id if commit else "",
        dirty=commit is not None and commit.dirty,
        tools=tools or {},
        intermediate=intermediate,
        facts=facts,
        artifact=artifact,
    )


def storage(settings: PodmanSettings) -> Podman:
    """podman on this node, with the storage that the settings give it."""
    command.require("podman", podman.INSTALL_HINT)
    root = runroot = ""
    in_job = bool(os.environ.get("SLURM_JOB_ID"))
    wanted = _expanded(settings.storage)
    if wanted == "auto":
        # Nodes are diskless and home directories are no place for overlay file systems.
        # Of the directory above as well: whoever owns that could exchange ours.
        user = os.environ.get("USER", str(os.getuid()))
        mine = Path("/dev/shm", user)  # noqa: S108 - `_own` refuses what others put there
        wanted = str(_own(mine) / "rc_tasks") if in_job else ""
    if wanted:
        directory = _own(Path(wanted))
        root, runroot = str(directory / "root"), str(directory / "run")
        if len(runroot) > _LONGEST_RUNROOT:
            raise SettingsError(
                f"{directory} is too long: podman wants at most {_LONGEST_RUNROOT} characters with /run",
                where="podman.storage",
                hint="set podman.storage to a shorter path, such as /dev/shm/${USER}/images",
            )
    return Podman(
        root=root,
        runroot=runroot,
        # Without a driver, a storage elsewhere would take the one of podman's default storage.
        driver=settings.driver or ("overlay" if root else ""),
        options=settings.options,
        network=settings.network,
        isolation=settings.isolation,
        runtime=settings.runtime,
        cgroup_manager=settings.cgroup_manager or ("cgroupfs" if in_job else ""),
    )


def _own(directory: Path) -> Path:
    """A directory that nobody else could have put there: images are made of what lies in it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise SettingsError(
            f"{directory} belongs to somebody else",
            where="podman.storage",
            hint="set podman.storage to a directory of your own, such as /dev/shm/${USER}/images",
        )
    return directory


def _expanded(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise SettingsError(
                f"the variable {name} is not set on this node",
                where=f"podman.storage = {text!r}",
                hint="use a variable that every node has, such as ${USER}",
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, text)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A private directory on this node for one step; what killed steps left of theirs goes first."""
    parent = Path(os.environ.get("TMPDIR", "/var/tmp"))  # noqa: S108  (where podman puts whole layers)
    for left in parent.glob("rc_tasks.*.*"):
        with contextlib.suppress(OSError, ValueError):
            if left.stat().st_uid == os.getuid() and not _runs(int(left.name.split(".")[1])):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"rc_tasks.{os.getpid()}.", dir=parent) as made:
        yield Path(made)


@contextlib.contextmanager
def building(podman: Podman) -> Iterator[None]:
    """Build in a storage of our own; what ended builds left in it goes when no other one is at work.

    podman 4.3 leaves its working containers when it is ended, and on a node they are memory. Whose
    they are cannot be told, so that a storage which is the user's own is left alone.
    """
    if not podman.root:
        yield
        return
    # The storage is the node's own, so that flock is enough.
    with (Path(podman.root).parent / "builders").open("w") as builders:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(builders, fcntl.LOCK_EX | fcntl.LOCK_NB)
            podman.remove_working_containers()
        fcntl.flock(builders, fcntl.LOCK_SH)
        yield


def _runs(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def free_bytes(directory: Path) -> int:
    """What a user may still write on a file system."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def require(tool: str, package: str) -> None:
    """Raise ToolNotFoundError when a program is missing on this node."""
    if command.which(tool) is None:
        raise ToolNotFoundError(
            f"{tool} was not found on PATH",
            where=this_node().name,
            hint=f"install {package}, or ask the site which nodes have it; `doit doctor` shows the rest",
        )
