"""From which version podman does what, and what the next one does not do any more.

`podman.py` has what it understands in a Dockerfile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rc_tasks.tools.version import numbers

# The oldest that is known to work.
OLDEST = "4.3"
# From here on podman's layer cache sees the files that a RUN --mount reads (containers/buildah#5400),
# and the images and stages (#6845). Nobody has to be told: `model/rewrite.py` sees to it.
MOUNTED_FILES_SEEN_SINCE = (5, 4)
MOUNTED_STAGES_SEEN_SINCE = (6, 0)


@dataclass(frozen=True, slots=True)
class Dropped:
    """What podman 5 runs with and podman 6 does not: a value of `host` in `podman info`."""

    key: str
    value: str
    does: str
    advice: str


# The release notes of podman 6.0.0, and its sources: `Cgroups v1 not supported` in
# cmd/podman/root_cgroups_linux.go, which means mixed ones as well, getDBState in libpod/runtime.go, and
# pkg/specgen/generate/container_create.go. Who has podman 5 is told: podman 4 has the last two by
# default, and podman 5 comes before 6.
DROPPED_IN_6 = (
    Dropped(
        "cgroupVersion",
        "v1",
        "podman 6 will not start on this node: its control groups are of version 1 or mixed",
        "before podman is upgraded: boot the node with systemd.unified_cgroup_hierarchy=1",
    ),
    Dropped(
        "databaseBackend",
        "boltdb",
        "podman 6 will not read the database of containers in this storage, BoltDB, and fail there",
        "it holds no images. Upgrade to podman 5.8 first, and reboot the node or run there, while no\n"
        "other podman runs: {podman} system migrate --migrate-db",
    ),
    Dropped(
        "rootlessNetworkCmd",
        "slirp4netns",
        "podman 6 has no slirp4netns, which containers.conf names",
        "install pasta (Debian: passt), and remove default_rootless_network_cmd from containers.conf",
    ),
)
_DROPPED_FOR = (5, 0)
_DROPPED_IN = (6, 0)


def dropped(version: str, host: Mapping[str, Any], network: str = "") -> Iterator[Dropped]:
    """What stands in the way of an upgrade to podman 6, by `podman info` and the network of RUN."""
    if not _DROPPED_FOR <= numbers(version) < _DROPPED_IN:
        return
    for each in DROPPED_IN_6:
        if host.get(each.key) == each.value:
            yield each
    if network.partition(":")[0] == "slirp4netns":
        yield Dropped(
            "podman.network",
            network,
            f'podman 6 has no slirp4netns, and podman.network is "{network}"',
            'set podman.network to "pasta" or "host"',
        )
