"""A clone takes what the official checkout has, builds the rest, and never writes there."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit
from tests.support.family import Family, started
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage
from tests.support.tools import require_tools

FILES = {
    "base/Dockerfile": (
        'FROM scratch\nCOPY busybox /bin/sh\nRUN ["/bin/sh", "-c", "echo base > /base"]\n'
    ),
    "projects/left:1/Dockerfile": (
        "FROM base\nRUN echo first > /first\nCOPY data /data\nRUN echo left > /left\n"
    ),
    "projects/left:1/data": "one\n",
    "projects/top:1/Dockerfile": "FROM localhost/left:1\nRUN echo top > /top\n",
    "projects/top:latest": "-> top:1",
    "projects/user:1/Dockerfile": "FROM base\nRUN echo user > /user\n",
}
NAMES = ("base", "left:1", "user:1", "top:1")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The family, published; no test may change it."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox")
    with own_storage() as (podman, environment):
        root = write_checkout(tmp_path_factory.mktemp("shared") / "offizielle Ümages", FILES)
        shutil.copy(BUSYBOX, root / "base/busybox")
        set_images_root(root, root)
        home = tmp_path_factory.mktemp("home")
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot", "HOME": str(home)}
        family = Family(root, podman, environment)
        assert set(family.run()) == steps(*NAMES) | {f"env:{name}" for name in NAMES}
        before = listing(root)
        yield family
        assert listing(root) == before, "something was written to the official checkout"


@pytest.fixture
def empty(official: Family) -> Iterator[Family]:
    """The official checkout as a node sees it that has no image in podman yet."""
    with own_storage() as (podman, environment):
        yield replace(official, podman=podman, environment={**official.environment, **environment})


@pytest.fixture
def clone(empty: Family, tmp_path: Path) -> Family:
    """A clone on such a node."""
    return cloned(empty, tmp_path / "it's: a clone é")


@pytest.fixture
def changing(empty: Family, tmp_path: Path) -> Family:
    """An official checkout that a test may change."""
    found = empty.copied(tmp_path / "changing")
    set_images_root(found.root, found.root)
    assert set(found.run()) == {f"env:{name}" for name in NAMES}
    return found


def cloned(official: Family, root: Path) -> Family:
    """What git brings of a checkout."""
    generated = shutil.ignore_patterns(".rc", "image.sqsh", "image.json")
    shutil.copytree(official.root, root, ignore=generated, symlinks=True)
    return replace(official, root=root)


def set_images_root(root: Path, images_root: Path) -> None:
    (root / "pyproject.toml").write_text(f'[tool.rc_tasks]\nimages_root = "{images_root}"\n')


def listing(root: Path) -> dict[str, tuple[int, ...]]:
    seen = {str(path): path.lstat() for path in (root, *root.rglob("*"))}
    return {
        path: (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        for path, found in seen.items()
    }


def steps(*names: str) -> set[str]:
    return {f"{step}:{name}" for step in ("podman", "enroot") for name in names}


def links(family: Family) -> set[str]:
    return {name for name in NAMES if family.artifact(name).is_symlink()}


def listed(family: Family, *names: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(family.doit("list", "--json", *names))
    return found


def inside(artifact: Path, path: str) -> str:
    """A file in a published image."""
    argv = ("unsquashfs", "-cat", str(artifact), path)
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.podman
def test_an_unchanged_clone_builds_nothing(official: Family, clone: Family) -> None:
    offer = f"can be adopted from {official.root}: doit build:"
    assert {image["name"]: image["reasons"] for image in listed(clone)} == {
        name: [offer + name] for name in NAMES
    }
    assert clone.doit("plan") == f"nothing to do\n4 images can be adopted from {official.root}\n"
    output = clone.doit("build:top:latest")
    assert f"top:1 adopted from {official.root}\n" in output
    assert started(output) == {}
    assert links(clone) == {"base", "left:1", "top:1"}
    assert clone.run() == {}
    assert links(clone) == set(NAMES)
    for image in listed(clone):
        name = image["name"]
        assert (image["state"], image["reasons"]) == ("fresh", [f"adopted from {official.root}"])
        assert image["adopted_from"] == str(official.root)
        assert image["image_id"] == official.image_id(name)
        assert image["size_bytes"] == official.artifact(name).stat().st_size
        told, theirs = (
            json.loads((each.directory(name) / "image.json").read_text()) for each in (clone, official)
        )
        assert told == theirs
    assert clone.plan() == {}


@pytest.mark.podman
def test_a_branch_builds_only_what_it_changed(official: Family, clone: Family) -> None:
    assert clone.run("build:top:1") == {}
    clone.edit("projects/left:1/Dockerfile", "echo left", "echo changed")
    changed = steps("left:1", "top:1")
    planned = clone.plan()
    assert set(planned) == changed | {"env:left:1", "env:top:1"}
    assert [task for task, certain in planned.items() if certain] == ["podman:left:1"]
    assert set(clone.run()) == changed
    assert links(clone) == {"base", "user:1"}
    assert inside(clone.artifact("left:1"), "left") == "changed\n"
    assert inside(official.artifact("left:1"), "left") == "left\n"
    assert clone.image_id("base") == official.image_id("base")
    kept = [path for path in (clone.root / ".rc/store/blobs/sha256").iterdir() if not path.is_symlink()]
    assert sum(path.stat().st_size for path in kept) < 100_000, (
        "layers of the base are linked, not copied"
    )
    told = clone.doit("why", "left:1")
    assert f"not adopted from {official.root}: it was built from other inputs" in told
    assert re.search(r"Dockerfile changed: 0644 \w{12} → 0644 \w{12}", told)
    assert clone.run() == {}


@pytest.mark.podman
def test_a_branch_resumes_where_it_differs_from_the_official_image(
    official: Family, clone: Family
) -> None:
    clone.edit("projects/left:1/Dockerfile", "echo left", "echo changed")
    assert set(clone.run("podman:left:1")) == {"podman:left:1"}
    log = max((clone.root / ".rc/logs/left:1/podman").iterdir()).read_text()
    assert f"from the store of {official.root}" in log
    assert log.count("Using cache") == 2, "RUN and COPY above the change"


def squashed(family: Family) -> set[str]:
    """The layers that are squashed in a store."""
    return {path.parent.name for path in (family.root / ".rc/store/layers").glob("*/layer.sqsh")}


def publish_log(family: Family, name: str) -> str:
    """What publishing an image last said."""
    return max((family.root / f".rc/logs/{name}/enroot").glob("*Z*.log")).read_text()


@pytest.mark.podman
def test_a_branch_copies_from_the_layers_of_the_official_store(official: Family, clone: Family) -> None:
    assert clone.run("build:base") == {}
    clone.edit("projects/user:1/Dockerfile", "echo user", "echo changed")
    assert set(clone.run("build:user:1")) == steps("user:1") | {"env:user:1"}
    assert re.search(r"merged \d+ layers: ", publish_log(clone, "user:1"))
    own = {name for name in squashed(clone) if not (clone.root / ".rc/store/layers" / name).is_symlink()}
    assert len(own) == 1 and squashed(clone) - own <= squashed(official)
    assert inside(clone.artifact("user:1"), "user") == "changed\n"
    assert inside(clone.artifact("user:1"), "base") == "base\n"


@pytest.mark.podman
def test_a_damaged_official_layer_is_made_in_the_clone(changing: Family, tmp_path: Path) -> None:
    clone = cloned(changing, tmp_path / "clone")
    assert clone.run("build:base") == {}
    files = (changing.root / ".rc/store/layers").glob("*/layer.sqsh")
    path = max(files, key=lambda file: file.stat().st_size)
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    before = listing(changing.root)
    clone.edit("projects/user:1/Dockerfile", "echo user", "echo changed")
    assert set(clone.run("build:user:1")) == steps("base", "user:1") | {"env:user:1"}
    assert inside(clone.artifact("user:1"), "user") == "changed\n"
    assert listing(changing.root) == before


@pytest.mark.podman
def test_a_clone_notices_that_the_official_image_changed(changing: Family, tmp_path: Path) -> None:
    clone = cloned(changing, tmp_path / "clone")
    assert clone.run("build:left:1") == {}
    old_id = clone.image_id("left:1")
    changing.write("projects/left:1/data", "two\n")
    changing.run("build:left:1")
    before = listing(changing.root)
    (told,) = listed(clone, "left:1")
    assert (told["state"], told["reasons"]) == ("stale", ["the official image changed"])
    # Its own recipe is still the old one: it makes that image, and no other, its own.
    assert set(clone.run("build:left:1")) == steps("left:1")
    assert clone.image_id("left:1") == old_id
    assert links(clone) == {"base"}
    assert inside(clone.artifact("left:1"), "data") == "one\n"
    assert inside(changing.artifact("left:1"), "data") == "two\n"
    # After a pull it is equal again.
    clone.write("projects/left:1/data", "two\n")
    assert clone.run("build:left:1") == {}
    assert links(clone) == {"base", "left:1"}
    assert inside(clone.artifact("left:1"), "data") == "two\n"
    assert clone.image_id("left:1") == changing.image_id("left:1")
    assert listing(changing.root) == before


@pytest.mark.podman
def test_what_vanished_is_built(changing: Family, tmp_path: Path) -> None:
    clone = cloned(changing, tmp_path / "clone")
    assert clone.run("build:base") == {}
    changing.root.rename(tmp_path / "unmounted")
    (told,) = listed(clone, "base")
    assert told["state"] == "missing"
    assert told["reasons"][0] == f"the official image is gone: {changing.artifact('base')}"
    assert told["image"] is None
    assert set(clone.run("build:base")) == steps("base")
    assert links(clone) == set()
    assert inside(clone.artifact("base"), "base") == "base\n"


@pytest.mark.podman
def test_a_base_that_is_damaged_in_the_official_store_is_built(changing: Family, tmp_path: Path) -> None:
    clone = cloned(changing, tmp_path / "clone")
    assert clone.run("build:base") == {}
    for blob in (changing.root / ".rc/store/blobs/sha256").iterdir():
        blob.write_bytes(b"damaged")
    before = listing(changing.root)
    clone.write("projects/left:1/data", "two\n")
    assert "podman:left:1" in clone.run("build:left:1")
    assert inside(clone.artifact("left:1"), "data") == "two\n"
    assert {image["state"] for image in listed(clone, "base", "left:1")} == {"fresh"}
    assert listing(changing.root) == before


@pytest.mark.podman
def test_what_could_have_been_planted_is_built_and_said_once(changing: Family, tmp_path: Path) -> None:
    clone = cloned(changing, tmp_path / "clone")
    path = changing.root / ".rc/state"
    path.chmod(0o777)
    output = clone.doit("podman:left:1")
    assert set(started(output)) == {"podman:base", "podman:left:1"}
    assert output.count("warning: ") == 1
    assert f"warning: {path}: may be written by everybody (owner " in output
    assert f"next: chmod o-w {path}" in output
    assert f"not adopted from {changing.root}: {path}: may be written" in clone.doit("why", "base")


@pytest.fixture
def pretended(tmp_path: Path) -> Path:
    """An official checkout of 100 images, which were never built."""
    root = tmp_path / "official"
    files = {
        f"projects/image{number}:1/Dockerfile": f"FROM image{number - 1}:1\n"
        if number % 10
        else "FROM x/y\n"
        for number in range(100)
    }
    write_checkout(root, files, f'images_root = "{root}"\nrunner = "local"')
    pretend_built(root)
    return root


def copied(official: Path, root: Path) -> Path:
    generated = shutil.ignore_patterns(".rc", "image.sqsh", "image.json")
    return shutil.copytree(official, root, ignore=generated, symlinks=True)


def test_no_program_is_started_for_what_is_adopted(pretended: Path, tmp_path: Path) -> None:
    called = tmp_path / "called"
    (tmp_path / "bin").mkdir()
    for tool in ("podman", "skopeo", "srun", "salloc", "mksquashfs"):
        (tmp_path / "bin" / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> {called}\nexit 99\n')
        (tmp_path / "bin" / tool).chmod(0o755)
    before = listing(pretended)
    clone = copied(pretended, tmp_path / "clone")
    environ = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    first, second = (doit(clone, environ=environ) for _ in range(2))
    assert (first.status, second.status) == (0, 0), first.text + second.text
    assert f"100 images adopted from {pretended}\n" in first.text
    assert "adopted" not in second.text
    assert not called.exists()
    assert listing(pretended) == before
