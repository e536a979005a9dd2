"""Features by version of podman: since when they exist, and what podman 6 drops."""

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from rc_tasks.tools.version import numbers

# The oldest version that is known to work.
OLDEST = "4.3"
# Flags of Dockerfile instructions, and the first version of podman that knows them. Source: the
# CHANGELOG of buildah (1.30, 1.33, 1.38, 1.40, 1.41), which podman 4.5, 4.8, 5.3, 5.5, 5.6 contain.
# Tried with 4.3.1, 5.4.2 and 5.8.6.
FLAGS_SINCE = {
    ("RUN", "--network"): (4, 5),
    ("ADD", "--checksum"): (4, 8),
    ("ADD", "--exclude"): (5, 3),
    ("COPY", "--exclude"): (5, 3),
    ("COPY", "--parents"): (5, 5),
    ("ADD", "--link"): (5, 6),
    ("COPY", "--link"): (5, 6),
}
# podman 4.8 and 4.9 know here-documents, but not as Debian and Ubuntu build them (buildah#5474). Until
# buildah 1.35 they also reuse a cached layer when the text of a here-document has changed.
HEREDOCS_SINCE = (5, 0)
# Since these versions podman's layer cache sees the files that a RUN --mount reads
# (containers/buildah#5400), and the images and stages (#6845). No warning is needed:
# `model/dockerfile/rewrite.py` works around it.
MOUNTED_FILES_SEEN_SINCE = (5, 4)
MOUNTED_STAGES_SEEN_SINCE = (6, 0)
# Since this version a stage begins with the ARGs of the stage that it is built on (imagebuilder#304, in
# buildah 1.41). Tried with 4.3.1, where it does not, and 5.8.
ARGUMENTS_INHERITED_SINCE = (5, 6)


class Dropped(Struct, frozen=True):
    """A value of `host` in `podman info` with which podman 5 runs and podman 6 does not."""

    key: str
    value: str
    does: str
    advice: str


# The release notes of podman 6.0.0, and its sources: `Cgroups v1 not supported` in
# cmd/podman/root_cgroups_linux.go, which means mixed ones as well, getDBState in libpod/runtime.go, and
# pkg/specgen/generate/container_create.go. Only users of podman 5 get the warning: podman 4 has the last
# two by default, and an upgrade leads to podman 5 first.
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


def at_least(version: str, oldest: tuple[int, ...]) -> bool:
    """Return whether a version, such as `5.4.2`, is at least `oldest`; an unknown version is not."""
    return numbers(version) >= oldest


def dropped(version: str, host: Mapping[str, Any], network: str = "") -> Iterator[Dropped]:
    """Yield the obstacles to podman 6 in `host` of `podman info` and in the network of RUN."""
    if not _DROPPED_FOR <= numbers(version) < _DROPPED_IN:
        return
    for feature in DROPPED_IN_6:
        if host.get(feature.key) == feature.value:
            yield feature
    if network.partition(":")[0] == "slirp4netns":
        yield Dropped(
            "podman.network",
            network,
            f'podman 6 has no slirp4netns, and podman.network is "{network}"',
            'set podman.network to "pasta" or "host"',
        )
