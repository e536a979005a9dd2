"""`doit doctor` with the tools of this machine, whatever versions they have."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.steps.node import podman_storage
from rc_tasks.tools import command, podman, squashfs
from rc_tasks.tools.command import Command
from tests.support.checkouts import write_checkout
from tests.support.cluster import ACCOUNT, Cluster, Process, processes
from tests.support.doit import doit, start
from tests.support.images import BUSYBOX
from tests.support.runs import until
from tests.support.storage import own_storage, remove_storage
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


# Works nowhere, as crun on control groups of both versions.
BROKEN = """#!/bin/sh
[ "$1" != --version ] || exec echo crun version 1.8.1
echo cgroups in hybrid mode not supported, drop all controllers from cgroupv2 >&2
exit 1
"""


def test_where_no_run_works_doctor_says_so_and_setup_puts_it_right(tmp_path: Path) -> None:
    require_tools("podman", "busybox")
    runtime = tmp_path / "crun"
    runtime.write_text(BROKEN)
    runtime.chmod(0o755)
    dockerfile = (
        'FROM scratch\nCOPY busybox /\nRUN ["/busybox", "true"]\nENTRYPOINT ["/busybox", "env"]\n'
    )
    files = {"projects/x:1/Dockerfile": dockerfile}
    root = write_checkout(
        tmp_path / "checkout", files, f'runner = "local"\npodman.runtime = "{runtime}"'
    )
    shutil.copy(BUSYBOX, root / "projects/x:1/busybox")
    with own_storage() as (_, environment):
        environment["BUILDAH_ISOLATION"] = "oci"
        failed = doit(root, "podman:x:1", environ=environment)
        assert "`doit doctor` tries" in failed.text and "correct it" not in failed.text
        ran = doit(root, "doctor", environ=environment)
        assert ran.status == 1
        assert f"  problem  no RUN works: error running container: from {runtime} creating" in ran.text
        assert "\n           it works with podman." in ran.text
        assert "\n  warning  no container starts with podman: " in ran.text
        ran = doit(root, "build:x:1", environ={**environment, "RC_PODMAN_ISOLATION": "chroot"})
        assert ran.status == 0 and "ENTRYPOINT" not in ran.text, ran.text
        log = (root / ".rc/logs/x:1/podman/latest.log").read_text()
        assert "the image's ENTRYPOINT was not tried\n" in log
        Path.home().joinpath("scratch").mkdir()
        ran = doit(root, "local", "x:1", "--", "true", environ={**environment, "RC_LAUNCHER": "podman"})
        assert ran.status != 0
        assert "podman starts no containers here\n  next: `doit doctor` tries it, and names" in ran.text
        fit = subprocess.run(
            (sys.executable, "-m", "rc_tasks.steps", "fit"),
            cwd=root,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert fit.stdout.startswith("podman works here with podman.")
        ran = doit(root, "doctor", environ=environment)
        assert ran.status == 0, ran.text
        assert "\n  ok       a RUN works\n" in ran.text
        assert ran.text.endswith("\nready to build\n")
        (root / "projects/x:1/Dockerfile").write_text(f"{dockerfile}LABEL again=1\n")
        ran = doit(root, "podman:x:1", environ=environment)
        assert ran.status == 0, ran.text


@pytest.fixture
def environ(cluster: Cluster) -> Iterator[dict[str, str]]:
    """A user's shell on a login node; podman's images lie on each node apart."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        yield {
            **cluster.environment,
            "RC_RUNNER": "slurm",
            "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
        }
        cluster.end_jobs()
        for node in Path(storage).iterdir():
            remove_storage(node)


REFUSED = """\
  problem  Slurm refused the account of this check (no account, the default partition)
           salloc: error: Please name the account of your project: --account=...
           salloc: error: Job submit/allocate failed: Invalid account or account/partition combination specified
           SLURM_ACCOUNT does not count for salloc: write account = "a-demo" below [slurm]
           in ~/.config/rc_tasks.toml, or
           set `slurm.account` to one that may use this partition, or change `slurm.partition`;
           yours: `sacctmgr show associations user=$USER format=account,partition,qos`
           `doit help settings` names the files in which settings stand
"""  # noqa: E501 - as Slurm says it


