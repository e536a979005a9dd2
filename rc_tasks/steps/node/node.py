"""Node of a step: podman's storage, temporary space, limits, and the names of node, job and user."""

import contextlib
import fcntl
import getpass
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import RcError, ToolNotFoundError
from rc_tasks.model.config.settings import PodmanSettings
from rc_tasks.model.graph.project import Project
from rc_tasks.state.disk.files import temporaries, temporary_directory
from rc_tasks.state.records.records import Artifact, Facts, Passed, Record
from rc_tasks.steps.node import podman_storage as storages
from rc_tasks.tools import additional_store, command, git, interrupt, namespace, podman, slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman

_MOST_OPEN_FILES = 1 << 20
_PID_MAX = Path("/proc/sys/kernel/pid_max")
_SCRATCH = "rc_tasks"
# The variable that tells the part of a step in podman's namespace what is mounted.
_IMAGES = "_RC_TASKS_IMAGES"
_IMAGES_DIRECTORY = "images"
# The process that holds the namespace in which an ordinary user's images are mounted.
_HOLDER = "_RC_TASKS_HOLDER"


class Node(Struct, frozen=True):
    """The node that a step runs on; `job_id` is empty outside Slurm."""

    name: str
    job_id: str
    architecture: str


def this_node() -> Node:
    """Return the node that this process runs on."""
    uname = os.uname()
    # Several nodes may share one host name where Slurm runs them on one machine.
    name = os.environ.get("SLURMD_NODENAME", uname.nodename)
    return Node(name, os.environ.get("SLURM_JOB_ID", ""), uname.machine)


def now() -> str:
    """Return the time now, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Start(Struct, frozen=True):
    """The start of a step: UTC in ISO 8601, and the monotonic clock in seconds."""

    at: str
    monotonic_s: float


def begin() -> Start:
    """Return the current time as the start of a step."""
    return Start(now(), time.monotonic())


def record(
    start: Start,
    project: Project,
    inputs: Mapping[str, str],
    *,
    facts: Facts | None = None,
    artifact: Artifact | None = None,
    tools: Mapping[str, str] | None = None,
    bases: Mapping[str, str] | None = None,
    smoke: tuple[Passed, ...] = (),
) -> Record:
    """Return the record of a step that ends now, on this node."""
    here = this_node()
    commit = git.commit(*project.sources)
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
        bases=bases or {},
        facts=facts,
        artifact=artifact,
        smoke=smoke,
    )


def storage(settings: PodmanSettings) -> Podman:
    """Return podman on this node, with the storage of the settings. Raise SettingsError."""
    command.require("podman", podman.INSTALL_HINT)
    directory = storages.directory(settings)
    driver = storages.Driver(settings.driver, settings.options)
    if directory is not None:
        storages.use_runtime_directory(directory)
        driver = storages.driver(settings, directory)
        if mounted_images() is not None:
            option = additional_store.option(storages.mounted(directory))
            driver = replace(driver, options=(*driver.options, option))
    in_job = slurm.job_id() is not None
    return Podman(
        root=str(storages.root(directory)) if directory else "",
        runroot=str(storages.runroot(directory)) if directory else "",
        driver=driver.name,
        options=driver.options,
        network=settings.network,
        isolation=settings.isolation,
        runtime=settings.runtime,
        cgroup_manager=settings.cgroup_manager or ("cgroupfs" if in_job else ""),
        through=entering(),
    )


def mounted_images() -> Path | None:
    """Return where this step describes the images that it mounts, or None."""
    images = os.environ.get(_IMAGES)
    return Path(images) if images else None


def entering(*, processes: bool = False) -> tuple[str, ...]:
    """Return what starts a command in the step's namespace, if this process is outside of it.

    With `processes`, what the command leaves running ends with the step.
    """
    holder = os.environ.get(_HOLDER)
    if not holder or not podman.rootless():
        return ()
    return namespace.entering(int(holder), processes=processes)


@contextlib.contextmanager
def mounting_images(engine: Podman) -> Iterator[Path]:
    """Let this step and its children mount images, in a mount namespace that ends with the step.

    podman sees them in a directory of its storage, at the same path in each step. Return where they are
    described, in the step's temporary directory. Raise CommandError where there can be no namespace.
    """
    directory = temporary_files() / _IMAGES_DIRECTORY
    additional_store.create(directory)
    seen = storages.mounted(Path(engine.root).parent)
    seen.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        if podman.rootless():
            os.environ[_HOLDER] = str(stack.enter_context(namespace.held(engine.unshare)))
            stack.callback(os.environ.pop, _HOLDER)
        else:
            namespace.unshare()
            stack.callback(_unmount, seen)
        bind = Command(("mount", "--bind", str(directory), str(seen)), through=entering())
        command.capture(bind)
        os.environ[_IMAGES] = str(directory)
        stack.callback(os.environ.pop, _IMAGES)
        yield directory


def _unmount(seen: Path) -> None:
    """Unmount a step's images: their mount points are removed next, and a container may outlive us."""
    unmount = Command(("umount", "--recursive", "--lazy", str(seen)))
    try:
        command.capture(unmount, check=False)
    except KeyboardInterrupt:
        # Later signals do not interrupt us.
        command.capture(unmount, check=False)
        raise


@contextlib.contextmanager
def unpacking_images(engine: Podman) -> Iterator[Path]:
    """Let this step unpack images where podman sees those that are mounted elsewhere; return the place.

    They stay for the next steps of the job.
    """
    directory = storages.mounted(Path(engine.root).parent)
    directory.mkdir(exist_ok=True)
    with unpacking(directory):
        if not additional_store.exists(directory):
            additional_store.create(directory)
    os.environ[_IMAGES] = str(directory)
    try:
        yield directory
    finally:
        os.environ.pop(_IMAGES, None)


