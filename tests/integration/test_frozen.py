"""A frozen image stays as it is, whatever becomes of what it was made from."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkouts import write_checkout
from tests.support.containers import working_runtime
from tests.support.doit import unstamped
from tests.support.family import Family, published
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

FILES = {
    "base/Dockerfile": 'FROM scratch\nCOPY busybox /bin/sh\nRUN ["/bin/sh", "-c", "echo 1 > /base"]\n',
    "projects/paper:1/Dockerfile": "FROM base\nCOPY data /data\nRUN echo paper > /paper\n",
    "projects/paper:1/data": "one\n",
    "projects/paper:1/project.toml": "frozen = true\n",
    "projects/paper:latest": "-> paper:1",
    "projects/user:1/Dockerfile": "FROM paper:latest\nRUN echo user > /user\n",
    "projects/user:1/project.toml": "smoke = []\n",
}
RECIPE = "projects/paper:1/project.toml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The family, published: what is frozen is built as long as it is not there."""
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    with own_storage() as (podman, environment):
        root = write_checkout(tmp_path_factory.mktemp("built") / "it's: a checkout é", FILES)
        shutil.copy(BUSYBOX, root / "base/busybox")
        home = tmp_path_factory.mktemp("home")
        environment |= {
            "RC_RUNNER": "local",
            "RC_PODMAN_ISOLATION": "chroot",
            "RC_PODMAN_RUNTIME": working_runtime(podman, tmp_path_factory.mktemp("rootfs")),
            "RC_LAUNCHER": "podman",
            "HOME": str(home),
        }
        family = Family(root, podman, environment)
        set_images_root(family, root)
        names = ("base", "paper:1", "user:1")
        assert set(family.run()) == {
            f"{step}:{name}" for step in ("podman", "enroot", "env") for name in names
        }
        family.copied(root.with_name("kept"))
        yield family


@pytest.fixture
def family(built: Family) -> Family:
    """The family as it was built, in the place that its settings name."""
    shutil.rmtree(built.root)
    return replace(built, root=built.root.with_name("kept")).copied(built.root)


def set_images_root(family: Family, images_root: Path) -> None:
    family.write("pyproject.toml", f'[tool.rc_tasks]\nimages_root = "{images_root}"\n')


def change(family: Family) -> None:
    family.edit("base/Dockerfile", "echo 1", "echo 2")
    family.edit("projects/paper:1/Dockerfile", "echo paper", "echo other")
    family.write("projects/paper:1/data", "two\n")
    (family.root / "projects/paper:1/new").touch()
    family.write(RECIPE, 'frozen = true\nsmoke = [["/bin/sh", "-c", "exit 1"]]\n')


def listed(family: Family, name: str) -> dict[str, Any]:
    (found,) = json.loads(family.doit("list", "--json", name))
    return dict(found)


def image_id(family: Family) -> str:
    return str(listed(family, "paper:1")["image_id"])


def inside(family: Family, name: str, path: str) -> str:
    """A file in a published image."""
    argv = ("unsquashfs", "-cat", str(family.artifact(name)), path)
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_nothing_that_changes_builds_it_again(family: Family) -> None:
    before, made = published(family.artifact("paper:1")), image_id(family)
    assert (listed(family, "paper:1")["state"], listed(family, "paper:1")["reasons"]) == (
        "fresh",
        ["frozen"],
    )
    change(family)
    assert set(family.plan()) == {"podman:base", "enroot:base", "env:base"}
    assert set(family.run()) == {"podman:base", "enroot:base"}
    assert (published(family.artifact("paper:1")), image_id(family)) == (before, made)
    assert listed(family, "paper:1")["reasons"] == [
        "frozen, though Dockerfile changed",
        "data changed",
        "base image base was rebuilt",
        "new added",
        "smoke tests changed",
    ]
    row = "frozen, though Dockerfile changed (and 4 more: doit why paper:1)\n"
    assert row in family.doit("list", "paper:1")
    assert listed(family, "paper:1")["frozen"]
    assert not listed(family, "user:1")["frozen"]
    assert {name: listed(family, name)["state"] for name in ("paper:1", "user:1")} == {
        "paper:1": "fresh",
        "user:1": "fresh",
    }


@pytest.mark.parametrize("more", [(), ("--single",), ("--reporter", "console"), ("-n", "1")])
def test_who_asks_for_it_by_name_is_told(family: Family, more: tuple[str, ...]) -> None:
    family.write("projects/paper:1/data", "two\n")
    told = unstamped(family.doit(*more, "podman:paper:1"))
    assert told.splitlines()[0] == (
        f"paper:1 is frozen in {RECIPE}: not built again, though data changed"
    )
    assert "start" not in told
    assert "is frozen" in family.doit(*more, "build:user:1")
    # In the nightly run it is no news.
    assert "is frozen" not in family.doit()


