"""Images for several machines: nodes of both kinds, nodes of one kind, and emulation."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.tools import binfmt
from tests.support.checkouts import write_checkout
from tests.support.cluster import Cluster
from tests.support.doit import doit
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage, remove_storage
from tests.support.tools import require_tools

HERE = os.uname().machine
OTHER = "aarch64" if HERE != "aarch64" else "x86_64"
DOCKER = {"aarch64": "arm64", "x86_64": "amd64"}
BOTH = f'arch = ["{HERE}", "{OTHER}"]\n'
FILES = {
    "projects/base:1/Dockerfile": (
        "FROM scratch\nARG TARGETARCH\nCOPY bin /bin\nCOPY only-$TARGETARCH /only\nENV PATH=/bin\n"
    ),
    "projects/base:1/project.toml": BOTH,
    "projects/base:1/only-amd64": "amd64\n",
    "projects/base:1/only-arm64": "arm64\n",
    "projects/base:latest": "-> base:1",
    "projects/app/Dockerfile": "FROM base:latest\nRUN busybox uname -m > /built-on\n",
    "projects/app/project.toml": BOTH,
    "projects/plain/Dockerfile": "FROM app\n",
}
IMAGES = (f"base:1-{HERE}", f"base:1-{OTHER}", f"app:{HERE}", f"app:{OTHER}", "plain")
# Python runs this file when it starts. It stands for a node of the other kind.
PRETENDING = f"""\
import os

if os.environ.get("SLURMD_NODENAME") == "node2":
    here = os.uname()
    os.uname = lambda: os.uname_result((*here[:4], "{OTHER}"))
"""

pytestmark = pytest.mark.podman


def file_of(root: Path, name: str, path: str) -> str:
    argv = ("unsquashfs", "-no-progress", "-cat", root / f"projects/{name}/image.sqsh", path)
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def facts(root: Path, name: str) -> dict[str, str]:
    """What image.json says of an image."""
    loaded: dict[str, str] = json.loads((root / f"projects/{name}/image.json").read_text())
    return loaded


def states(root: Path, environ: dict[str, str]) -> dict[str, str]:
    rows = json.loads(doit(root, "list", "--json", environ=environ).text)
    return {row["name"]: row["state"] for row in rows}


def programs(root: Path, busybox: Path) -> None:
    (root / "projects/base:1/bin").mkdir()
    shutil.copy(busybox, root / "projects/base:1/bin/busybox")
    (root / "projects/base:1/bin/sh").symlink_to("busybox")


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A checkout, and the environment in which node2 is of the other kind."""
    root = write_checkout(tmp_path / "checkout", FILES)
    programs(root, BUSYBOX)
    (tmp_path / "python").mkdir()
    (tmp_path / "python/sitecustomize.py").write_text(PRETENDING)
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        yield (
            root,
            {
                **cluster.environment,
                "RC_RUNNER": "slurm",
                "RC_SLURM_ACCOUNT": "a-demo",
                "RC_SLURM_EXTRA": "--nodelist=node1",
                "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
                "PYTHONPATH": str(tmp_path / "python"),
            },
        )
        for node in cluster.node_names:
            remove_storage(Path(storage) / node)


@pytest.mark.slurm
def test_each_image_is_built_on_a_node_of_its_kind(site: tuple[Path, dict[str, str]]) -> None:
    root, environ = site
    (root / "rc_tasks.toml").write_text(f'[arch.{OTHER}]\nextra = ["--nodelist=node2"]\n')
    ran = doit(root, environ=environ)
    assert ran.status == 0, ran.text
    assert states(root, environ) == dict.fromkeys(IMAGES, "fresh")
    for machine, node in ((HERE, "node1"), (OTHER, "node2")):
        name = f"app:{machine}"
        assert facts(root, name)["node"] == node
        assert facts(root, name)["architecture"] == DOCKER[machine]
        assert file_of(root, name, "only") == f"{DOCKER[machine]}\n"
        edf = (root / f"projects/{name}/env.toml").read_text()
        assert f"projects/{name}/image.sqsh" in edf
    common = (root / "projects/base:1/env.toml").read_text()
    assert f"/projects/base:1-${{IMAGE_MACHINE:-{HERE}}}/env.toml" in common
    # An image without `arch` is for the node that builds it, and stands on the base for that.
    assert file_of(root, "plain", "only") == f"{DOCKER[HERE]}\n"
    assert doit(root, environ=environ).started == []
    (root / f"projects/base:1/only-{DOCKER[OTHER]}").write_text("changed\n")
    assert doit(root, environ=environ).status == 0
    assert file_of(root, f"app:{OTHER}", "only") == "changed\n"


@pytest.mark.slurm
def test_a_run_without_nodes_of_the_other_kind_leaves_those_alone(
    site: tuple[Path, dict[str, str]],
) -> None:
    root, environ = site
    ran = doit(root, environ=environ)
    assert ran.status == 0, ran.text
    why = f"no node of {OTHER} is known here; name its nodes in the settings: arch.{OTHER}.partition\n"
    assert f"ignored podman:base:1-{OTHER}  {why}" in ran.text
    assert ran.text.endswith("5 images: 3 built; 2 ignored\n"), ran.text
    assert states(root, environ)[f"app:{OTHER}"] == "missing"
    assert f"no run takes app:{OTHER}: {why}" in doit(root, "list", environ=environ).text
    assert (
        f"  note    app:{OTHER} is left alone: {why}"
        in doit(root, "why", f"app:{OTHER}", environ=environ).text
    )


@pytest.mark.slurm
def test_a_node_of_the_wrong_kind_is_told(site: tuple[Path, dict[str, str]]) -> None:
    root, environ = site
    (root / "rc_tasks.toml").write_text(f'[arch.{OTHER}]\nextra = ["--nodelist=node3"]\n')
    if binfmt.emulates(OTHER):
        pytest.skip(f"this host emulates {OTHER}, so that no node is of the wrong kind")
    ran = doit(root, f"build:base:1-{OTHER}", environ=environ)
    assert ran.status != 0
    assert f"node3: base:1-{OTHER} is for {OTHER}, and this node is {HERE}" in ran.text
    assert f"next: name nodes of {OTHER} in the settings: arch.{OTHER}.partition," in ran.text


def test_the_other_kind_is_emulated_where_the_kernel_can(tmp_path: Path) -> None:
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    busybox = os.environ.get("OTHER_BUSYBOX", "")
    if not binfmt.emulates(OTHER) or not busybox:
        pytest.skip(f"needs qemu-user for {OTHER}, and its busybox in OTHER_BUSYBOX")
    root = write_checkout(tmp_path / "checkout", FILES)
    programs(root, Path(busybox))
    with own_storage() as (_, environment):
        environ = {**environment, "RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot"}
        ran = doit(root, f"build:app:{OTHER}", environ=environ)
        assert ran.status == 0, ran.text
        assert file_of(root, f"app:{OTHER}", "built-on") == f"{OTHER}\n"
        assert facts(root, f"app:{OTHER}")["architecture"] == DOCKER[OTHER]
        log = doit(root, "log", f"podman:app:{OTHER}", environ=environ).text
        assert f"note: this node is {HERE} and emulates {OTHER}\n" in log
        assert doit(root, f"build:app:{OTHER}", environ=environ).started == []
