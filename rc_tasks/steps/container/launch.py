"""Launchers of containers from an EDF: the Container Engine, Pyxis, Enroot and podman.

The Container Engine reads the EDF itself; the others get its values as options. They have no hooks, so
annotations have no effect. The host's variables reach the container only with the Container Engine and
Pyxis; for Enroot and podman the EDF has to name them: `TOKEN = "${TOKEN:-}"`. Everybody on a node may
read the arguments of a process, so such variables are passed by name, without their values.
"""

import contextlib
import os
import re
import resource
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import DecodeError, Struct, field

from rc_tasks.errors import ArtifactError, CommandError, EdfError, RcError, ToolNotFoundError
from rc_tasks.model.config.settings import Launcher
from rc_tasks.model.edf import chain
from rc_tasks.model.edf.chain import EdfMount, ResolvedEdf
from rc_tasks.model.graph.project import ARTIFACT, IMAGE_JSON
from rc_tasks.squashfs import superblock
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.store.loading import load_images
from rc_tasks.steps.container import rootfs
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.tools import enroot, podman, slurm, squashfs
from rc_tasks.tools.command import Command, capture, failure, require, which
from rc_tasks.tools.podman import Podman
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.util.json_decode import load
from rc_tasks.util.safe_read import read_bytes

# A shell for a person: bash where the image has one.
SHELL = ("sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")

_HELP_TIMEOUT_S = 30.0
_MOST_BYTES = 64 << 20
_SRUN_KNOWS = {
    # Some other options have the word "environment" in their texts.
    Launcher.CE: re.compile(r"^\s+--environment\b", re.MULTILINE),
    Launcher.PYXIS: re.compile(r"^\s+--container-image\b", re.MULTILINE),
}
_SAID = {
    Launcher.CE: "srun has the option --environment of CSCS's Container Engine",
    Launcher.PYXIS: "srun has the option --container-image of Pyxis",
    Launcher.ENROOT: "enroot is on PATH, and srun starts no containers itself",
    Launcher.PODMAN: "there is nothing else: srun starts no containers, and enroot is not on PATH",
}
_LACKS = {
    Launcher.CE: "srun has no option --environment, so there is no Container Engine here",
    Launcher.PYXIS: "srun has no option --container-image, so there is no Pyxis here",
    Launcher.ENROOT: "enroot was not found on PATH",
    Launcher.PODMAN: "podman was not found on PATH",
}

# Pyxis splits mounts at commas and colons, and writes them into a bash script between double quotes;
# before 0.24 it leaves white space alone, where Enroot splits (its args.c and pyxis_slurmstepd.c).
_NOT_FOR_PYXIS = re.compile(r'[,:"$`\\\s]')
# These would change srun itself, which runs in the environment that it passes on.
_SRUNS_OWN = re.compile(r"PATH|LD_.*|(SLURM|SRUN|PYXIS)_.*")
# podman's mount options for the flags of an EDF; podman mounts recursively by default.
_PODMAN_FLAGS = {
    **{
        flag: flag
        for kind in ("private", "shared", "slave", "unbindable")
        for flag in (kind, f"r{kind}")
    },
    **{flag: flag for flag in ("ro", "rw", "exec", "noexec", "dev", "nodev", "suid", "nosuid")},
    "bind": "bind-nonrecursive",
    "rbind": "",
}
# Enroot, and so Pyxis and the Container Engine, put empty file systems here, whatever the image has
# (enroot's conf/mounts/10-system.fstab, where /run is called /var/run).
_EMPTY = ("/tmp", "/run", "/var/lock")  # noqa: S108 - in the container


# The error of Pyxis for an ENTRYPOINT that does not exec its arguments: Pyxis waits for its own process
# in the container, which never starts (pyxis_slurmstepd.c).
_PYXIS_NOT_STARTED = "pyxis: container exited too soon"
ENTRYPOINT_HINT = """\
end its script with `exec "$@"`, as Pyxis and the Container Engine start no other one,
or set `entrypoint = false` under [edf] in its project.toml"""


class PodmanImage(Struct, frozen=True):
    """The image that podman starts: an image ID or a reference, or with `rootfs` a directory.

    `env` holds the image's variables, which podman cannot read from a directory. `rc_local` is the
    host's file that replaces its /etc/rc.local.
    """

    name: str
    rootfs: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    rc_local: Path | None = None


