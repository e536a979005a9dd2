"""The mounts of this process, read from the kernel's table."""

from pathlib import Path

import pytest

from rc_tasks.tools import inotify
from rc_tasks.util import mounts

TABLE = rb"""
22 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw
30 22 0:40 / /scratch rw - lustre 10.0.0.1@o2ib:/scratch rw
31 30 0:41 / /scratch/a\040b rw - tmpfs none rw
32 22 0:42 / /home rw - ext4 /dev/sdb rw
33 22 0:43 / /home rw - nfs4 server:/home rw
34 22 0:44 / /odd rw - fuse.sshfs host: rw
"""


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mountinfo"
    file.write_bytes(TABLE.lstrip())
    monkeypatch.setattr(mounts, "_TABLE", file)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/scratchy", "ext4"),
        ("/scratch/imgs", "lustre"),
        ("/scratch/a b", "tmpfs"),
        ("/scratch/a b/c", "tmpfs"),
        ("/home/ada", "nfs4"),
    ],
)
def test_the_nearest_and_last_mount_counts(path: str, kind: str) -> None:
    mount = mounts.mount_of(Path(path), mounts.mounts())
    assert mount is not None
    assert mount.kind == kind


def test_inotify_is_used_only_where_it_sees_all_changes() -> None:
    local = [Path("/imgs"), Path("/scratch/a b")]
    assert inotify.blind_spot(local) is None
    for blind in ("/scratch/imgs", "/home/ada", "/odd/x"):
        spot = inotify.blind_spot([*local, Path(blind)])
        assert spot is not None
        assert str(spot.directory) == blind
