"""Causes of failed tools that lie in the node, the version or the settings, not in the input.

The patterns of `LIMITS` are the texts of errno(3), in any tool. The comments above the other tables name
their sources.
"""

import os
import re
from collections.abc import Iterable
from signal import SIGKILL

from msgspec import Struct

from rc_tasks.errors import CommandError
from rc_tasks.tools.podman_versions import OLDEST


class FailureCause(Struct, frozen=True):
    """One cause of a failure: a pattern for the tool's message, our message, and what to do next."""

    pattern: str
    what: str
    hint: str

    def error(self, tool: str) -> CommandError:
        """Return the error for a tool that failed here for this cause; the log has its last lines."""
        return CommandError(f"{tool} failed: {self.what}", where=node_name(), hint=self.hint)


_MEMORY = (
    'ask Slurm for more memory with `slurm.extra`, as in ["--mem=64G"], or for fewer processors; what\n'
    "lies in /dev/shm counts too: podman's images in a job. Then run the same command again"
)
_OTHER_NODE = "run the same command again, on another node if it fails again; then tell the site"
_SITE = "this is for the site's administrators; until then, build on another node"

LIMITS = (
    FailureCause(
        r"disk quota exceeded",
        "a disk quota is used up",
        "remove what is not needed (`doit gc`), or ask for more quota there; `podman.storage` and\n"
        "TMPDIR can name other places. Then run the same command again",
    ),
    FailureCause(
        r"no space left on device",
        "no space is left",
        "`df -h` and `df -i` on that node tell which disk is full, of bytes or of files: free\n"
        "some, or let `podman.storage` or TMPDIR name a larger one; /dev/shm is the job's memory.\n"
        "Then run the same command again",
    ),
    FailureCause(
        r"read-only file system",
        "a file system cannot be written",
        "let `podman.storage` or TMPDIR name a place that can be written; a disk that has just become\n"
        "read-only is for the site to repair: run the same command on another node",
    ),
    FailureCause(
        r"too many open files|setting \"?RLIMIT_\w+\"? limit",
        "the limit of open files is too low",
        "raise it where you call doit (`ulimit -n $(ulimit -Hn)`); if that is not enough, the site can\n"
        "raise it (limits.conf(5), LimitNOFILE of slurmd)",
    ),
    FailureCause(
        # A GPU's memory and the linker's static TLS are other limits.
        r"cannot allocate memory(?! in static TLS)|(?<!cuda )out of memory|\(OOM\)",
        "no memory is left",
        _MEMORY,
    ),
    FailureCause(
        r"resource temporarily unavailable|failed to create (new OS )?thread|can't fork|cannot fork",
        "no more processes can be started",
        "`ulimit -u` and the pids.max of the job's cgroup limit them: end some, ask for fewer\n"
        "processors, or ask the site to raise the limit. Then run the same command again",
    ),
    FailureCause(
        r"input/output error|stale (NFS )?file handle|transport endpoint is not connected",
        "a file system gives no answer",
        _OTHER_NODE,
    ),
)

# The kernel sends SIGKILL when a job's memory runs out; tools report it with these words.
KILLED = FailureCause(
    r"subprocess exited on killed|exit status 137|signal: killed",
    "it was killed, as happens when memory runs out",
    _MEMORY,
)

