"""podman's storage in a job: a directory per job in a node's memory, its driver, and its removal.

Compute nodes are diskless, and home directories cannot hold overlay file systems. Files in memory stay
there when a job is killed.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import stat
import time
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import SettingsError
from rc_tasks.model.config.settings import PodmanSettings
from rc_tasks.tools import additional_store, command, slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman, rootless
from rc_tasks.util.mounts import mounts

_AUTO = "auto"
# podman 4.3 refuses to start with a longer one.
_LONGEST_RUNROOT = 50
# The first kernel in which an ordinary user may mount an overlay (with the option userxattr).
_OVERLAY_FOR_USERS = (5, 11)
_FUSE = Path("/dev/fuse")
# podman's cleanup after a container takes well below a second, on a busy node a few.
_LONGEST_CLEANUP_S = 10
_POLL_S = 0.05
# Mounts first: podman keeps one of the overlay directory onto itself, and a killed podman those of its
# containers. While one stays nothing is removed, as what is mounted is not ours to delete.
_REMOVE = """\
below() { awk -v base="$1/" 'index($5, base) == 1 { print $5 }' /proc/self/mountinfo | sort -r; }
below "$1" | while read -r mounted; do umount --lazy "$mounted"; done
[ -z "$(below "$1")" ] && rm -rf "$1/root" "$1/run" "$1/images" "$1/mounted"
"""


def directory(settings: PodmanSettings) -> Path | None:
    """Return our directory for podman's images on this node; None means podman's own storage.

    Raise SettingsError when another user could have changed it.
    """
    setting = _expanded(settings.storage)
    if setting == _AUTO:
        path = of_this_job(settings)
        if path is not None:
            for parent in (path.parent.parent, path.parent, path):
                _own(parent, follow=False)
            _require_unexchangeable(path)
        return path
    if not setting:
        return None
    path = Path(setting)
    if _too_long(path):
        raise SettingsError(
            f"{path} is too long: podman wants at most {_LONGEST_RUNROOT} characters with /run",
            where="podman.storage",
            hint="set podman.storage to a shorter path, such as /dev/shm/${USER}/images",
        )
    _own(path, follow=True)
    _require_unexchangeable(path)
    return path


def of_this_job(settings: PodmanSettings) -> Path | None:
    """Return the directory of this job; None outside a job, or when a setting names another directory.

    Two jobs on a node never share one: the directory of a job is cleared after its end.
    """
    job_id = slurm.job_id()
    if job_id is None or settings.storage != _AUTO:
        return None
    user = os.environ.get("USER", str(os.getuid()))
    named = _automatic(user, job_id)
    return _automatic(str(os.getuid()), job_id) if _too_long(named) else named


def root(storage: Path) -> Path:
    """Return where podman keeps images and containers."""
    return storage / "root"


def runroot(storage: Path) -> Path:
    """Return where podman keeps state that a reboot ends, such as mounts."""
    return storage / "run"


def images(storage: Path) -> Path:
    """Return where steps note the images that they had mounted, see `mounted_images`."""
    return storage / "images"


def mounted(storage: Path) -> Path:
    """Return where each step sees the images that it has mounted, in its own mount namespace.

    Where nothing can be mounted, they are unpacked there.
    """
    return storage / "mounted"


def is_mounted_image(podman: Podman, directory: Path) -> bool:
    """Return whether podman's directory of a layer is where a step has mounted or unpacked it.

    Another additional image store, which a setting names, is not ours.
    """
    if not podman.root:
        return False
    seen = mounted(Path(podman.root).parent)
    ours = additional_store.option(seen) in podman.options
    return ours and directory.resolve().is_relative_to(seen.resolve())


def can_use_fuse() -> bool:
    """Return whether this user may mount FUSE file systems."""
    return os.access(_FUSE, os.R_OK | os.W_OK)


class Driver(Struct, frozen=True):
    """A storage driver with its options, and a warning when it is slow."""

    name: str
    options: tuple[str, ...] = ()
    warning: str = ""


def driver(settings: PodmanSettings, storage: Path) -> Driver:
    """Return a storage's driver: overlay, by fuse-overlayfs where users cannot mount one, else vfs."""
    # Without a driver, a storage elsewhere would get the driver of podman's default storage.
    preferred = Driver(settings.driver or "overlay", settings.options)
    chosen = any("mount_program" in option for option in settings.options)
    if preferred.name != "overlay" or chosen or not _unprivileged():
        return preferred
    lacking = _lacking(storage)
    if not lacking:
        return preferred
    program = _fuse_overlayfs()
    if program is not None and can_use_fuse():
        return Driver("overlay", (*settings.options, f"overlay.mount_program={program}"))
    missing = "/dev/fuse cannot be used" if program else "no fuse-overlayfs was found"
    return Driver(
        "vfs",
        warning=f"{lacking} and {missing}: the driver is vfs, "
        "which copies the whole image for every instruction",
    )