@contextlib.contextmanager
def unpacking(directory: Path) -> Iterator[None]:
    """Let no other step on this node change unpacked images meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The directory is on this node, in its memory.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def prepared(settings: PodmanSettings) -> Iterator[Podman]:
    """Prepare this node for one step: temporary space, open files, and no storage of ended jobs.

    This changes the environment and the limits of this process and its children.
    """
    limit = open_files()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with _scratch() as scratch, _temporary_files_in(scratch):
        engine = storage(settings)
        _sweep(scratch.parent, engine)
        for ended in storages.dead(settings):
            storages.remove(ended, engine)
            result = "could not be cleared" if ended.exists() else "cleared"
            print(
                f"podman's images of job {ended.name}, which has ended: {result} ({ended})", flush=True
            )
        directory = storages.directory(settings)
        # Print it only once: the child process in podman's namespace comes here too.
        warning = storages.driver(settings, directory).warning if directory and podman.rootless() else ""
        if warning:
            print(f"warning: {warning}", flush=True)
        yield engine


def clear(settings: PodmanSettings) -> None:
    """Remove podman's images of this job from this node, unless a setting names their directory."""
    mine = storages.of_this_job(settings)
    if mine is not None and mine.is_dir():
        storages.wait_for_cleanup(mine)
        storages.remove(mine, storage(settings))


def temporary_files() -> Path:
    """Return where steps have their temporary files, whole layers among them. Raise RcError."""
    directory = _temporary_files()
    if not directory.is_dir():
        raise RcError(
            f"TMPDIR names {directory}, which is not on {this_node().name}",
            hint="unset TMPDIR, or name a directory that the nodes have",
        )
    return directory


def _temporary_files() -> Path:
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - in a directory of our own there


def open_files() -> int:
    """Return how many files a process may have open here if it asks for all it can get."""
    # Old programs close every descriptor up to the limit before they start a child, which takes minutes
    # with the limit of a thousand million on some hosts.
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _MOST_OPEN_FILES)


def processes() -> int:
    """Return how many processes a container may have: podman asks for more than root may have here."""
    # podman lowers its own limit to this before it sets that of a container.
    most = int(_PID_MAX.read_text(encoding="ascii"))
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return min(hard, most) if hard > 0 else most


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Make a private directory on this node for one step, after removing those of killed steps."""
    sweep()
    with temporary_directory(temporary_files(), _SCRATCH) as directory:
        yield directory


def sweep() -> None:
    """Remove the temporary directories that killed steps left; those of other nodes after a day."""
    _sweep(_temporary_files(), None)


def _sweep(place: Path, engine: Podman | None) -> None:
    """Sweep a directory; with `engine`, also what an ordinary user's podman was copying."""
    for leftover in temporaries(place, _SCRATCH):
        with contextlib.suppress(OSError):
            if leftover.lstat().st_uid == os.getuid():
                _end_rooted_in(leftover)
                # Keep it while something is mounted in it: a RUN may have mounted files of the host.
                if not storages.mounts_below(leftover):
                    _remove(leftover, engine)


def _remove(directory: Path, engine: Podman | None) -> None:
    try:
        shutil.rmtree(directory)
    except PermissionError:
        # What is copied belongs to other IDs of podman's user namespace. That of the step's own storage
        # ends with the job.
        if engine is not None and podman.rootless():
            command.capture(engine.unshare(Command(("rm", "-rf", "--", str(directory)))), check=False)


@contextlib.contextmanager
def _temporary_files_in(directory: Path) -> Iterator[None]:
    """Put podman's, skopeo's and our own temporary files there, so that a sweep removes them."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        tempfile.tempdir = None
        if before is not None:
            os.environ["TMPDIR"] = before


def _end_rooted_in(directory: Path) -> None:
    """Kill background processes of a RUN that a killed podman has left (chroot isolation)."""
    for process in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if Path(os.readlink(f"/proc/{int(process)}/root")).is_relative_to(directory):
                os.kill(int(process), signal.SIGKILL)


@contextlib.contextmanager
def cleared(podman: Podman) -> Iterator[None]:
    """Use a private storage; remove the containers of killed steps when no other step uses it.

    A killed podman leaves its containers mounted, and on a node they take memory. An interrupted step
    removes its own. In the user's own storage their owner is unknown, so that is left alone.
    """
    if not podman.root:
        yield
        return
    with _users(podman).open("w") as users:
        if _alone(users):
            podman.remove_leftovers()
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            with interrupt.recognized():
                yield
        except KeyboardInterrupt:
            if _alone(users):
                podman.remove_leftovers()
            raise


def leftover_mounts(podman: Podman) -> list[Path]:
    """Return the containers that killed steps have left mounted in a private storage."""
    if not podman.root or not _users(podman).exists():
        return []
    with _users(podman).open() as users:
        mounts = storages.mounts_below(Path(podman.root)) if _alone(users) else []
    # podman mounts the directory of its overlay driver onto itself.
    return [path for path in mounts if path.name == "merged"]


def _users(podman: Podman) -> Path:
    return Path(podman.root).parent / "users"


def _alone(users: IO[str]) -> bool:
    """Lock the storage for us alone, and return whether that succeeded; it is local to the node."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free_bytes(directory: Path) -> int:
    """Return how many bytes a user may still write on a file system."""
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
