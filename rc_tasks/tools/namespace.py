"""Mount namespaces (unshare(2), nsenter(1)): what is mounted in one ends with its last process.

root moves into one. For an ordinary user a companion process holds one in podman's user namespace, and
podman's commands enter it.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

from rc_tasks.errors import CommandError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command

_CLONE_NEWNS = 0x20000  # sched.h; os.unshare comes with Python 3.12
# The process ID outside of its own PID namespace: /proc is that of the host.
_HOLD = 'read -r pid rest < /proc/self/stat && echo "holder $pid"; read -r rest'
# Who enters a mount namespace is at its root.
_ENTER = """\
target=$0
exec nsenter --target="$target" --user --mount {more} --preserve-credentials -- \
    sh -c 'cd -- "$0" && exec "$@"' "$PWD" "$@"
"""


def unshare() -> None:
    """Give this process a mount namespace of its own. Raise CommandError where it may have none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise CommandError(
            f"this process can have no mount namespace of its own: {os.strerror(ctypes.get_errno())}"
        )
    # Nothing that is mounted here leaves; what an automounter of the host mounts still comes.
    command.capture(Command(("mount", "--make-rslave", "/")))


@contextlib.contextmanager
def held(enter_users: Callable[[Command], Command]) -> Iterator[int]:
    """Hold a mount namespace and a PID namespace, which end with us; return their process.

    `enter_users` puts a command into the user namespace. All processes that enter the PID namespace are
    killed when the holder ends, and it ends when we do, however we do. Raise CommandError.
    """
    flags = ("--mount", "--propagation=slave", "--pid", "--fork", "--kill-child")
    hold = enter_users(Command(("unshare", *flags, "sh", "-c", _HOLD)))
    companion = command.Companion(hold)
    try:
        lines: list[str] = []
        for line in companion.lines():
            lines.append(line)
            word, _, number = line.partition(" ")
            if word == "holder" and number.isdigit():
                yield int(number)
                return
        raise command.failure(hold, companion.close(), lines)
    finally:
        companion.close()


def entering(process: int, *, processes: bool = False) -> tuple[str, ...]:
    """Return what starts a command in the user and mount namespace of a holder.

    The command stays in its working directory. With `processes`, what it leaves running ends with the
    holder.
    """
    # podman itself sets these variables in its user namespace (containers/storage, pkg/unshare).
    variables = {"USERNS_CONFIGURED": "done", "ROOTLESS_UID": os.getuid(), "ROOTLESS_GID": os.getgid()}
    script = _ENTER.format(more="--pid" if processes else "")
    env = (f"_CONTAINERS_{name}={value}" for name, value in variables.items())
    return ("env", *env, "sh", "-c", script, str(process))
