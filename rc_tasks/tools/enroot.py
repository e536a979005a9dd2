"""Enroot: `enroot import` of an image in podman's storage."""

import os
import shlex
from pathlib import Path

from rc_tasks.tools import command
from rc_tasks.tools.command import Command

INSTALL_HINT = (
    'install Enroot, or set `method = "direct"` in the [squash] settings, which needs no Enroot'
)


def version() -> str:
    """Enroot's version, such as `4.1.2`."""
    command.require("enroot", INSTALL_HINT)
    return command.capture(Command(("enroot", "version"))).stdout.strip()


def import_podman(
    image_id: str,
    destination: Path,
    *,
    podman: Command,
    label: str,
    scratch: Path,
    squash_options: tuple[str, ...],
    processors: int,
) -> Command:
    """`enroot import -o destination podman://…`; its exit status means nothing, judge the file.

    `podman` is the command with the flags that choose the storage. `scratch` is an empty directory
    of ours, where Enroot unpacks the whole image; remove it afterwards, and containers with `label`
    (`key=value`). Enroot refuses a destination that exists.
    """
    # Enroot runs a plain `podman`, which would look into podman's default storage. When it has no
    # docker it leaks the container that it made, as it then cleans up with `docker rm`. The container
    # is never started, but without a command podman refuses to make one of an image that has no CMD.
    real = shlex.join((command.require(podman.argv[0], "install podman"), *podman.argv[1:]))
    door = scratch / "bin" / "podman"
    door.parent.mkdir()
    door.write_text(
        "#!/bin/sh\n"
        f'[ "$1" != create ] || {{ shift; set -- create --label {shlex.quote(label)} "$@" true; }}\n'
        f'exec {real} "$@"\n',
        encoding="utf-8",
    )
    door.chmod(0o755)
    return Command(
        ("enroot", "import", "--output", str(destination.absolute()), f"podman://{image_id}"),
        env={
            "PATH": f"{door.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # Ended by a signal, Enroot leaves what it unpacked.
            "ENROOT_TEMP_PATH": str(scratch),
            # The default lies in /run when XDG_RUNTIME_DIR is not set, where users may not write.
            "ENROOT_RUNTIME_PATH": str(scratch / "run"),
            # Enroot splits this at white space. Before 4.1 the last one was missing from its default.
            "ENROOT_SQUASH_OPTIONS": " ".join((*squash_options, "-exit-on-error")),
            "ENROOT_MAX_PROCESSORS": str(processors),
        },
    )
