"""Errors of a launcher whose container did not start, told apart from those of the program in it."""

import re
from collections.abc import Sequence

from rc_tasks.model.config.settings import Launcher
from rc_tasks.tools import failures, podman

# How the lines begin that are the launcher's own: of podman 4.3, of Enroot 4.1 (common::err in its
# common.sh, and its C programs), of Pyxis 0.24 in Slurm 22.05 to 26.05. Enroot and podman sign as any
# program may.
_PYXIS = re.compile(r"(slurmstepd\S*: |srun: |\[\S+\] )error: (pyxis|spank): ")
_OWN = {
    Launcher.PODMAN: re.compile(r"Error: "),
    Launcher.ENROOT: re.compile(r"\[ERROR\] |enroot-\w+: "),
    Launcher.PYXIS: _PYXIS,
    Launcher.CE: _PYXIS,
}
# What says that the container started, and lacks the program or cannot run it.
_LACKS = re.compile(
    r"executable file .*not found|no such file|exec.*permission denied|exec format", re.I
)


def hint(launcher: Launcher, status: int, lines: Sequence[str]) -> str:
    """What to do when the launcher may have failed; empty when what it started failed by itself."""
    own = [line for line in lines if _OWN[launcher].match(line)]
    if launcher is Launcher.PODMAN and status not in podman.NOT_STARTED:
        own = []
    cause = failures.find(own, (*failures.PODMAN, *failures.LIMITS), status)
    if cause is failures.KILLED:
        return f"{cause.what}: {cause.hint};\nif it was not that, correct the image or the test"
    if cause is not None:
        what, then = cause.what, cause.hint
    elif own and not any(map(_LACKS.search, own)):
        what = "no container started"
        then = "`doit doctor` checks the node; or set `launcher` to another one"
    else:
        return ""
    return (
        f"if {launcher} wrote the last lines above, and not the test, {what} on "
        f"{failures.node_name()}:\n{then};\nif the test wrote them, correct the image or the test"
    )