def choose(setting: Launcher, *, through_slurm: bool) -> tuple[Launcher, str]:
    """Return the launcher to use here, and why; `through_slurm`: containers start in jobs.

    Raise ToolNotFoundError when the wanted launcher, or every launcher, is missing.
    """
    if setting is not Launcher.AUTO:
        if not _available(setting, through_slurm=through_slurm):
            raise ToolNotFoundError(
                _LACKS[setting],
                where=os.uname().nodename,
                hint=f'`launcher` is "{setting}" in the settings: "auto" takes what there is',
            )
        return setting, f'launcher = "{setting}" in the settings'
    for launcher, reason in _SAID.items():
        if _available(launcher, through_slurm=through_slurm):
            return launcher, reason
    raise ToolNotFoundError(
        "nothing that starts containers was found", where=os.uname().nodename, hint=podman.INSTALL_HINT
    )


def resolve(reference: str, *, environ: Mapping[str, str], cwd: Path) -> ResolvedEdf:
    """Return the EDF for a launcher that does not read EDFs; the variables of its image count too."""
    return chain.resolve(reference, environ=environ, cwd=cwd, image_environ=image_environ)


def refused_entrypoint(lines: Iterable[str]) -> bool:
    """Return whether a job's output says that Pyxis could not start the image's ENTRYPOINT."""
    return any(_PYXIS_NOT_STARTED in line for line in lines)


def image_environ(image: str) -> dict[str, str]:
    """Return the variables that a SquashFS image sets; none when it cannot be read as one."""
    if not image.startswith("/") or which("unsquashfs") is None:
        return {}
    # Before 4.5, unsquashfs cannot do this.
    with contextlib.suppress(ArtifactError):
        text = squashfs.read_text(Path(image), "/etc/environment", _MOST_BYTES)
        return enroot.variables(text, os.environ)
    return {}


def command(
    launcher: Launcher,
    reference: str,
    resolved: ResolvedEdf,
    argv: tuple[str, ...],
    request: StepRequest | None,
    *,
    interactive: bool = True,
    engine: Podman | None = None,
    image: PodmanImage | None = None,
    name: str = "",
    limit_s: int = 0,
) -> Command:
    """Return the command that runs `argv` in a container; start nothing.

    `reference` is the value of --environment: a name to search for, or a path. `request` is the job's
    request to Slurm, None outside Slurm. `interactive` gives it a terminal. podman needs `engine` and
    `image`, see `podman_image`, and takes a container's `name` and time limit in seconds. Raise EdfError
    for values that the launcher cannot express.
    """
    if launcher in _SRUN_KNOWS:
        if request is None:
            raise ToolNotFoundError(
                f"{launcher} starts containers with srun, and nothing runs through Slurm here",
                hint='set `launcher` to "auto", or `runner` to "slurm"',
            )
        inner, options = (
            (Command(argv), (f"--environment={reference}",))
            if launcher is Launcher.CE
            else _pyxis(resolved, argv)
        )
        return slurm.attached(inner, request, terminal=interactive, options=options)
    if launcher is Launcher.ENROOT:
        inner_command = _enroot(resolved, argv)
    else:
        engine = engine or Podman()
        inner_command = _podman(
            resolved, argv, engine, image, terminal=interactive, name=name, limit_s=limit_s
        )
    return (
        inner_command
        if request is None
        else slurm.attached(inner_command, request, terminal=interactive)
    )


def require_mounts(resolved: ResolvedEdf) -> None:
    """Raise EdfError for the first mount whose source this host lacks, with the line that sets it."""
    for mount in resolved.mounts:
        if not os.path.exists(mount.source):
            raise EdfError(
                f"{mount.source} is not on {os.uname().nodename}, so it cannot be mounted",
                where=mount.where,
                hint="remove it there, or start the job where it is; `edf.mounts` in the settings\n"
                "says which mounts env.toml gets",
            )


@contextlib.contextmanager
def podman_image(
    resolved: ResolvedEdf, engine: Podman, checkout: Checkout | None, *, from_file: bool = False
) -> Iterator[PodmanImage]:
    """Provide the EDF's image in a form that podman can start, while the container runs.

    An image of a checkout is loaded from its store. Any other SquashFS file, or with `from_file` every
    file, is unpacked into a private directory, which is removed at the end.
    """
    path = _need_image(resolved)
    if not path.startswith("/"):
        yield PodmanImage(podman_reference(path))
        return
    image_id = "" if from_file else _recorded_id(Path(path))
    if image_id and load_image(image_id, engine, checkout):
        yield PodmanImage(image_id)
        return
    superblock.inspect(Path(path))
    require("unsquashfs", squashfs.INSTALL_HINT)
    with private_directory("rootfs", engine) as directory:
        root = directory / "root"
        unpack = Command(
            ("unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-dest", str(root), path),
            env={"LC_ALL": "C"},
        )
        why = "" if from_file else ", as podman has no image of it here"
        print(f"unpacking {path}{why}", flush=True)
        done = capture(unpack, check=False)
        # 2: something small, such as a device that only root may make (unsquashfs 4.5).
        if done.returncode not in (0, 2) or not root.is_dir():
            raise failure(unpack, done.returncode, done.stderr.splitlines())
        rootfs.require_plain(root)
        rc_local = None
        if rootfs.seen_inside(root, "/etc/rc").exists():
            rc_local = directory / "rc.local"
            text = enroot.rc_local(resolved.workdir, entrypoint=resolved.entrypoint)
            rc_local.write_text(text, encoding="utf-8")
        yield PodmanImage(str(root), rootfs=True, env=image_environ(path), rc_local=rc_local)


