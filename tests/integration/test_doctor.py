"""`doit doctor` with the tools of this machine, whatever versions they have."""

from pathlib import Path

import pytest

from rc_tasks.tools import command, podman, squashfs
from rc_tasks.tools.command import Command
from tests.support.checkouts import write_checkout
from tests.support.doit import doit
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

CGROUPS = (
    "  warning  podman 6 will not start on this node: its control groups are of version 1 or mixed\n"
    "           before podman is upgraded: boot the node with systemd.unified_cgroup_hierarchy=1\n"
)


def test_the_tools_are_told_by_their_versions(tmp_path: Path) -> None:
    require_tools("podman", "mksquashfs", "unsquashfs")
    root = write_checkout(tmp_path / "checkout", {})
    with own_storage() as (engine, environment):
        ran = doit(root, "doctor", environ={"RC_RUNNER": "local", **environment})
        driver = engine.driver
    assert ran.status == 0, ran.text
    version, mksquashfs = podman.version(), squashfs.version()
    assert f"  ok       podman {version}, storage driver {driver} in podman's own storage\n" in ran.text
    assert f"  ok       mksquashfs {mksquashfs}, compression zstd" in ran.text
    kind = command.capture(Command(("stat", "-f", "-c", "%T", "/sys/fs/cgroup"))).stdout.strip()
    told = version.startswith("5.") and kind != "cgroup2fs"
    assert (CGROUPS in ran.text) == told
    # A new storage and the configuration of the distribution stand in nobody's way.
    assert ran.text.count("podman 6 ") == told
    assert ("  warning  mksquashfs" in ran.text) == bool(squashfs.workaround_options(mksquashfs))
