"""Renamed and removed projects with real builds: nothing is built, and kills lose nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.engine.upkeep import move as moves
from rc_tasks.state.records.records import Step
from tests.support.family import ALL, Family, published, write_family
from tests.support.runs import until
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

# `doit mv left:1 left:2 --alias`, killed before phase N.
KILLED = """
import os, signal, sys
from rc_tasks.engine.upkeep import move as moves
from rc_tasks.state.checkout import open_checkout
from pathlib import Path
checkout = open_checkout(Path.cwd())
def kill(checkout, move):
    os.kill(os.getpid(), signal.SIGKILL)
moves.PHASES = (*moves.PHASES[:int(sys.argv[1])], kill)
moves.carry_out(checkout, moves.plan(checkout, "left:1", "left:2", keep_alias=True))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The family with everything fresh, in git, and with a previous image of left:1."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "git")
    with own_storage() as (podman, environment):
        root = write_family(tmp_path_factory.mktemp("built") / "checkout")
        home = tmp_path_factory.mktemp("home")
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot", "HOME": str(home)}
        environment |= {f"GIT_{who}_NAME": "A" for who in ("AUTHOR", "COMMITTER")}
        environment |= {f"GIT_{who}_EMAIL": "a@example.org" for who in ("AUTHOR", "COMMITTER")}
        family = Family(root, podman, environment)
        family.write(".gitignore", ".rc/\n*.sqsh\nimage.json\n")
        assert set(family.run()) == ALL
        family.write("projects/left:1/data/one file.txt", "two\n")
        assert "enroot:left:1" in family.run()
        git(family, "init", "--quiet")
        git(family, "add", "--all")
        git(family, "commit", "--quiet", "--message=all")
        yield family


@pytest.fixture
def family(built: Family, tmp_path: Path) -> Family:
    return built.copied(tmp_path / "it's: a checkout é")


def git(family: Family, *argv: str) -> str:
    environ = {**os.environ, **family.environment}
    return subprocess.run(
        ("git", *argv), cwd=family.root, env=environ, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_a_renamed_base_is_fresh_with_its_past_and_only_its_children_are_stale(family: Family) -> None:
    before = published(family.artifact("base"))
    past = json.loads(family.doit("history", "base", "--json"))
    family.doit("mv", "base", "ground", "--yes")
    assert family.states() == {
        "ground": "fresh",
        "left:1": "stale",
        "right:1": "stale",
        "top:1": "stale",
        "user:1": "stale",
    }
    assert published(family.root / "ground/image.sqsh") == before
    assert {task.partition(":")[2] for task in family.plan()} == {"left:1", "right:1", "top:1", "user:1"}
    assert "Dockerfile changed" in family.doit("why", "left:1")
    assert "fresh" in family.doit("why", "ground")
    renamed = [{**entry, "image": "ground"} for entry in past]
    entries = json.loads(family.doit("history", "ground", "--json"))
    assert [{**entry, "log": ""} for entry in entries] == [{**entry, "log": ""} for entry in renamed]
    assert all((family.root / entry["log"]).is_file() for entry in entries)
    assert "RUN echo base" in family.doit("log", "ground", "podman")
    assert json.loads(family.doit("manifest", "ground", "--json"))["name"] == "ground"
    family.doit("verify", "ground")
    ran = set(family.run())
    assert not {task for task in ran if task.endswith(":ground")}
    assert set(family.states().values()) == {"fresh"}
    assert family.run() == {}


def test_with_an_alias_nothing_at_all_runs_and_a_rollback_goes_back_behind_the_move(
    family: Family,
) -> None:
    old_image = family.directory("left:1") / "image.sqsh"
    family.doit("mv", "left:1", "left:2", "--alias", "--yes")
    assert set(family.states().values()) == {"fresh"}
    assert family.run() == {}
    assert old_image.samefile(family.directory("left:2") / "image.sqsh")
    newest = published(family.artifact("left:2"))
    assert "is now the image published" in family.doit("rollback", "left:2")
    assert published(family.artifact("left:2")) != newest
    assert json.loads((family.directory("left:2") / "image.json").read_text())["name"] == "left:2"
    family.doit("rollback", "left:2", "0")
    assert published(family.artifact("left:2")) == newest
    assert set(family.states().values()) == {"fresh"}
    assert "data" in family.doit("diff", "left:2")
    git(family, "add", "--all")
    git(family, "commit", "--quiet", "--message=renamed")
    assert "R100\tprojects/left:1/data/tool\tprojects/left:2/data/tool" in git(
        family, "show", "--name-status", "-M"
    )


@pytest.mark.parametrize("number", range(len(moves.PHASES) + 1))
def test_a_move_that_is_killed_is_finished_by_the_same_command(family: Family, number: int) -> None:
    argv = (sys.executable, "-c", KILLED, str(number))
    environ = {**os.environ, **family.environment}
    killed = subprocess.run(argv, cwd=family.root, env=environ, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert "doit mv left:1 left:2   finishes it" in family.doit("list")
    family.doit("mv", "left:1", "left:2")
    assert "finishes it" not in family.doit("list")
    assert set(family.states().values()) == {"fresh"}
    assert family.run() == {}
    assert git(family, "ls-files", "projects/left:1") == ""
    assert "projects/left:2/Dockerfile" in git(family, "ls-files", "projects/left:2")
    assert "is now the image published" in family.doit("rollback", "left:2")


def test_a_running_build_refuses_a_move(family: Family) -> None:
    family.edit("projects/left:1/Dockerfile", "RUN echo", "RUN sleep 20 && echo")
    running = family.start("build:left:1")
    try:
        until(lambda: family.states()["left:1"] == "building")
        for old, new in (("left:1", "left:2"), ("base", "ground")):
            output = family.doit("mv", old, new, "--yes", status=3)
            assert "has been running podman:left:1 since" in output
            assert "wait for it, then run the same command again" in output
        assert family.directory("left:1").is_dir()
        assert git(family, "status", "--short", "projects") == " M projects/left:1/Dockerfile\n"
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 0, output
    finally:
        running.kill()


def test_a_removed_project_that_comes_back_is_squashed_and_not_built(family: Family) -> None:
    family.doit("rm", "user:1", "--yes")
    assert "user:1" not in family.states()
    assert "podman:user:1" in family.doit("history", "user:1")
    assert family.run() == {}
    git(family, "checkout", "HEAD", "--", "projects/user:1")
    assert set(family.run()) == {f"{Step.ENROOT}:user:1"}
    assert set(family.states().values()) == {"fresh"}
