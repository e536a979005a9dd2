"""The shipped images, built whole: every apt and pip line, through Slurm, published, and started."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.tools.podman import Podman
from tests.support import ngc
from tests.support.checkouts import SOURCE
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.containers import working_runtime
from tests.support.doit import doit
from tests.support.storage import remove_storage
from tests.support.tools import require_tools

pytestmark = [pytest.mark.podman, pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGE = "projects/reasoning:2025.1"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short name on a real disk: podman's paths may be 50 characters long."""
    directory = Path(tempfile.mkdtemp(prefix="rc-", dir="/var/tmp"))
    yield directory
    remove_storage(directory)


def test_the_shipped_images_are_built_published_and_started(scratch: Path, cluster: Cluster) -> None:
    require_tools("mmdebstrap")
    root = scratch / "imgs"
    for name in ("reasoning_base", "projects", "templates"):
        shutil.copytree(
            SOURCE / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("*.sqsh")
        )
    for name in ("dodo.py", "pyproject.toml"):
        shutil.copy(SOURCE / name, root / name)
    # A stand-in under the name of the NGC image; it can take a while to make, so it may be kept.
    stand_in = Path(os.environ.get("NGC_DIRECTORY") or scratch / "ngc")
    storage = scratch / "node1"
    podman = Podman(root=str(storage / "root"), runroot=str(storage / "run"), driver="overlay")
    ngc.make(stand_in, podman)
    environ = {
        **cluster.environment,
        "RC_SLURM_ACCOUNT": ACCOUNT,
        "RC_SLURM_TIME_LIMIT_MIN": "30",
        "RC_SLURM_EXTRA": "--nodelist=node1",
        "RC_PODMAN_STORAGE": f"{scratch}/${{SLURMD_NODENAME}}",
        # For the smoke tests, which run in the squashed images.
        "RC_LAUNCHER": "podman",
        "RC_PODMAN_RUNTIME": working_runtime(podman, scratch / "rootfs"),
        "RC_PODMAN_VOLUMES": json.dumps(list(ngc.host_volumes(stand_in))),
    }

    ran = doit(root, "build:reasoning:2025.1", environ=environ, timeout_s=1500)
    assert ran.status == 0, ran.text
    print(ran.text)
    print(doit(root, "list", environ=environ).text)

    # The tracked EDFs name the official place, and are what the env step makes of them.
    for name in ("reasoning_base", IMAGE):
        assert (root / name / "env.toml").read_text() == (SOURCE / name / "env.toml").read_text()
    assert doit(root, environ=environ).started == []

    tree = scratch / "tree"
    unsquash = ["unsquashfs", "-no-progress", "-no-xattrs", "-dest", tree, root / IMAGE / "image.sqsh"]
    subprocess.run(unsquash, check=True, stdout=subprocess.DEVNULL)
    (tree / "root/scratch").mkdir(parents=True, exist_ok=True)
    code = "import torch, transformers, deepspeed; print(torch.__version__, transformers.__version__)"
    started = subprocess.run(
        [*enter(tree), "/bin/sh", "/etc/rc", "python3", "-c", code],
        # PATH is the image's own, which Enroot takes from /etc/environment.
        env={"HOME": "/root", **environment_of(tree)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    # deepspeed itself warns on standard output; the entrypoint's own words go to standard error.
    assert started.stdout.splitlines()[-1].startswith("2."), started.stdout
    assert "reasoning-gym" not in started.stdout
    assert "reasoning-gym" in started.stderr, "the entrypoint is in place, and says what it could not do"


def enter(tree: Path) -> tuple[str, ...]:
    """A command's beginning that runs it in a tree with /dev and /proc, as containers have them."""
    script = 'mount --rbind /dev "$1/dev" && mount --bind /proc "$1/proc" && exec chroot "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh", str(tree))


def environment_of(tree: Path) -> dict[str, str]:
    """The variables that the image sets."""
    lines = (tree / "etc/environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
