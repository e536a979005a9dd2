"""Commands and file formats of Enroot: import an image from podman's storage, start an image."""

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

# fstab(5) writes these characters in octal. Enroot up to 4.1.2 does not decode octal and mounts to
# another path.
UNMOUNTABLE = re.compile(r"[\s\\]")

# Enroot replaces ${X} in /etc/environment with the host's value (common::envsubst in its common.sh).
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)\}", re.ASCII)
# envsubst has no escape, but reads a line once: if nobody sets EMPTY, $${EMPTY}{X} becomes ${X}.
_ESCAPED = r"$${_RC_TASKS_EMPTY}{\1}"
# Enroot removes a pair of quotes around a value, twice (common::envfmt, called twice by its runtime.sh).
# A backslash counts as a quote, as the bracket expression there holds it too.
_QUOTED = re.compile(r"""["'\\](.*)["'\\]\s*""")
# common::envfmt drops variables with other names.
_NAME = re.compile(r"(?!ENROOT_)[A-Za-z_]\w*", re.ASCII)

# Enroot reads its configuration from a file, on the node where it runs.
_START = 'conf=$(mktemp) && printf %s "$1" >"$conf" && shift && exec enroot start --conf "$conf" "$@"'


def version() -> str:
    """Return Enroot's version, such as `4.1.2`."""
    command.require("enroot", INSTALL_HINT)
    return command.capture(Command(("enroot", "version"))).stdout.strip()


def environment(env: Iterable[str]) -> tuple[str, ...]:
    """Return the lines of /etc/environment from which Enroot makes these variables, `KEY=value`.

    A line holds one variable, so each line break becomes a space; `exports` restores it.
    """
    return tuple(map(_line, env))


def exports(env: Iterable[str]) -> str:
    """Return the lines of /etc/rc that restore line breaks in variables, `KEY=value`.

    A variable that the EDF sets or unsets has another value by then and stays as it is.
    """
    lines = []
    for variable in env:
        name, _, value = variable.partition("=")
        if "\n" in value and _NAME.fullmatch(name):
            flat = quote(_flat(value))
            lines.append(f'[ "${{{name}-}}" != {flat} ] || export {name}={quote(value)}\n')
    return "".join(lines)


def misread(env: Iterable[str]) -> tuple[str, ...]:
    """Return the names of variables that Enroot reads wrongly when it writes them itself."""
    env = tuple(env)
    pairs = (variable.partition("=") for variable in env)
    meant = {name: value for name, equals, value in pairs if equals and _NAME.fullmatch(name)}
    read = variables("\n".join(env), {})
    return tuple(name for name in {**meant, **read} if meant.get(name) != read.get(name))