@pytest.mark.slurm
def test_slurm_is_asked_as_a_run_asks_it(
    tmp_path: Path, environ: dict[str, str], cluster: Cluster
) -> None:
    root = write_checkout(tmp_path / "checkout", {})
    ran = doit(root, "doctor", environ={**environ, "SLURM_ACCOUNT": ACCOUNT})
    assert ran.status == 1
    assert "  ok       Slurm: Slurm's default account, Slurm's default partition\n" in ran.text
    assert (
        "  warning  SLURM_ACCOUNT does not count: a run asks salloc, which reads SALLOC_ACCOUNT\n"
        in ran.text
    )
    assert REFUSED in ran.text
    ran = doit(root, "doctor", environ={**environ, "SALLOC_ACCOUNT": ACCOUNT})
    assert (
        f"  ok       Slurm: account {ACCOUNT} (SALLOC_ACCOUNT), Slurm's default partition\n" in ran.text
    )
    assert ran.text.endswith("\nready to build\n")
    (root / "rc_tasks.toml").write_text(f'slurm.account = "{ACCOUNT}"\n')
    ran = doit(root, "doctor", environ={**environ, "RC_SLURM_PARTITION": "normal"})
    assert (
        f"  ok       Slurm: account {ACCOUNT} (slurm.account, from rc_tasks.toml),"
        " partition normal (slurm.partition, from RC_SLURM_PARTITION)\n"
    ) in ran.text
    assert ran.text.endswith("\nready to build\n")
    assert cluster.client("squeue", "--noheader").stdout == ""


@pytest.mark.slurm
@pytest.mark.skipif(os.geteuid() != 0, reason="the mounts of others are in their own namespaces")
def test_a_cancelled_step_leaves_no_mount_and_a_killed_one_until_the_next(
    tmp_path: Path, environ: dict[str, str], cluster: Cluster
) -> None:
    files = {
        "projects/slow:1/Dockerfile": "FROM scratch\nCOPY busybox /\n"
        'RUN ["/busybox", "sleep", "357.9"]\n',
        "projects/quick:1/Dockerfile": "FROM scratch\nCOPY busybox /\n",
    }
    root = write_checkout(tmp_path / "checkout", files, "slurm.extra = ['--nodelist=node1']")
    for name in ("slow:1", "quick:1"):
        shutil.copy(BUSYBOX, root / f"projects/{name}/busybox")
    environ["RC_SLURM_ACCOUNT"] = ACCOUNT
    storage = Path(environ["RC_PODMAN_STORAGE"]).parent

    def mounted() -> list[Path]:
        return [path for path in podman_storage.mounts_below(storage) if path.name == "merged"]

    def sleeping() -> list[Process]:
        mark = f"RC_PODMAN_STORAGE={environ['RC_PODMAN_STORAGE']}"
        return [
            each
            for each in processes()
            if mark in each.environment and "SLURMD_NODENAME=node1" in each.environment
        ]

    def asleep() -> bool:
        return bool(mounted()) and any("357.9" in each.argv for each in processes())

    with start(root, "podman:slow:1", environ=environ) as run:
        until(asleep)
        cluster.client("scancel", *cluster.client("squeue", "--noheader", "--format=%A").stdout.split())
        assert "was cancelled, by somebody's scancel" in run.communicate(timeout=60)[0]
    cluster.end_jobs()
    assert mounted() == []

    with start(root, "podman:slow:1", environ={**environ, "RC_SLURM_RETRIES": "0"}) as run:
        until(asleep)
        for process in sleeping():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        run.communicate(timeout=60)
    cluster.end_jobs()
    left = len(mounted())
    assert left >= 1
    ran = doit(root, "doctor", environ=environ)
    assert f"  warning  containers that killed steps left mounted: {left} (in " in ran.text
    assert doit(root, "podman:quick:1", environ=environ).status == 0
    assert mounted() == []


@pytest.mark.skipif(shutil.which("enroot") is None, reason="Debian has no Enroot")
def test_a_container_is_started_by_the_launcher_of_the_settings(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "checkout", {})
    with own_storage() as (_, environment):
        environment |= {"RC_RUNNER": "local", "RC_LAUNCHER": "enroot"}
        assert (
            "\n  ok       a container starts with enroot\n"
            in doit(root, "doctor", environ=environment).text
        )
