"""Builds on nodes where bases are mounted from the store instead of loaded."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.test_sources import Site
from tests.support.checkouts import write_checkout
from tests.support.images import BUSYBOX
from tests.support.storage import remove_storage
from tests.support.tools import require_tools
from tests.support.users import User, ordinary_user, python

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


def write_programs(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "busybox").write_bytes(BUSYBOX.read_bytes())
    (directory / "busybox").chmod(0o755)
    for applet in ("sh", "cat", "ls", "mkdir", "rm", "seq"):
        (directory / applet).symlink_to("busybox")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A checkout with a base and a child; every node mounts."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts layers")
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "mount")
    files = {"projects/base/Dockerfile": BASE, "projects/child/Dockerfile": CHILD}
    root = write_checkout(tmp_path / "imgs", files)
    write_programs(root / "projects/base/rootfs/bin")
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


def test_more_layers_than_fit_into_mount_options_are_loaded(site: Site) -> None:
    """podman cannot mount so many layers of another store at once."""
    lines = "".join(f"COPY many/{number} /many/\n" for number in range(60))
    for number in range(60):
        site.write(f"projects/base/many/{number}", f"{number}\n")
    recipe = site.root / "projects/base/Dockerfile"
    recipe.write_text(recipe.read_text() + lines)
    site.doit("build:base", node="a")
    site.doit("build:child", node="b")
    log = site.log("child")
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    assert ("loading base" in log and "mounted" not in log) == (page_bytes == 4096), log
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"


def test_a_damaged_layer_is_made_again(site: Site) -> None:
    site.doit(node="a")
    for layer in site.root.glob(".rc/store/layers/*/layer.sqsh"):
        os.truncate(layer, 100)
    site.doit("forget", "podman:child")
    ran = site.doit("build:child", node="b")
    assert "nor whole in the store" in ran, ran
    assert " 0 damaged" in site.doit("verify", "--all")
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"


@dataclass(frozen=True, slots=True)
class Jobs:
    """Jobs of an ordinary user, who may open /dev/fuse as on most hosts."""

    user: User
    python: tuple[str, ...]
    root: Path
    fuse: Path

    def run(self, job: str, *step: str) -> str:
        """The output of `python -m rc_tasks.steps STEP…` in a job; all earlier ones have ended."""
        squeue = self.user.home / "bin/squeue"
        squeue.parent.mkdir(exist_ok=True)
        squeue.write_text(f"#!/bin/sh\necho {job}\n")
        squeue.chmod(0o755)
        with_fuse = ("sh", "-c", f'mount --bind {self.fuse} /dev/fuse && exec "$@"', "sh")
        variables = (f"PATH={squeue.parent}:/usr/bin:/bin", f"SLURM_JOB_ID={job}")
        done = subprocess.run(
            (
                *("unshare", "--mount", "--propagation", "private", *with_fuse),
                *(*self.user.argv, "env", f"--chdir={self.root}", *variables),
                *("RC_PODMAN_ISOLATION=chroot", *self.python, "-m", "rc_tasks.steps", *step),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def serving(self) -> list[str]:
        """What still serves mounts to this user."""
        argv = ("ps", "-u", self.user.name, "-o", "stat=,args=")
        lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
        return [line for line in lines if "squashfuse" in line and not line.startswith("Z")]


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    require_tools("podman", "skopeo", "mksquashfs", "busybox", "useradd", "runuser", "squashfuse_ll")
    if os.geteuid() != 0:
        pytest.skip("only root can make an ordinary user")
    with ordinary_user() as user, tempfile.TemporaryDirectory(dir="/var/tmp") as devices:
        Path(devices).chmod(0o755)
        fuse = Path(devices, "fuse")
        os.mknod(fuse, 0o020666, os.makedev(10, 229))
        fuse.chmod(0o666)
        files = {"base/Dockerfile": BASE, "projects/child/Dockerfile": CHILD}
        root = write_checkout(user.home / "imgs", files)
        write_programs(root / "base/rootfs/bin")
        subprocess.run(("chown", "--recursive", "--no-dereference", f"{user.name}:", root), check=True)
        yield Jobs(user, python(user), root, fuse)


def test_an_ordinary_user_mounts_with_squashfuse(jobs: Jobs) -> None:
    for step in ("podman", "enroot"):
        assert "mounted " not in jobs.run("11", step, "base")
    built = jobs.run("12", "podman", "child")
    assert "mounted " in built and "loading" not in built
    published = jobs.run("12", "enroot", "child")
    assert "merged " in published and "loading" not in published
    assert not jobs.serving()
    image = jobs.root / "projects/child/image.sqsh"
    for name, text in (("seen", "/data:\nnew\n\n/kept:\nk\n"), ("from-mount", "k\n")):
        argv = ("unsquashfs", "-cat", str(image), name)
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == text
    storage = Path("/dev/shm", jobs.user.name, "rc_tasks/12")
    assert held_bytes(storage) < BUSYBOX.stat().st_size


def test_a_layer_that_is_damaged_after_a_build_on_it_is_told(site: Site) -> None:
    """podman would look for it in the mounted store, and fail in words of its own."""
    site.doit(node="a")
    recipe = site.root / "projects/child/Dockerfile"
    recipe.write_text(recipe.read_text() + "RUN echo 1 > /one\n")
    site.doit("build:child", node="b")
    for layer in site.root.glob(".rc/store/layers/*/layer.sqsh"):
        os.truncate(layer, 100)
    recipe.write_text(recipe.read_text() + "RUN echo 2 > /two\n")
    said = site.doit("build:child", node="b", status=1)
    assert "on which this node has built before, cannot be mounted again: not a whole SquashFS" in said
    assert "`doit verify --all` names what is damaged" in said
    site.doit("build:child", node="c", RC_STORE_MOUNT="never")
    assert site.read("child", "two") == "2\n"


def test_a_node_that_cannot_mount_loads(site: Site, tmp_path: Path) -> None:
    site.doit(node="a")
    site.doit("forget", "podman:child")
    refusing = tmp_path / "bin/mount"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'mount: permission denied' >&2; exit 32\n")
    refusing.chmod(0o755)
    site.doit("build:child", node="b", PATH=f"{refusing.parent}:{os.environ['PATH']}")
    log = site.log("child")
    assert "cannot be mounted, so it is loaded: " in log and "loading base" in log
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"
