"""Dockerfiles elsewhere, a shared context and a matrix, built with podman and published."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.doit import doit
from tests.support.images import BUSYBOX
from tests.support.recipes import APPS, FILES, IMAGES, STACK_BASES, STACK_FILES
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman


@dataclass(frozen=True, slots=True)
class Site:
    """A checkout, and the environment that builds it."""

    root: Path
    environment: dict[str, str]

    def run(self, *argv: str) -> str:
        """The output of a command that has to succeed."""
        ran = doit(self.root, *argv, environ=self.environment)
        assert ran.status == 0, ran.text
        return ran.text

    def states(self) -> dict[str, str]:
        """The state of each image."""
        rows = json.loads(self.run("list", "--json"))
        return {row["name"]: row["state"] for row in rows}

    def file(self, name: str, path: str) -> str:
        """A file in a published image."""
        argv = ("unsquashfs", "-no-progress", "-cat", self.root / f"projects/{name}/image.sqsh", path)
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def paths(self, name: str) -> set[str]:
        """The files in a published image."""
        argv = ("unsquashfs", "-no-progress", "-lc", self.root / f"projects/{name}/image.sqsh")
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        return {line.removeprefix("squashfs-root/") for line in done.stdout.splitlines()}


@contextmanager
def built(root: Path, files: Mapping[str, str], programs: str) -> Iterator[Site]:
    """A checkout in which everything is built; `programs` is the /bin of its images."""
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    write_checkout(root, files)
    shutil.copy(BUSYBOX, root / programs / "busybox")
    for applet in ("sh", "cp", "ls", "mkdir", "touch"):
        (root / programs / applet).symlink_to("busybox")
    with own_storage() as (_, environment):
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot"}
        site = Site(root, dict(environment))
        site.run()
        yield site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Everything is built once."""
    root = tmp_path_factory.mktemp("recipes") / "checkout"
    with built(root, FILES, "projects/base/files/bin") as site:
        yield site


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Images on the bases of a vendor, built once."""
    root = tmp_path_factory.mktemp("stack") / "checkout"
    with built(root, STACK_FILES, "projects/standin/bin") as stack:
        yield stack


def test_each_image_is_published_in_a_directory_of_its_own(site: Site) -> None:
    assert site.states() == dict.fromkeys(IMAGES, "fresh")
    assert [site.file(name, "which") for name in APPS] == ["12.8 3.10\n", "12.8 3.12\n", "13.0 3.12\n"]
    assert site.file("user:13.0", "which") == "13.0 3.12\n"
    assert site.file("user:13.0", "own") == "own\n"
    edf = (site.root / "projects/app:12.8-py3.10/env.toml").read_text()
    assert f'image = "{site.root}/projects/app:12.8-py3.10/image.sqsh"' in edf


def test_an_image_holds_what_its_context_lets_through(site: Site) -> None:
    assert {"src/lib/module.py"} == {path for path in site.paths(APPS[0]) if path.startswith("src/lib/")}
    assert {"docs/README.md", "docs/index.md"} <= site.paths("docs")


def test_the_record_of_an_image_names_its_context_once(site: Site) -> None:
    inputs = [
        json.loads((site.root / f"projects/{name}/image.json").read_text())["inputs"] for name in APPS
    ]
    assert len({values["context"] for values in inputs}) == 1
    assert "src" not in json.dumps(inputs)


def test_a_changed_file_builds_what_takes_it_and_nothing_else(site: Site) -> None:
    module = site.root / "src/lib/module.py"
    module.write_text("x = 2\n")
    assert "src/lib/module.py changed" in site.run("why", APPS[0])
    assert site.states()["docs"] == "stale" and site.states()["base"] == "fresh"
    text = site.run("build:app")
    started = [line.split()[1] for line in text.splitlines() if line.startswith("start ")]
    assert sorted(started) == sorted(f"{step}:{name}" for name in APPS for step in ("enroot", "podman"))
    assert [site.file(name, "src/lib/module.py") for name in APPS] == ["x = 2\n"] * 3
    site.run()
    assert set(site.states().values()) == {"fresh"}
    assert "context     ./ changed" in site.run("diff", APPS[0])


def test_an_alias_and_the_commands_take_an_image_of_a_matrix(site: Site) -> None:
    assert "app:13.0-py3.12" in site.run("list", "app:latest")
    assert " - docker/Dockerfile.app\n - ." in site.run("info", "podman:app:12.8-py3.10")
    assert "whole" in site.run("verify", APPS[0])
    graph = site.run("graph")
    assert "app:13.0-py3.12" in graph and "user:13.0" in graph
    assert site.run("plan").count("\n") <= 2


def test_a_run_that_mounts_a_shared_context_sees_what_it_lets_through(site: Site) -> None:
    project = site.root / "projects/mounts"
    project.mkdir()
    (site.root / "docker/Dockerfile.mounts").write_text(
        "FROM base\nRUN --mount=type=bind,target=/context busybox find /context > /seen\n"
    )
    (project / "project.toml").write_text(
        'dockerfile = "../../docker/Dockerfile.mounts"\ncontext = "../.."\n'
        'ignorefile = "../../docker/Dockerfile.app.dockerignore"\n'
    )
    site.run("build:mounts")
    seen = set(site.file("mounts", "seen").split())
    assert seen == {"/context", "/context/src", "/context/src/lib", "/context/src/lib/module.py"}
    (site.root / "src/lib/more.py").write_text("")
    site.run("build:mounts")
    assert "/context/src/lib/more.py" in site.file("mounts", "seen")


def test_named_contexts(site: Site) -> None:
    """A directory, an image of this checkout and another name for it, each as source of files."""
    project, data = site.root / "projects/named", site.root / "data"
    project.mkdir()
    data.mkdir()
    (data / "one").write_text("1\n")
    (data / "left out").write_text("x\n")
    (data / ".dockerignore").write_text("left*\n")
    (project / "Dockerfile").write_text(
        "FROM start\n"
        "COPY --from=app /which /which\n"
        "COPY --from=data . /copied\n"
        "RUN --mount=from=data,target=/data busybox cat /data/one > /mounted\n"
        "RUN --mount=from=app,source=/src/lib,target=/lib busybox find /lib > /lib-seen\n"
    )
    (project / "project.toml").write_text(
        '[contexts]\nstart = "image:base"\napp = "image:app:latest"\ndata = "../../data"\n'
    )
    # It ends with status 1, as the task would run.
    shown = doit(site.root, "info", "podman:named", environ=site.environment).text
    assert "task_dep   : \n - podman:base\n - podman:app:13.0-py3.12\n" in shown
    site.run("build:named")
    assert site.file("named", "which") == "13.0 3.12\n"
    assert {path for path in site.paths("named") if path.startswith("copied/")} == {
        "copied/.dockerignore",
        "copied/one",
    }
    assert site.file("named", "mounted") == "1\n"
    assert "/lib/module.py" in site.file("named", "lib-seen")
    assert site.states()["named"] == "fresh"
    (data / "left out").write_text("y\n")
    assert site.states()["named"] == "fresh"
    (data / "one").write_text("2\n")
    assert "data/one changed" in site.run("why", "named")
    site.run("build:named")
    assert site.file("named", "mounted") == site.file("named", "copied/one") == "2\n"


def test_a_new_matrix_with_the_branch_and_a_setting_is_built_and_removed(site: Site) -> None:
    subprocess.run(("git", "init", "--quiet", "--initial-branch=trunk"), cwd=site.root, check=True)
    axes = ("--matrix", "cuda=14", "--matrix", "python=3.13")
    site.run("new", "made", "--dockerfile", f"{site.root}/docker/Dockerfile.app", *axes)
    toml = site.root / "projects/made/project.toml"
    value = '"{cuda} ${git.branch} ${settings.runner}"'
    toml.write_text(toml.read_text().replace('"{cuda}"', value))
    site.run("build:made")
    assert site.file("made:14-3.13", "which") == "14 trunk local 3.13\n"
    assert site.states()["made:14-3.13"] == "fresh"
    subprocess.run(("git", "switch", "--quiet", "--create", "work"), cwd=site.root, check=True)
    assert "build argument CUDA changed: 14 trunk local → 14 work local" in site.run("why", "made")
    site.run("rm", "made", "--yes", "--discard-changes")
    assert "made:14-3.13" not in site.states()
    assert not list((site.root / "projects").glob("made*"))


def test_a_stack_on_the_bases_of_a_vendor_is_built_without_a_registry(stack: Site) -> None:
    assert stack.states() == dict.fromkeys(STACK_BASES, "fresh")
    assert stack.run("plan").startswith("nothing to do")
    for variant in ("one", "two", "three"):
        assert stack.file(f"stack:{variant}", "opt/variant/profile.env") == f"NAME={variant}\n"
    assert stack.file("app:train", "opt/log") == "set up: train\n"
    assert stack.file("app:train", "opt/tests/run.sh") == "#!/bin/sh\n"
    assert stack.file("release-1:app", "app") == "base\n"
    assert stack.file("fetch:1", "installed") == "remote.txt\n"
    assert "base.txt" in stack.paths("full:deps") and "opt-files" not in stack.paths("full:deps")
    assert set(stack.file("full", "opt-files").split()) == {
        *(".dockerignore", ".gitignore", "Docker", "Stack", "Tools", "built", "pyproject.toml"),
        *("requirements", "templates"),
    }


def test_a_changed_file_of_the_stack_builds_whose_context_takes_it(stack: Site) -> None:
    (stack.root / "Stack/apps/serve/settings").write_text("port = 81\n")
    text = stack.run("build:app")
    started = {line.split()[1] for line in text.splitlines() if line.startswith("start ")}
    # The base takes the whole checkout, and is the same image as before: nothing else of it counts.
    assert started == {"podman:stack:one", "podman:app:serve", "enroot:app:serve"}
    assert stack.file("app:serve", "opt/settings") == "port = 81\n"
    assert stack.states()["app:train"] == "fresh"