def test_why_tells_what_is_held_back(family: Family) -> None:
    def notes() -> list[str]:
        return [line for line in family.doit("why", "paper:1").splitlines() if line.startswith("  ")]

    assert notes() == [f"  note    frozen in {RECIPE}: it is not built again, whatever changes"]
    family.write("projects/paper:1/data", "two\n")
    first, cause = notes()
    assert first == f"  note    frozen in {RECIPE}: it is not built again, although"
    assert cause.startswith("          data changed: 0644 ")


def test_what_happens_to_its_files_is_put_right_with_the_same_image(family: Family) -> None:
    made = image_id(family)
    change(family)
    family.artifact("paper:1").unlink()
    # What is published passes the tests of today, as everything that is squashed.
    assert "enroot:paper:1" in family.run("build:paper:1", status=1)
    family.write(RECIPE, "frozen = true\n")
    assert "enroot:paper:1" in family.run("build:paper:1")
    assert inside(family, "paper:1", "paper") == "paper\n"
    assert inside(family, "paper:1", "data") == "one\n"
    assert image_id(family) == made
    family.directory("paper:1").joinpath("image.json").unlink()
    assert set(family.run("build:paper:1")) == {"enroot:paper:1"}
    assert set(family.run("build:paper:1", RC_EDF_WORKDIR="/there")) == {"env:paper:1", "env:base"}


def test_one_that_is_lost_is_built_from_nothing_else(family: Family) -> None:
    """Its image is in the store no more, and neither on the node that needs it."""
    made = image_id(family)
    family.edit("projects/user:1/Dockerfile", "echo user", "echo more")
    shutil.rmtree(family.root / f".rc/store/images/{made}")
    with own_storage() as (podman, environment):
        other = replace(family, podman=podman, environment={**family.environment, **environment})
        family.write("projects/paper:1/data", "two\n")
        told = unstamped(other.doit("build:user:1", status=1))
        assert (
            f"FAILED  podman:user:1  {RECIPE}: image {made[:12]} of paper:1 is neither on"
            f" {os.uname().nodename} nor whole in the store, and what it was made from has changed"
            " since it was frozen\n"
            "          next: `doit why paper:1` shows what changed: revert that,\n"
            "                or remove `frozen` to build it as it is now\n"
        ) in told
        assert "start   podman:paper:1" not in told
        # With that taken back it is built again as it was; what is published stays.
        family.write("projects/paper:1/data", "one\n")
        before = published(family.artifact("paper:1"))
        assert "again" in other.doit("build:user:1")
        assert published(family.artifact("paper:1")) == before
        assert other.run() == {}


def test_it_thaws_with_its_line(family: Family) -> None:
    family.write("projects/paper:1/data", "two\n")
    assert family.run() == {}
    family.write(RECIPE, "")
    assert set(family.run()) == {"podman:paper:1", "enroot:paper:1", "podman:user:1", "enroot:user:1"}
    assert inside(family, "user:1", "data") == "two\n"


def test_always_builds_it_for_all_that(family: Family) -> None:
    family.write("projects/paper:1/data", "two\n")
    assert {"podman:paper:1", "enroot:paper:1"} <= set(family.run("-a", "build:paper:1"))
    assert inside(family, "paper:1", "data") == "two\n"
    assert listed(family, "paper:1")["reasons"] == ["frozen"]


def test_a_clone_takes_the_official_one_whatever_its_recipe_has_become(
    family: Family, tmp_path: Path
) -> None:
    change(family)
    generated = shutil.ignore_patterns(".rc", "image.sqsh", "image.json")
    shutil.copytree(family.root, tmp_path / "clone", ignore=generated, symlinks=True)
    with own_storage() as (podman, environment):
        clone = replace(
            family,
            root=tmp_path / "clone",
            podman=podman,
            environment={**family.environment, **environment},
        )
        assert set(clone.run("build:user:1")) >= {"podman:base"}
        assert clone.artifact("paper:1").is_symlink()
        assert clone.artifact("user:1").is_symlink()
        assert not clone.artifact("base").is_symlink()
        first, *_ = listed(clone, "paper:1")["reasons"]
        assert first == f"adopted from {family.root}, frozen, though Dockerfile changed"
        assert clone.run() == {}
