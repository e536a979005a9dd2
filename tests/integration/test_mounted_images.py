"""Builds on nodes where bases are mounted from the store instead of loaded."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_sources import Site
from tests.support.checkouts import write_checkout
from tests.support.images import BUSYBOX
from tests.support.storage import remove_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

BASE = """\
FROM scratch
COPY rootfs/ /
ENV PATH=/bin
RUN mkdir -p /data/old /gone /kept; seq 1 200000 > /data/old/numbers; echo a > /gone/a; echo k > /kept/k
RUN rm -r /data /gone; mkdir /data; echo new > /data/new
ONBUILD RUN echo triggered > /triggered
"""
CHILD = """\
FROM base
RUN ls /data /kept > /seen; echo child > /child
COPY --from=base /data/new /copied
RUN --mount=type=bind,from=base,target=/m cat /m/kept/k > /from-mount
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A checkout with a base and a child; every node mounts."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts layers")
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "mount")
    files = {"projects/base/Dockerfile": BASE, "projects/child/Dockerfile": CHILD}
    root = write_checkout(tmp_path / "imgs", files)
    programs = root / "projects/base/rootfs/bin"
    programs.mkdir(parents=True)
    (programs / "busybox").write_bytes(BUSYBOX.read_bytes())
    (programs / "busybox").chmod(0o755)
    for applet in ("sh", "cat", "ls", "mkdir", "rm", "seq"):
        (programs / applet).symlink_to("busybox")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as storages:
        environ = {"RC_RUNNER": "local", "RC_PODMAN_DRIVER": "overlay", "RC_STORE_MOUNT": "always"}
        yield Site(root, Path(storages), environ)
        for storage in Path(storages).iterdir():
            remove_storage(storage)


def listing(site: Site, name: str) -> list[str]:
    image = site.root / "projects" / name / "image.sqsh"
    argv = ("unsquashfs", "-ll", str(image))
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] + line.partition("squashfs-root")[2] for line in text.splitlines()]


def mounted(site: Site) -> list[str]:
    """What is mounted of this checkout's store."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in mounts if "squashfs" in line and str(site.root) in line]


def held_bytes(storage: Path) -> int:
    """What podman's own storage holds; mounted layers are beside it."""
    return sum(path.lstat().st_size for path in (storage / "root/overlay").rglob("*"))


def test_a_child_is_built_on_a_mounted_base(site: Site) -> None:
    assert "mounted" not in site.doit("build:base", node="a")
    site.doit("build:child", node="b")
    log = site.log("child")
    assert "mounted " in log and "loading" not in log
    assert not mounted(site)
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"
    assert site.read("child", "copied") == "new\n" and site.read("child", "from-mount") == "k\n"
    assert site.read("child", "triggered") == "triggered\n"
    assert held_bytes(site.storages / "b") < BUSYBOX.stat().st_size
    built = listing(site, "child")
    site.doit("forget", "podman:child", "enroot:child")
    (site.root / ".rc/store/cache/child.json").unlink()
    site.doit("build:child", node="c", RC_STORE_MOUNT="never")
    assert "loading base" in site.log("child")
    assert listing(site, "child") == built


def test_the_layer_cache_is_mounted_too(site: Site) -> None:
    site.doit(node="a")
    recipe = site.root / "projects/base/Dockerfile"
    recipe.write_text(recipe.read_text() + "RUN echo last > /last\n")
    site.doit("build:base", node="b")
    log = site.log("base")
    assert log.count("Using cache") >= 4, log
    assert "mounted " in log and site.read("base", "last") == "last\n"
    assert site.read("base", "data/new") == "new\n" and site.read("base", "gone/a") is None


def test_what_was_built_on_a_mounted_base_can_be_used_again(site: Site) -> None:
    """By later steps on the node, which mount what it was built on once more."""
    site.doit(node="a")
    for text in ("one", "two"):
        recipe = site.root / "projects/child/Dockerfile"
        recipe.write_text(recipe.read_text() + f"RUN cat /data/new > /{text}\n")
        site.doit("build:child", node="b")
        assert site.read("child", text) == "new\n"
    assert site.log("child").count("Using cache") >= 3
    (site.root / "projects/child/image.sqsh").unlink()
    site.doit("enroot:child", node="b", RC_STORE_MOUNT="always")
    assert site.read("child", "two") == "new\n"
    assert not mounted(site)


def test_a_damaged_layer_is_loaded_instead(site: Site) -> None:
    site.doit(node="a")
    for layer in site.root.glob(".rc/store/layers/*/layer.sqsh"):
        os.truncate(layer, 100)
    site.doit("forget", "podman:child")
    site.doit("build:child", node="b")
    log = site.log("child")
    assert "cannot be mounted, so it is loaded: not a whole SquashFS image" in log
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"
