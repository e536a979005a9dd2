"""Two members of one group in one checkout, set up as docs/how-to/official-checkout.md says."""

import grp
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.images import BUSYBOX
from tests.support.layers import listing
from tests.support.storage import remove_storage
from tests.support.tools import require_tools
from tests.support.users import User, ordinary_user, python

pytestmark = pytest.mark.podman

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY rootfs/ /\nRUN echo base > /base\n",
    "projects/one:1/Dockerfile": "FROM base\nRUN sleep 2; echo one > /one\n",
    "projects/two:1/Dockerfile": "FROM base\nRUN sleep 2; echo two > /two\n",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group, who works in the checkout with umask 002."""

    user: User
    python: tuple[str, ...]
    root: Path

    def start(self, *step: str, **settings: str) -> "subprocess.Popen[str]":
        """`python -m rc_tasks.steps STEP…`, running."""
        variables = (
            *(f"{name}={value}" for name, value in settings.items()),
            "RC_PODMAN_ISOLATION=chroot",
            f"RC_PODMAN_STORAGE={self.user.home}/storage",
        )
        in_checkout = (*self.user.argv, "env", f"--chdir={self.root}", *variables)
        return subprocess.Popen(
            (*in_checkout, *self.python, "-m", "rc_tasks.steps", *step),
            umask=0o002,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *step: str, status: int = 0, **settings: str) -> str:
        return ended(self.start(*step, **settings), status)


def ended(started: "subprocess.Popen[str]", status: int = 0) -> str:
    with started:
        output, _ = started.communicate(timeout=120)
    assert started.returncode == status, output
    return output


@pytest.fixture(scope="module")
def members() -> Iterator[tuple[Member, Member]]:
    require_tools("podman", "skopeo", "mksquashfs", "busybox", "useradd", "groupadd", "runuser")
    if os.geteuid() != 0:
        pytest.skip("only root can make two ordinary users")
    with ExitStack() as stack:
        users = [stack.enter_context(ordinary_user()) for _ in range(2)]
        group = users[0].name.replace("user", "imgs")
        subprocess.run(("groupadd", group), check=True)
        stack.callback(subprocess.run, ("groupdel", group), check=True)
        for user in users:
            subprocess.run(("usermod", "--append", "--groups", group, user.name), check=True)
        # A home is its user's alone.
        users[0].home.chmod(0o711)
        root = write_checkout(
            users[0].home / "the checkout",
            FILES,
            f'images_root = "{users[0].home}/the checkout"\nimages_owners = ["@{group}"]',
        )
        programs = root / "base/rootfs/bin"
        programs.mkdir(parents=True)
        shutil.copy(BUSYBOX, programs / "busybox")
        for applet in ("sh", "sleep"):
            (programs / applet).symlink_to("busybox")
        owner = f"{users[0].name}:{group}"
        subprocess.run(("chown", "--recursive", "--no-dereference", owner, root), check=True)
        subprocess.run(("chmod", "--recursive", "u=rwX,g=rwX,o=rX", root), check=True)
        for path in (root, *root.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o2775)
        yield (
            Member(users[0], python(users[0]), root),
            Member(users[1], python(users[1]), root),
        )


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for podman, which takes no long paths."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as directory:
        yield Path(directory)
        remove_storage(Path(directory, "storage"))


def test_two_members_build_and_replace_each_others_images(members: tuple[Member, Member]) -> None:
    first, second = members
    root = first.root
    first.run("podman", "base")
    # At the same time: what the one built, the other brings and builds on.
    for each in [first.start("podman", "one:1"), second.start("podman", "two:1")]:
        ended(each)
    first.run("enroot", "one:1")
    dockerfile = root / "projects/one:1/Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + "RUN echo more > /more\n")
    second.run("podman", "one:1")
    second.run("enroot", "one:1")
    kept = [path for path in (root / ".rc/previous/one:1").iterdir() if path.name[0] != "."]
    assert len(kept) == 1, "the other member's image is there to be put back"
    group = grp.getgrgid(root.stat().st_gid).gr_name
    found = [path for path in (root / ".rc").rglob("*") if not path.is_symlink()]
    assert {path.owner() for path in found} == {first.user.name, second.user.name}
    foreign = [path for path in found if path.group() != group]
    assert foreign == [], "what another member could not remove"
    closed = [path for path in found if path.is_dir() and not path.stat().st_mode & stat.S_IWGRP]
    assert closed == []


def test_each_publishes_from_the_layers_of_the_others(
    members: tuple[Member, Member], short_path: Path
) -> None:
    first, second = members
    root = first.root
    # In root's storage, deletions have another form than in a user's.
    admin = Member(User("root", short_path, ()), (sys.executable,), root)
    lines = (
        "busybox rm /base; busybox mkdir /gone; echo a > /gone/a",
        "busybox rm -r /gone; busybox mkdir /gone",
    )
    change(root, "two:1", *lines)
    for name in ("base", "two:1"):
        first.run("podman", name)
    layers, new = merged(first.run("enroot", "base"))
    assert new == 0
    # All layers are the first member's.
    assert merged(second.run("enroot", "two:1")) == (layers + 3, 0)
    published = published_listing(root)
    assert not [line for line in published if line.endswith(("/base", "/gone/a"))]
    change(root, "two:1", "echo more > /more")
    first.run("podman", "two:1")
    assert merged(admin.run("enroot", "two:1")) == (layers + 4, 0)
    assert len(published_listing(root)) == len(published) + 1
    shutil.rmtree(root / ".rc/store")
    for name in ("base", "two:1"):
        admin.run("podman", name)
    assert merged(admin.run("enroot", "two:1")) == (layers + 4, 0)
    made_by_root = published_listing(root)
    for each in (first, second, admin):
        assert merged(each.run("enroot", "two:1")) == (layers + 4, 0)
        assert published_listing(root) == made_by_root
        assert "\nmerged " not in each.run("enroot", "two:1", RC_SQUASH_METHOD="direct")
        assert published_listing(root) == made_by_root
    assert [path for path in (root / ".rc/store").iterdir() if path.name.startswith(".put")] == []
    group = grp.getgrgid(root.stat().st_gid).gr_name
    assert {path.group() for path in (root / ".rc/store/layers").rglob("*")} == {group}


def test_a_member_replaces_a_damaged_layer_of_another(members: tuple[Member, Member]) -> None:
    first, second = members
    first.run("podman", "base")
    layers, _ = merged(first.run("enroot", "base"))
    for path in (first.root / ".rc/store/layers").glob("*/layer.json"):
        path.write_text("{}")
    assert merged(second.run("enroot", "base")) == (layers, layers)
    assert merged(first.run("enroot", "base")) == (layers, 0)


def change(root: Path, name: str, *lines: str) -> None:
    dockerfile = root / "projects" / name / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + "".join(f"RUN {line}\n" for line in lines))


def merged(output: str) -> tuple[int, int]:
    """How many layers were merged, and how many of them squashed."""
    found = re.search(r"^merged (\d+) layers(?:, (\d+) of them squashed now)?: ", output, re.MULTILINE)
    assert found is not None, output
    return int(found[1]), int(found[2] or 0)


def published_listing(root: Path) -> list[str]:
    lines = listing(root / "projects/two:1/image.sqsh")
    # It says who squashed the image.
    return [line for line in lines if not line.endswith("/etc/rc")]