@contextlib.contextmanager
def private_directory(name: str, engine: Podman) -> Iterator[Path]:
    """Make a private directory on this node for files of a container; remove it at the end."""
    parent = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - an image can be larger than /tmp
    directory = Path(tempfile.mkdtemp(prefix=f"rc_tasks.{name}.", dir=parent))
    try:
        yield directory
    finally:
        remove = Command(("rm", "-rf", str(directory)))
        # Rootless, files of the container belong to subordinate IDs.
        capture(engine.unshare(remove) if podman.rootless() else remove, check=False)


def podman_reference(image: str) -> str:
    """Convert `[USER@][REGISTRY#]IMAGE[:TAG]` to podman's form; Docker Hub is the default registry."""
    registry, hash_sign, name = image.rpartition("#")
    first, slash, _ = name.partition("/")
    if hash_sign:
        return f"{registry.rpartition('@')[2]}/{name}"
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}"


def limits() -> dict[str, str]:
    """Return the limits that this process may pass on, for `podman run --ulimit`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"nofile": f"{soft}:{hard}", "nproc": str(nodes.processes())}


def _available(launcher: Launcher, *, through_slurm: bool) -> bool:
    if launcher in _SRUN_KNOWS:
        return through_slurm and _SRUN_KNOWS[launcher].search(_srun_help()) is not None
    return which(launcher) is not None


def _srun_help() -> str:
    try:
        done = capture(Command(("srun", "--help")), timeout_s=_HELP_TIMEOUT_S, check=False)
    except (CommandError, ToolNotFoundError):
        return ""
    return done.stdout + done.stderr


def _pyxis(resolved: ResolvedEdf, argv: tuple[str, ...]) -> tuple[Command, tuple[str, ...]]:
    """Return the command inside of the container with its variables, and srun's options."""
    options = [f"--container-image={_need_image(resolved)}"]
    mounts = []
    for mount in resolved.mounts:
        _refuse_squashfs(mount)
        _refuse_path(mount, "Pyxis", _NOT_FOR_PYXIS)
        flags = "+".join(mount.flags)
        mounts.append(f"{mount.source}:{mount.destination}" + (f":{flags}" if flags else ""))
    if mounts:
        options.append(f"--container-mounts={','.join(mounts)}")
    if resolved.workdir:
        options.append(f"--container-workdir={resolved.workdir}")
    # A site's defaults can differ from those of the EDF.
    options.append("--container-entrypoint" if resolved.entrypoint else "--no-container-entrypoint")
    options.append("--container-writable" if resolved.writable else "--container-readonly")
    # Pass an unset variable as an empty one: Enroot's hooks must not see the image's value.
    variables = dict.fromkeys(resolved.unset, "") | dict(resolved.env)
    passed = {key: value for key, value in variables.items() if not _SRUNS_OWN.fullmatch(key)}
    if passed:
        # Without the option, the image's own values win.
        options.append(f"--container-env={','.join(passed)}")
    own = [f"{key}={value}" for key, value in resolved.env.items() if key not in passed]
    unset = [word for name in resolved.unset for word in ("-u", name)]
    inner = ("env", *unset, *own, *argv) if unset or own else argv
    return Command(inner, env=passed), tuple(options)


