"""What a step needs on the node it runs on: podman's storage, temporary space, who and where we are."""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.errors import SettingsError, ToolNotFoundError
from rc_tasks.model.settings import PodmanSettings
from rc_tasks.tools import command, podman
from rc_tasks.tools.podman import Podman


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


def storage(settings: PodmanSettings) -> Podman:
    """podman on this node, with the storage that the settings give it."""
    command.require("podman", podman.INSTALL_HINT)
    root = runroot = ""
    in_job = bool(os.environ.get("SLURM_JOB_ID"))
    wanted = settings.storage
    if wanted == "auto":
        # Nodes are diskless and home directories are no place for overlay file systems.
        wanted = f"/dev/shm/{os.environ.get('USER', os.getuid())}/rc_tasks" if in_job else ""  # noqa: S108
    if wanted:
        directory = Path(_expanded(wanted))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid() and os.getuid() != 0:
            raise SettingsError(
                f"{directory} belongs to somebody else",
                where="podman.storage",
                hint="set podman.storage to a directory of your own, such as /dev/shm/${USER}/images",
            )
        root, runroot = str(directory / "root"), str(directory / "run")
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
