"""Errors of a launcher whose container did not start, as opposed to those of the program in it."""

import re
from collections.abc import Sequence

from rc_tasks.errors import CommandError
from rc_tasks.model.config.settings import Launcher
from rc_tasks.tools import failures, podman

# The beginnings of the launcher's own lines: podman 4.3, Enroot 4.1 (common::err in its common.sh, and
# its C programs), Pyxis 0.24 in Slurm 22.05 to 26.05. Any program may print lines like those of Enroot
# and podman.
_PYXIS = re.compile(r"(slurmstepd\S*: |srun: |\[\S+\] )error: (pyxis|spank): ")
_OWN = {
    Launcher.PODMAN: re.compile(r"Error: "),
    Launcher.ENROOT: re.compile(r"\[ERROR\] |enroot-\w+: "),
    Launcher.PYXIS: _PYXIS,
    Launcher.CE: _PYXIS,
}
# Errors after the start of the container: it lacks the program or cannot run it.
_LACKS = re.compile(
    r"executable file .*not found|no such file|exec.*permission denied|exec format", re.I
)

# podman's lines on errors of the OCI runtime, whose name may stand first (libpod/define/errors.go).
_RUNTIME = re.compile(r"Error: (.*\bOCI |crun: |runc: )")
_NOTHING_STARTED = failures.FailureCause(
    "", "no container started", "`doit doctor` checks the node; or set `launcher` to another one"
)


def runtime_error(status: int, lines: Sequence[str]) -> CommandError | None:
    """Return the error of a podman whose runtime starts no containers here; None for other failures.

    `lines` are the last ones of the podman that ended with `status`. A container that lacks its program
    is another failure.
    """
    own = [line for line in lines if _RUNTIME.match(line) and not _LACKS.search(line)]
    if status not in podman.NOT_STARTED or not own:
        return None
    return CommandError(
        "podman starts no containers here",
        where=failures.node_name(),
        hint="`doit doctor` tries it, and names the settings that work",
    )


def hint(launcher: Launcher, status: int, lines: Sequence[str]) -> str:
    """Return a hint when the launcher may have failed; empty when the program in it failed."""
    cause = _cause(launcher, status, lines)
    if cause is failures.KILLED:
        return f"{cause.what}: {cause.hint};\nif it was not that, correct the image or the test"
    if cause is None:
        return ""
    return (
        f"if {launcher} wrote the last lines above, and not the test, {cause.what} on "
        f"{failures.node_name()}:\n{cause.hint};\nif the test wrote them, correct the image or the test"
    )


def launcher_hint(launcher: Launcher, status: int, lines: Sequence[str]) -> str:
    """Return what to do about a launcher that wrote all of `lines` itself; empty when it started."""
    cause = _cause(launcher, status, lines)
    return f"{cause.what} on {failures.node_name()}:\n{cause.hint}" if cause is not None else ""


def _cause(launcher: Launcher, status: int, lines: Sequence[str]) -> failures.FailureCause | None:
    own = [line for line in lines if _OWN[launcher].match(line)]
    if launcher is Launcher.PODMAN and status not in podman.NOT_STARTED:
        own = []
    cause = failures.find(own, (*failures.PODMAN, *failures.LIMITS), status)
    if cause is None and own and not any(map(_LACKS.search, own)):
        return _NOTHING_STARTED
    return cause