def use_runtime_directory(storage: Path) -> None:
    """In a job without root, give podman a runtime directory in its storage.

    podman's database keeps the first runtime directory, and that of the user's session or of an earlier
    step may be gone. This changes the environment of this process.
    """
    if slurm.job_id() is None or not rootless():
        return
    runtime = _own(_runtime(storage), follow=False)
    outer = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    # Where `podman login` keeps its passwords: the first of several places, so that a link to it, unlike
    # REGISTRY_AUTH_FILE, hides none of the others (containers-auth.json(5)).
    passwords = outer / "containers" / "auth.json"
    if outer != runtime and passwords.is_file():
        link = runtime / "containers" / "auth.json"
        link.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(passwords)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    # Slurm ends the process that keeps podman's namespace with the step that started it. When its ID
    # goes to a process outside of any such namespace, podman says `cannot set user namespace`.
    noted = _pause_file(storage)
    with contextlib.suppress(OSError, ValueError):
        if os.readlink(f"/proc/{int(noted.read_text())}/ns/user") == os.readlink("/proc/self/ns/user"):
            noted.unlink()


def dead(settings: PodmanSettings) -> list[Path]:
    """Return the storages of ended jobs on this node; ask Slurm only when there are others."""
    mine = of_this_job(settings)
    # In podman's namespace we would ask for the jobs of root.
    if mine is None or _in_namespace():
        return []
    others = []
    with contextlib.suppress(FileNotFoundError), os.scandir(mine.parent) as entries:
        for entry in entries:
            ours = entry.is_dir(follow_symlinks=False) and entry.stat().st_uid == os.getuid()
            if ours and entry.name.isdigit() and entry.name != mine.name:
                others.append(Path(entry.path))
    running = slurm.running_jobs() if others else None
    # Ignore a reply that does not list our own job.
    if running is None or mine.name not in running:
        return []
    return [storage for storage in others if storage.name not in running]


def wait_for_cleanup(storage: Path) -> None:
    """Wait until podman has cleaned up after its containers; at most 10 s, as one may still run.

    `podman run` can return while conmon(8) runs `podman container cleanup`, which makes a storage that
    is removed meanwhile again.
    """
    deadline_s = time.monotonic() + _LONGEST_CLEANUP_S
    while _is_being_cleaned(storage) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def remove(storage: Path, podman: Podman) -> None:
    """Remove a private storage unless a mount in it remains; `podman` may use another storage."""
    remove = Command(("sh", "-c", _REMOVE, "sh", str(storage)))
    if rootless():
        # Files and mounts of containers belong to podman's user namespace.
        _end_pause(storage)
        remove = podman.unshare(remove)
    if command.capture(remove, check=False).returncode == 0:
        _end_pause(storage)
        shutil.rmtree(storage, ignore_errors=True)


def mounts_below(directory: Path) -> list[Path]:
    """Return the mount points below a directory that this process can see."""
    return [mount.point for mount in mounts() if directory in mount.point.parents]