def variables(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what Enroot reads from an image's /etc/environment; `environ` is the host's."""
    values = {}
    for line in _REFERENCE.sub(lambda name: environ.get(name[1], ""), text).split("\n"):
        name, equals, value = line.lstrip().partition("=")
        # The environment cannot hold a NUL.
        if equals and _NAME.fullmatch(name) and "\0" not in value:
            for _ in range(2):
                value = quoted[1] if (quoted := _QUOTED.fullmatch(value)) else value
            values[name] = value
    return values


def quote(word: str) -> str:
    """Return one word of a shell command, always in single quotes.

    Enroot's bash writes $'…' for control characters, which dash and busybox do not understand;
    between single quotes a control character, a newline too, stands for itself in every shell.
    """
    return "'" + word.replace("'", "'\\''") + "'"


def import_podman(
    image_id: str,
    destination: Path,
    *,
    podman: Command,
    inspected: str,
    label: str,
    scratch: Path,
    squash_options: tuple[str, ...],
    processors: int,
) -> Command:
    """Return `enroot import -o destination podman://…`; judge the file, not its exit status.

    `podman` is the command with the flags that choose the storage. `scratch` is an empty directory
    of ours, in which Enroot unpacks the whole image. Afterwards, remove it and the containers with
    `label` (`key=value`). `inspected` is the JSON that Enroot gets from `podman inspect`. Enroot refuses
    a destination that exists.
    """
    # Enroot runs a plain `podman`, which would use podman's default storage. On a host without docker,
    # Enroot leaks the container that it made, as it cleans up with `docker rm`. The container is never
    # started, but without a command podman refuses to make one of an image that has no CMD.
    real = shlex.join((command.require(podman.argv[0], "install podman"), *podman.argv[1:]))
    wrapper = scratch / "bin" / "podman"
    wrapper.parent.mkdir()
    settings = scratch / "inspected.json"
    settings.write_text(inspected, encoding="utf-8")
    wrapper.write_text(
        "#!/bin/sh\n"
        f'[ "$1" != inspect ] || exec cat {shlex.quote(str(settings))}\n'
        f'[ "$1" != create ] || {{ shift; set -- create --label {shlex.quote(label)} "$@" true; }}\n'
        f'exec {real} "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(0o755)
    return Command(
        ("enroot", "import", "--output", str(destination.absolute()), f"podman://{image_id}"),
        env={
            "PATH": f"{wrapper.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # After a signal, Enroot leaves the unpacked image in this directory.
            "ENROOT_TEMP_PATH": str(scratch),
            # When XDG_RUNTIME_DIR is not set, the default lies in /run, where users may not write.
            "ENROOT_RUNTIME_PATH": str(scratch / "run"),
            # Enroot splits this at white space. Its default before 4.1 lacks -exit-on-error.
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
    """Return `enroot start` of a SquashFS file; an empty `workdir` is the image's.

    `mounts` are sources, destinations and flags; no path holds what `UNMOUNTABLE` finds. A value of
    `env` is one line, and the path of the image holds no single quote. Variables that begin with ENROOT_
    are for Enroot and its hooks. A variable that we have with the same value is passed by name only.
    """
    ours = {key: value for key, value in env.items() if not key.startswith("ENROOT_")}
    text = configuration(mounts, ours, unset, rc_local(workdir, entrypoint=entrypoint))
    options = ("--rw",) if writable else ()
    hooks = {key: value for key, value in env.items() if key not in ours}
    return Command(("sh", "-c", _START, "sh", text, *options, str(image), *argv), env=hooks)


def rc_local(workdir: str, *, entrypoint: bool) -> str:
    """Return what /etc/rc sources in the image's WORKDIR, before it runs the ENTRYPOINT with the
    arguments.
    """
    lines = []
    if workdir:
        lines.append(f"cd -- {shlex.quote(workdir)} && unset OLDPWD || exit 1\n")
    if not entrypoint:
        # exec never returns to /etc/rc, which would run the ENTRYPOINT.
        lines.append('exec "$@"\n')
    return "".join(lines)


def configuration(
    mounts: Iterable[tuple[str, str, tuple[str, ...]]],
    env: Mapping[str, str],
    unset: Iterable[str],
    rc_local: str,
) -> str:
    """Return a configuration script (enroot's doc/cmd/start.md): the options split at colons, spaces."""
    lines = ['rm -f -- "${BASH_SOURCE[0]}"']

    def function(name: str, body: Iterable[str]) -> None:
        if body := tuple(body):
            lines.extend((f"{name}() {{", *body, "}"))

    function("mounts", (f"printf '%s\\n' {shlex.quote(_fstab(*mount))}" for mount in mounts))
    # Enroot's own hooks run before ours and must not see the image's value of an unset variable.
    emptied = (f"printf '%s\\n' {name}=" for name in unset)
    function("environ", (*emptied, *(_variable(key, value) for key, value in env.items())))
    hooks = [f"sed -i '/^{name}=/d' \"${{ENROOT_ENVIRON}}\"" for name in unset]
    if rc_local:
        file = '"${ENROOT_ROOTFS}/etc/rc.local"'
        # /etc of another's image may be a symlink, and a symlink there may lead out of the image.
        hooks.append('local etc=$(realpath "${ENROOT_ROOTFS}/etc") root=$(realpath "${ENROOT_ROOTFS}")')
        outside = "/etc of the image is a symlink that leads out of it"
        hooks.append(f'[[ $etc/ == "$root"/* ]] || common::err {shlex.quote(outside)}')
        hooks += [f"rm -f {file}", f"printf %s {shlex.quote(rc_local)} > {file}"]
    function("hooks", hooks)
    return "".join(f"{line}\n" for line in lines)


def _flat(value: str) -> str:
    return value.replace("\n", " ")


def _line(variable: str) -> str:
    """Return a line of /etc/environment; it equals Enroot's own line where that keeps the value."""
    name, equals, value = _REFERENCE.sub(_ESCAPED, _flat(variable)).partition("=")
    return f'{name}{equals}""{value}""' if _QUOTED.fullmatch(value) else f"{name}{equals}{value}"


def _variable(name: str, value: str) -> str:
    """Return a line of shell that prints a variable for Enroot."""
    # Enroot removes two pairs of quotes; with these two, the quotes of the value stay.
    if os.environ.get(name) == value:
        return f'printf \'%s=""%s""\\n\' {name} "${{{name}-}}"'
    line = f'{name}=""{value}""'
    return f"printf '%s\\n' {shlex.quote(line)}"


def _fstab(source: str, destination: str, flags: tuple[str, ...]) -> str:
    """Return a line of fstab(5)."""
    return f"{source} {destination} none {','.join(('x-create=auto', 'rbind', *flags))}"