# Messages of podman 4.3.1 with crun 1.8 and runc 1.1, as tried. Those about user namespaces are in
# podman 3.4 to 5.4 (pkg/rootless, and pkg/idtools and pkg/unshare of containers/storage).
PODMAN = (
    FailureCause(
        # util-linux, when podman is to enter the namespace that a process of ours held.
        r"nsenter: cannot open /proc/\d+/ns/",
        "the process that held the mounts of this step was killed, as happens when memory runs out",
        _MEMORY,
    ),
    FailureCause(
        r"cgroups in hybrid mode not supported",
        "crun cannot work with this node's control groups",
        'set `podman.runtime` to "runc", or `podman.isolation` to "chroot": `doit doctor` tries which\n'
        "works; the site can start its nodes with cgroups of version 2 alone\n"
        "(systemd.unified_cgroup_hierarchy=1)",
    ),
    FailureCause(
        r"sd-bus|systemd cgroup|dbus: |connect to bus|interactive authentication required",
        "systemd refuses podman a control group",
        'set `podman.cgroup_manager` to "cgroupfs", or `podman.isolation` to "chroot"',
    ),
    FailureCause(
        r"OCI runtime \"[^\"]*\" not found|no suitable OCI runtime|runtime \S+ not found"
        r"|exec: \"(crun|runc)\"",
        "there is no program that runs containers",
        "install crun or runc, or ask the site to; `podman.runtime` names another one, and\n"
        '`podman.isolation` = "chroot" builds without',
    ),
    FailureCause(
        r"newuidmap|newgidmap|sub[ug]id ranges|/etc/sub[ug]id|insufficient UIDs or GIDs"
        r"|not be enough IDs available",
        "you have no range of user IDs, or it cannot be used",
        "ask the site for ranges in /etc/subuid and /etc/subgid (usermod --add-subuids), and for\n"
        "newuidmap and newgidmap with their capabilities; after that: `podman system migrate`",
    ),
    FailureCause(
        r"cannot (clone|set user namespace|re-exec process)|max_user_namespaces"
        r"|user namespaces? (is|are) not (enabled|supported)",
        "podman gets no user namespace",
        f"sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone allow them: {_SITE}",
    ),
    FailureCause(
        r"max depth exceeded",
        "podman's overlay driver cannot stack so many layers",
        'set `podman.driver` to "vfs", or take a base with fewer layers (podman 4.3 mounts 128);\n'
        "in an image of your own, fewer RUN and COPY make fewer",
    ),
    FailureCause(
        r"driver not supported|overlay' is not supported over|does not support overlay|GetDriver graph"
        r"|prerequisites for driver",
        "podman's storage driver does not work here",
        'set `podman.driver` to "vfs", or `podman.storage` to a disk that overlay can be on;\n'
        "`doit doctor` tells which driver is used",
    ),
    FailureCause(
        r"database configuration mismatch|does not match our (storage|run|static|tmp|volume)",
        "podman's storage was made with other settings",
        "set `podman.driver` and `podman.storage` as they were, or `podman.storage` to a new place",
    ),
    FailureCause(
        r"(?m)^Error: unknown (shorthand )?flag",
        "podman does not know an option that it was given",
        f"podman {OLDEST} and newer are known to work: `podman --version` tells which one that node has",
    ),
    FailureCause(
        # Go prints the error of a system call on a path like this.
        r"\b(open|mkdir|l?stat|l?chown|chmod|unlinkat|mount|rename|remove|symlink|link) /\S+: "
        r"(permission denied|operation not permitted)",
        "something may not be read or written",
        "`ls -ld` the path that is named above on that node: if it is yours, give yourself the\n"
        "right; if not, set `podman.storage` or TMPDIR to a place of yours, or ask the site",
    ),
)

# Messages of mksquashfs 4.3 to 4.7 (mksquashfs.c, virt_disk_pos.c), which reads its own output only to
# compare files. unsquashfs prints `uncompress failed` too, but not as the fatal error.
COMPARING = FailureCause(
    r"FATAL ERROR: ?\w+ uncompress failed with error code|BUG in get_virt_disk",
    "mksquashfs failed while it compared files, as versions 4.7 to 4.7.5 can",
    'run again, or set `method = "direct"` in the [squash] settings: it then does it once more\n'
    "without comparing",
)
# Messages of squashfs-tools 4.3 to 4.6 (mksquashfs.c, compressor.c).
SQUASHFS = (
    COMPARING,
    FailureCause(
        r"compressor \S+ (is )?not supported|unknown compressor|invalid compressor|filesystem uses \w+ "
        r"compression, this is unsupported",
        "this version of squashfs-tools lacks the compressor",
        'set `compression` in the [squash] settings to "gzip", which every version has, or ask the\n'
        "site for a newer squashfs-tools",
    ),
)


def node_name() -> str:
    """Return the name of this process's node, as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME", os.uname().nodename)


def find(
    lines: Iterable[str], causes: Iterable[FailureCause], returncode: int = 1
) -> FailureCause | None:
    """Return the first cause that a tool's last lines name; `returncode` as in `subprocess`."""
    text = "\n".join(lines)
    named = next((cause for cause in causes if re.search(cause.pattern, text, re.IGNORECASE)), None)
    killed = returncode in (-SIGKILL, 128 + SIGKILL)
    return named or (KILLED if killed else None)
