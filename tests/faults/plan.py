"""One injection as a value: which fault, at which moment of which step."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

# Where a step of a run under test finds the fault that is meant for it.
VARIABLE = "TEST_FAULT"
# After how many seconds the locks of a run under test are lost, where a minute would be too long.
LOST_VARIABLE = "TEST_LOST_S"
# How long a tool has been at work when something happens "during" it: a build takes half a second, and
# squashing with xz a whole one.
INTO_TOOL_S = 0.15
# Mounting a few layers takes a tenth of a second.
INTO_MOUNT_S = 0.02


class Phase(StrEnum):
    """A moment of a step, in the order in which they come."""

    START = "at the start"
    BEFORE = "before the tool"
    DURING = "during the tool"
    STORE = "before the store"
    BEFORE_LAYER = "before a layer is put"
    AFTER_LAYER = "after a layer was put"
    COPY = "while layers are copied"
    AFTER_WRITE = "after the write"
    BEFORE_RENAME = "before the rename"
    AFTER_RENAME = "after the rename"
    BEFORE_RECORD = "before the record"
    AFTER_RECORD = "after the record"
    BEFORE_MOUNT = "before layers are mounted"
    MOUNTING = "while layers are mounted"
    BEFORE_UNMOUNT = "before layers are unmounted"


# The moments that a step has.
PHASES = {
    "podman": (
        Phase.START,
        Phase.BEFORE,
        Phase.DURING,
        Phase.STORE,
        Phase.BEFORE_LAYER,
        Phase.AFTER_LAYER,
        Phase.BEFORE_RECORD,
        Phase.AFTER_RECORD,
    ),
    "enroot": (
        Phase.START,
        Phase.BEFORE,
        Phase.DURING,
        Phase.COPY,
        Phase.AFTER_WRITE,
        Phase.BEFORE_RENAME,
        Phase.AFTER_RENAME,
        Phase.BEFORE_RECORD,
        Phase.AFTER_RECORD,
    ),
    "env": (
        Phase.START,
        Phase.BEFORE_RENAME,
        Phase.AFTER_RENAME,
        Phase.BEFORE_RECORD,
        Phase.AFTER_RECORD,
    ),
}


# Those that it has besides on a node that can mount layers. Merging needs no layer mounted.
MOUNT_PHASES = {
    "podman": (Phase.BEFORE_MOUNT, Phase.MOUNTING, Phase.BEFORE_UNMOUNT),
    "enroot": (Phase.BEFORE_UNMOUNT,),
}


class Action(StrEnum):
    """What a step does to itself and its surroundings when its moment has come."""

    KILL_STEP = "kill -9 of the step"
    TERM_STEP = "TERM to the step"
    KILL_TOOL = "kill -9 of the tool"
    KILL_FUSE = "kill -9 of squashfuse"
    KILL_RUN = "kill -9 of doit"
    TERM_RUN = "TERM to doit"
    FULL_DISK = "full disk"
    READ_ONLY = "read-only file system"
    NO_PERMISSION = "permission lost"
    # The step stops itself, as a suspended host stops it; others have to let it go on.
    STOP = "stopped lock holder"
    KILL_SLURMSTEPD = "kill -9 of slurmstepd"
    # A file of the build context is another one for a second, as when branches are switched and back.
    MOVE_TREE = "tree that moves"
    # What a broken disk does to a layer, and what `doit gc` on another node does.
    DAMAGE_LAYER = "layer damaged while it is copied"
    REMOVE_LAYER = "layer removed while it is copied"
    # Only says that the moment has come, and waits for what others do.
    WAIT = "waits"


@dataclass(frozen=True, slots=True)
class Injection:
    """What the injected code is told. `done` is made when the fault happens, and then there is no more.

    `checkout` is the root of the checkout and `filler` a file on its file system, to be filled.
    """

    step: str
    image: str
    phase: Phase
    action: Action
    checkout: str
    filler: str
    done: str

    def text(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))


# The file of the base's build context that moves, relative to the checkout.
MOVING = "base/rootfs/moving"


def parse(text: str) -> Injection:
    """The injection in an environment."""
    found = json.loads(text)
    return Injection(**{**found, "phase": Phase(found["phase"]), "action": Action(found["action"])})
