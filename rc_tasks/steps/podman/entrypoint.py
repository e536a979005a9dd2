"""Test of an image's ENTRYPOINT: starts it once in podman, to see what it does with its command."""

import secrets

from msgspec import Struct

from rc_tasks.errors import RcError
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.steps.container import failure, launch
from rc_tasks.tools import command
from rc_tasks.tools.podman import NOT_STARTED, Image, Podman
from rc_tasks.util.text import printable_lines

# A build does not wait longer than this for an ENTRYPOINT.
_LIMIT_S = 30
# The time that podman has after that to remove the container.
_SPARE_S = 10
_KEPT_BYTES = 1 << 12
# It prints nothing when its words are split or joined: `exec sh -c "$*"` differs from `exec "$@"`, and
# the command of Pyxis has several words in one argument too.
_PROBE = 'kill -0 $$ && echo && echo "$0 $$."'


class _Output(Struct):
    """The end of what was printed: an ENTRYPOINT may print without end."""

    last: bytes = b""

    def add(self, chunk: bytes) -> None:
        self.last = (self.last + chunk)[-_KEPT_BYTES:]


def tried(podman: Podman, image: Image) -> Behaviour:
    """Return what the ENTRYPOINT of a built image does; leave none of its processes running.

    It counts as not tried where podman starts no containers.
    """
    mark = secrets.token_hex(8)
    name = f"rc-entrypoint-{image.id[:16]}"
    invocation = podman.run(
        image.id,
        ("sh", "-c", _PROBE, mark),
        entrypoint=True,
        # The first process of a namespace has PID 1: the command has it if the ENTRYPOINT execs it.
        own_processes=True,
        limits=launch.limits(),
        name=name,
        limit_s=_LIMIT_S,
    )
    output = _Output()
    try:
        status = command.pour(invocation, output.add, timeout_s=_LIMIT_S + _SPARE_S)
        if status is None:
            podman.remove(name)
    except RcError:
        # The build continues although the ENTRYPOINT cannot be tried.
        return Behaviour.UNKNOWN
    if f"\n{mark} 1.".encode() in output.last:
        return Behaviour.BECOMES
    if f"\n{mark} ".encode() in output.last:
        return Behaviour.CHILD
    if status in NOT_STARTED:
        text = printable_lines(output.last.decode(errors="replace").strip())
        print(text, flush=True)
        unable = failure.runtime_error(status, text.splitlines())
        return Behaviour.UNKNOWN if unable is None else Behaviour.NOT_TRIED
    return Behaviour.ENDED
