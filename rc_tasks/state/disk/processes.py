"""Process identity: which process a host name and a PID in a file mean.

The same PID means another process in another PID namespace, and processes outside the own namespace are
not visible. Toolboxes, containers and batch systems make such namespaces under the host's own name. So
the boot and the namespace belong to the identity. Whether a process in another namespace lives is known
only by the age of the files that it touches.
"""

import functools
import hashlib
import os
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_FIRST_PROCESS = Path("/proc/1/stat")
# The time at which a process began, in ticks since the boot (proc(5), without the PID and the name).
_STARTTIME = 22 - 3
_LENGTH = 12


@functools.cache
def space() -> str:
    """Return a short name of this boot and PID namespace; empty where the kernel does not name both."""
    try:
        boot, namespace = _BOOT.read_text(encoding="ascii").strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace} {_began()}".encode()).hexdigest()[:_LENGTH]


def _began() -> str:
    """Return the start time of the namespace: the kernel reuses the numbers of ended namespaces."""
    try:
        return _FIRST_PROCESS.read_text(errors="replace").rpartition(")")[2].split()[_STARTTIME]
    except (OSError, IndexError):
        # /proc is mounted with hidepid.
        return ""


def visible(node: str, where: str) -> bool:
    """Return whether processes of a host are visible here; `where` is the `space` that they noted.

    Older versions noted none, so their processes may be in another namespace.
    """
    return bool(where) and (node, where) == (os.uname().nodename, space())


def alive(pid: int) -> bool:
    """Return whether a process of this number runs here, under any user."""
    # Do not use /proc: mounted with hidepid, it shows only the caller's processes.
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
