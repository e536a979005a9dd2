"""Mounts of a container of `podman run` that replace those of a RUN in a build."""

import contextlib
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from rc_tasks.model.dockerfile.instructions import mount_options
from rc_tasks.tools import podman

# The mode of a secret's file in a RUN (podman-build(1), --secret).
_SECRET_MODE = 0o400
_SECRETS = "/run/secrets"


class MountedContext(Struct, frozen=True):
    """A build context on this host; the file `empty` is mounted over the files `hidden` in it.

    `directory` is absolute without symlinks, `hidden` are paths relative to it.
    """

    directory: Path
    hidden: tuple[str, ...]
    empty: Path

    def mounts(self, target: str, source: str = "") -> list[str]:
        """Return the values of --mount for a path of the context; none if it is not in there."""
        path = Path(os.path.realpath(self.directory / source.lstrip("/")))
        if not path.is_relative_to(self.directory) or not path.exists():
            return []
        values = [podman.bind(path, target, "ro")]
        for name in self.hidden:
            hidden = self.directory / name
            if hidden.is_relative_to(path):
                place = posixpath.normpath(f"{target}/{hidden.relative_to(path)}")
                values.append(podman.bind(self.empty, place, "ro"))
        return values


class RunMounts(Struct):
    """Values of --mount, variables that hold secrets, and notes on what differs from the build."""

    values: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_mounts(
    flags: Sequence[str],
    context: MountedContext,
    workdir: str,
    secrets: Mapping[str, Path] | None,
    named: Mapping[str, MountedContext] | None = None,
) -> RunMounts:
    """Return what replaces the mounts in the flags of a RUN that runs in `workdir`.

    `named` are the directories among its named contexts. `secrets` are files by the IDs of build
    secrets, or None when they are not asked for.
    """
    result = RunMounts()
    for flag in flags:
        if flag.partition("=")[0] == "--mount":
            options = mount_options(flag)
            problem = _add(result, options, {**(named or {}), "": context}, workdir, secrets)
            if problem:
                result.notes.append(f"{flag}: {problem}")
    return result


def secret_ids(flags: Sequence[str]) -> frozenset[str]:
    """Return the IDs of the build secrets that the flags of a RUN mount."""
    mounts = (mount_options(flag) for flag in flags if flag.partition("=")[0] == "--mount")
    return frozenset(_secret_id(options) for options in mounts if options.get("type") == "secret")


def _add(
    result: RunMounts,
    options: Mapping[str, str],
    contexts: Mapping[str, MountedContext],
    workdir: str,
    secrets: Mapping[str, Path] | None,
) -> str:
    """Add one mount to `result`; return how it differs from that of the build, or an empty string."""
    kind = options.get("type", "bind")
    target = _first(options, "target", "destination", "dst")
    if any("$" in value for value in options.values()):
        return "not mounted here, as it holds a variable"
    place = posixpath.normpath(posixpath.join(workdir or "/", target))
    match kind:
        case "bind" if options.get("from", "") not in contexts:
            return "not mounted here, as it is of another image or stage"
        case "bind":
            context = contexts[options.get("from", "")]
            values = context.mounts(place, _first(options, "source", "src"))
            result.values += values
            if not values:
                return "not mounted here, as the build context has no such file"
            return "read-only here" if {"rw", "readwrite"} & options.keys() else ""
        case "cache":
            result.values.append(podman.tmpfs(place, "tmpfs-mode=1777"))
            return "empty here"
        case "tmpfs":
            result.values.append(podman.tmpfs(place))
            return ""
        case "secret":
            return _add_secret(result, options, place if target else "", secrets)
        case _:
            return "not mounted here"


def _add_secret(
    result: RunMounts, options: Mapping[str, str], place: str, secrets: Mapping[str, Path] | None
) -> str:
    if secrets is None:
        return "not mounted here without --secrets"
    secret_id = _secret_id(options)
    if secret_id not in secrets:
        return "not mounted here, as project.toml names no such secret"
    file, variable = secrets[secret_id], options.get("env", "")
    if variable:
        result.env[variable] = os.fsdecode(file.read_bytes())
    if place or not variable:
        mode = _SECRET_MODE
        with contextlib.suppress(ValueError):
            mode = int(options.get("mode", ""), 8)
        # The owner that `uid` and `gid` name may have no number on this host.
        file.chmod(mode | 0o444 if {"uid", "gid"} & options.keys() else mode)
        result.values.append(podman.bind(file, place or f"{_SECRETS}/{secret_id}", "ro"))
    return ""


def _secret_id(options: Mapping[str, str]) -> str:
    return options.get("id") or posixpath.basename(_first(options, "target", "destination", "dst"))


def _first(options: Mapping[str, str], *names: str) -> str:
    return next((options[name] for name in names if options.get(name)), "")