def _automatic(user: str, job_id: str) -> Path:
    return Path("/dev/shm", user, "rc_tasks", job_id)  # noqa: S108 - `_own` refuses what others put there


def _too_long(storage: Path) -> bool:
    return len(str(runroot(storage))) > _LONGEST_RUNROOT


def _own(path: Path, *, follow: bool) -> Path:
    """Make and return a directory. Raise SettingsError if another user owns it: it holds images."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat() if follow else path.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise _others(path)
    return path


def _require_unexchangeable(path: Path) -> None:
    """Raise SettingsError when another user could replace this directory.

    Users who may write to a directory above it can do so. In a sticky directory, such as /dev/shm, only
    the owner of an entry can.
    """
    if _in_namespace():
        return  # it was checked outside of the namespace, which maps owners to other IDs
    path = path.resolve()
    for place, above in zip((path, *path.parents), path.parents, strict=False):
        parent = above.stat()
        if not parent.st_mode & stat.S_IWOTH:
            continue
        if not parent.st_mode & stat.S_ISVTX:
            raise SettingsError(
                f"everybody may write to {above}, and so put another directory in place of {place}",
                where="podman.storage",
                hint=f"chmod o-w {shlex.quote(str(above))}, or set podman.storage to another place",
            )
        if place.stat().st_uid not in {0, os.getuid()}:
            raise _others(place)


def _others(path: Path) -> SettingsError:
    return SettingsError(
        f"{path} belongs to somebody else",
        where="podman.storage",
        hint="have it removed by its owner or an administrator,\n"
        "or set podman.storage to a directory elsewhere",
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


def _unprivileged() -> bool:
    """Return whether podman works without root, even if this process is in its user namespace."""
    return rootless() or _in_namespace()


def _in_namespace() -> bool:
    return "_CONTAINERS_USERNS_CONFIGURED" in os.environ


def _lacking(storage: Path) -> str:
    """Return why the kernel cannot mount an overlay for an ordinary user, or an empty string."""
    release = os.uname().release
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < _OVERLAY_FOR_USERS:
        return f"Linux {release} has no overlay for ordinary users"
    try:
        # Overlay marks deleted files with these attributes; tmpfs has them since Linux 6.6. Leave the
        # attribute there, as another step may be trying the same.
        os.setxattr(storage, "user.rc_tasks", b"")
    except OSError:
        return f"{storage} has no extended attributes"
    return ""


def _fuse_overlayfs() -> str | None:
    """Return the program on PATH: the plain name, else the newest name with a version."""
    if plain := command.which("fuse-overlayfs"):
        return plain
    programs = [
        str(program)
        for place in os.get_exec_path()
        for program in Path(place).glob("fuse-overlayfs-*")
        if re.fullmatch(r"fuse-overlayfs-[\d.]+", program.name) and os.access(program, os.X_OK)
    ]
    return max(programs, key=_version, default=None)


def _version(program: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", Path(program).name)]


def _is_being_cleaned(storage: Path) -> bool:
    """Return whether a cleanup runs here, or conmon, whose arguments name the cleanup to come."""
    cleanup = {b"cleanup", os.fsencode(root(storage))}
    for process in os.listdir("/proc"):
        # Others end meanwhile.
        with contextlib.suppress(OSError):
            if process.isdigit() and cleanup.issubset(
                Path("/proc", process, "cmdline").read_bytes().split(b"\0")
            ):
                return True
    return False


def _runtime(storage: Path) -> Path:
    return storage / "xdg"


def _pause_file(storage: Path) -> Path:
    return _runtime(storage) / "libpod" / "tmp" / "pause.pid"


def _end_pause(storage: Path) -> None:
    """Kill the process that keeps podman's user namespace after its last use."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(_pause_file(storage).read_text())
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        # Check its directory too: the PID may be that of another storage, or of another PID namespace.
        ours = os.fsencode(f"XDG_RUNTIME_DIR={_runtime(storage)}")
        if b"_PODMAN_PAUSE=1" in environ and ours in environ:
            os.kill(pid, signal.SIGKILL)