def _enroot(resolved: ResolvedEdf, argv: tuple[str, ...]) -> Command:
    image = _need_image(resolved)
    where = resolved.where("image")
    if not image.startswith("/"):
        raise EdfError(
            f"Enroot starts files, and {image} is in a registry",
            where=where,
            hint=f"`enroot import docker://{image}` makes a file of it; name that in `image`",
        )
    if match := re.search(r"['\n]", image):
        raise EdfError(
            f"Enroot cannot start {image}: its path holds {match[0]!r}",
            where=where,
            hint="rename it, or name a symlink to it",
        )
    for key, value in resolved.env.items():
        if "\n" in value:
            raise EdfError(
                f"env.{key}: Enroot takes variables of one line only",
                where=resolved.where("env", key),
                hint="set it in the Dockerfile's entrypoint, or take the line breaks out",
            )
    for mount in resolved.mounts:
        _refuse_squashfs(mount)
        _refuse_path(mount, "Enroot", enroot.UNMOUNTABLE)
    return enroot.start(
        Path(image),
        argv,
        mounts=tuple((mount.source, mount.destination, mount.flags) for mount in resolved.mounts),
        env=resolved.env,
        unset=resolved.unset,
        workdir=resolved.workdir,
        entrypoint=resolved.entrypoint,
        writable=resolved.writable,
    )


def _podman(
    resolved: ResolvedEdf,
    argv: tuple[str, ...],
    engine: Podman,
    image: PodmanImage | None,
    *,
    terminal: bool,
    name: str,
    limit_s: int,
) -> Command:
    image = image or PodmanImage(_need_image(resolved))
    taken = {os.path.normpath(mount.destination) for mount in resolved.mounts}
    mounts = [podman.tmpfs(path, "exec") for path in _EMPTY if path not in taken]
    mounts += [_podman_mount(mount) for mount in resolved.mounts]
    workdir, entrypoint = resolved.workdir, resolved.entrypoint
    if image.rc_local is not None:
        # Start /etc/rc as Enroot does: it knows WORKDIR and ENTRYPOINT, podman does not.
        mounts.append(podman.bind(image.rc_local, "/etc/rc.local", "ro"))
        argv, workdir, entrypoint = ("/bin/sh", "/etc/rc", *argv), "", False
    env = {key: value for key, value in image.env.items() if key not in resolved.unset}
    return engine.run(
        image.name,
        argv,
        rootfs=image.rootfs,
        mounts=mounts,
        env={**env, **resolved.env},
        unset=resolved.unset,
        workdir=workdir,
        entrypoint=entrypoint,
        writable=resolved.writable,
        devices=resolved.devices,
        limits=limits(),
        terminal=terminal,
        name=name,
        limit_s=limit_s,
    )


def _podman_mount(mount: EdfMount) -> str:
    _refuse_squashfs(mount)
    for flag in mount.flags:
        if flag not in _PODMAN_FLAGS:
            raise EdfError(
                f"podman cannot mount with the flag {flag}",
                where=mount.where,
                hint=f"it knows {', '.join(_PODMAN_FLAGS)}",
            )
    flags = (_PODMAN_FLAGS[flag] for flag in mount.flags if _PODMAN_FLAGS[flag])
    return podman.bind(mount.source, mount.destination, *flags)


def _refuse_squashfs(mount: EdfMount) -> None:
    if mount.is_squashfs:
        raise EdfError(
            f"only the Container Engine can mount a SquashFS file ({mount.source})",
            where=mount.where,
            hint="unpack it with unsquashfs, and mount the directory",
        )


def _refuse_path(mount: EdfMount, launcher: str, pattern: re.Pattern[str]) -> None:
    for path in (mount.source, mount.destination):
        if match := pattern.search(path):
            raise EdfError(
                f"{launcher} cannot mount {path}: it holds {match[0]!r}",
                where=mount.where,
                hint="mount a directory above it, or a symlink to it with a plainer name",
            )


def _need_image(resolved: ResolvedEdf) -> str:
    if not resolved.image:
        raise EdfError(
            "the EDF names no image",
            where=resolved.where("image"),
            hint="set `image`, or extend an EDF that has one: base_environment",
        )
    return resolved.image


def _recorded_id(image: Path) -> str:
    """Return the image ID in the image.json beside a published image, or an empty string."""
    image = image.resolve()
    try:
        image_id = str(load(read_bytes(image.parent / IMAGE_JSON)).get("image_id"))
    except (OSError, DecodeError):
        return ""
    is_id = re.fullmatch(r"[0-9a-f]{64}", image_id)
    return image_id if is_id and image.name == ARTIFACT else ""


def load_image(image_id: str, engine: Podman, checkout: Checkout | None) -> bool:
    """Load an image into podman if it lacks it; return whether podman has it."""
    if checkout is not None:
        mounted_images.mount(checkout, engine, (image_id,))
    if not engine.lacking((image_id,)):
        return True
    if checkout is None:
        return False
    with contextlib.suppress(RcError):
        not_loaded = load_images(checkout.store, engine, image_id)
        official = official_of(checkout) if not_loaded else None
        return not (official.load(engine, *not_loaded) if official is not None else not_loaded)
    return False
