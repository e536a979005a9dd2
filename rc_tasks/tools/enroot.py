"""Enroot: importing an image from podman's storage, and starting one."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from rc_tasks.tools import command
from rc_tasks.tools.command import Command

INSTALL_HINT = (
    'install Enroot, or set `method = "direct"` in the [squash] settings, which needs no Enroot'
)

# fstab(5) writes these in octal; releases of Enroot up to 4.1.2 do not decode that, and mount to another
# place.
UNMOUNTABLE = re.compile(r"[\s\\]")

# Enroot reads its configuration from a file, on the node where it runs.
_START = 'conf=$(mktemp) && printf %s "$1" >"$conf" && shift && exec enroot start --conf "$conf" "$@"'


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


def start(
    image: Path,
    argv: Iterable[str],
    *,
    mounts: Iterable[tuple[str, str, tuple[str, ...]]],
    env: Mapping[str, str],
    unset: Iterable[str],
    workdir: str,
    entrypoint: bool,
    writable: bool,
) -> Command:
    """`enroot start` of a SquashFS file; an empty `workdir` is the image's.

    `mounts` are sources, destinations and flags; no path holds what `UNMOUNTABLE` finds. A value of
    `env` is one line, and the path of the image holds no single quote. Variables that begin with ENROOT_
    speak to Enroot and its hooks. One that we have with the same value is handed on by its name.
    """
    ours = {key: value for key, value in env.items() if not key.startswith("ENROOT_")}
    text = configuration(mounts, ours, unset, rc_local(workdir, entrypoint=entrypoint))
    options = ("--rw",) if writable else ()
    hooks = {key: value for key, value in env.items() if key not in ours}
    return Command(("sh", "-c", _START, "sh", text, *options, str(image), *argv), env=hooks)


def rc_local(workdir: str, *, entrypoint: bool) -> str:
    """What /etc/rc sources in the image's WORKDIR, before it runs the ENTRYPOINT with the arguments."""
    lines = []
    if workdir:
        lines.append(f"cd -- {shlex.quote(workdir)} && unset OLDPWD || exit 1\n")
    if not entrypoint:
        # Does not come back to /etc/rc.
        lines.append('exec "$@"\n')
    return "".join(lines)


def configuration(
    mounts: Iterable[tuple[str, str, tuple[str, ...]]],
    env: Mapping[str, str],
    unset: Iterable[str],
    rc_local: str,
) -> str:
    """A configuration script (enroot's doc/cmd/start.md): the options split at colons and spaces."""
    lines = ['rm -f -- "${BASH_SOURCE[0]}"']

    def function(name: str, body: Iterable[str]) -> None:
        if body := tuple(body):
            lines.extend((f"{name}() {{", *body, "}"))

    function("mounts", (f"printf '%s\\n' {shlex.quote(_fstab(*mount))}" for mount in mounts))
    # Enroot's own hooks, which run before ours, must not see the image's value of one that is unset.
    emptied = (f"printf '%s\\n' {name}=" for name in unset)
    function("environ", (*emptied, *(_variable(key, value) for key, value in env.items())))
    hooks = [f"sed -i '/^{name}=/d' \"${{ENROOT_ENVIRON}}\"" for name in unset]
    if rc_local:
        file = '"${ENROOT_ROOTFS}/etc/rc.local"'
        # A symlink there may lead out of the image.
        hooks += [f"rm -f {file}", f"printf %s {shlex.quote(rc_local)} > {file}"]
    function("hooks", hooks)
    return "".join(f"{line}\n" for line in lines)


def _variable(name: str, value: str) -> str:
    """A line of shell that tells Enroot a variable."""
    # Enroot formats its variables twice, and takes a pair of quotes off each time (common::envfmt in its
    # runtime.sh): with two pairs, those of the value stay.
    if os.environ.get(name) == value:
        return f'printf \'%s=""%s""\\n\' {name} "${{{name}-}}"'
    line = f'{name}=""{value}""'
    return f"printf '%s\\n' {shlex.quote(line)}"


def _fstab(source: str, destination: str, flags: tuple[str, ...]) -> str:
    """A line of fstab(5)."""
    return f"{source} {destination} none {','.join(('x-create=auto', 'rbind', *flags))}"
