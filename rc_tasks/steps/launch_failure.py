"""What a launcher says of itself when a container did not start: that is not what ran in it."""

import re
from collections.abc import Sequence

from rc_tasks.model.settings import Launcher
from rc_tasks.tools import failures

# How the lines begin that are the launcher's own: of podman 4.3, of Enroot 4.1 (common::err in its
# common.sh, and its C programs), of Pyxis 0.24.
_OWN = {
    Launcher.PODMAN: re.compile(r"Error: "),
    Launcher.ENROOT: re.compile(r"\[ERROR\] |enroot-\w+: "),
    Launcher.PYXIS: re.compile(r"(slurmstepd\S*: )?(error: )?pyxis: "),
    Launcher.CE: re.compile(
        r"(slurmstepd\S*: )?(error: )?(pyxis|EDF|ce|container engine): ", re.IGNORECASE
    ),
}
# podman-run(1): 125 is podman's own, 126 and 127 are those of a command that cannot be started.
_PODMANS_OWN = range(125, 128)
# What says that the container started, and lacks the program.
_LACKS = re.compile(r"executable file .*not found|No such file or directory|no such file", re.IGNORECASE)


def hint(launcher: Launcher, status: int, lines: Sequence[str]) -> str:
    """What to do when the launcher failed; empty when what it started failed by itself."""
    own = [line for line in lines if _OWN[launcher].match(line)]
    if launcher is Launcher.PODMAN and status not in _PODMANS_OWN:
        own = []
    cause = failures.find(own, (*failures.PODMAN, *failures.LIMITS), status)
    if cause is failures.KILLED:
        return f"{cause.what}: {cause.hint};\nif it was not that, correct the image or the test"
    if cause is not None:
        return f"on {failures.here()}, {cause.what}, by {launcher}'s words above:\n{cause.hint}"
    if own and not any(map(_LACKS.search, own)):
        return (
            f"the last lines above are {launcher}'s own: no container started on {failures.here()}.\n"
            "`doit doctor` checks the node; set `launcher` to another one, or show them to the site"
        )
    return ""
