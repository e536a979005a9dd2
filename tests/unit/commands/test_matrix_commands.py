"""What commands show of recipes that are elsewhere and of matrices, and `doit rm` and `mv` of these."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from rc_tasks.commands.cli.names import completions
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk.locks import held
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import Ran, doit
from tests.support.recipes import APPS, FILES, USERS

SERVE = {
    "projects/serve/Dockerfile": "FROM start\nCOPY --from=data index.md /\nCOPY --from=tools /a /a\n",
    "projects/serve/project.toml": (
        '[contexts]\nstart = "image:app:latest"\ndata = "../../docs"\ntools = "image:base"\n'
    ),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in git in which everything is built."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = write_checkout(tmp_path / "it's: ä", {**FILES, **SERVE})
    pretend_built(made)
    git(made, "init", "--quiet")
    commit(made)
    return made


def git(root: Path, *argv: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    argv = ("git", *identity, *argv)
    return subprocess.run(argv, cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=all")


def test_why_names_the_files_that_are_elsewhere_and_the_values_of_the_matrix(root: Path) -> None:
    assert doit(root, "why", "app:13.0-py3.12", "serve", "base") == Ran(
        0,
        "app:13.0-py3.12 is fresh\n"
        "  recipe  Dockerfile: docker/Dockerfile.app\n"
        "          Context: ., ignore file docker/Dockerfile.app.dockerignore\n"
        "          Matrix: cuda 13.0, python 3.12\n"
        "serve is fresh\n"
        "  recipe  Context data: docs\n"
        "base is fresh\n"
        "  recipe  Dockerfile: docker/Dockerfile.base\n"
        "          Context: projects/base/files\n",
    )


def test_the_list_for_programs_has_places_and_values(root: Path) -> None:
    keys = ("dockerfile", "context", "matrix")
    images = json.loads(doit(root, "list", "--json", "user:12.8", "docs", "serve").text)
    assert [[image[key] for key in keys] for image in images] == [
        ["projects/user/Dockerfile", "projects/user", {"cuda": "12.8"}],
        ["docker/Dockerfile.docs", ".", {}],
        ["projects/serve/Dockerfile", "projects/serve", {}],
    ]


def test_the_images_of_a_matrix_stand_together_in_the_list(root: Path) -> None:
    toml = root / "projects/app/project.toml"
    toml.write_text(toml.read_text().replace('"12.8", "13.0"', '"13.0", "12.8"'))
    names = [line.split()[0] for line in doit(root, "list").text.splitlines()[1:]]
    assert names[1:4] == ["app:13.0-py3.12", "app:12.8-py3.10", "app:12.8-py3.12"]
    assert names.index("user:13.0") == names.index("user:12.8") + 1


def test_named_contexts_that_are_images_are_edges(root: Path) -> None:
    graph = json.loads(doit(root, "graph", "--format=json", "serve").text)
    edges = [(edge["from"], edge["to"]) for edge in graph["edges"] if edge["to"] == "serve"]
    assert edges == [("app:13.0-py3.12", "serve"), ("base", "serve")]


def test_the_report_shows_the_places_and_values(root: Path) -> None:
    page = doit(root, "report", "-o", "-").text
    for line in ("docker/Dockerfile.app", "cuda 13.0, python 3.12", "Context data"):
        assert f'"{line}"' in page


def test_completion_offers_images_that_were_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_checkout(tmp_path / "imgs", FILES)
    (made / "projects/odd").mkdir()
    (made / "projects/odd/project.toml").write_text("matrix = {")
    monkeypatch.chdir(made / "docker")
    app = ["app", *APPS, "app:latest"]
    assert list(completions("app", tasks=False)) == app
    assert list(completions("podman:app", tasks=True)) == [f"podman:{name}" for name in app]
    assert list(completions("o", tasks=False)) == ["odd"]


@pytest.mark.parametrize("argument", ["projects/app/", "app", "build:app", "'app*'"])
def test_a_matrix_is_named_like_a_group(root: Path, argument: str) -> None:
    listed = json.loads(doit(root, "list", "--json", argument.strip("'")).text)
    assert [image["name"] for image in listed] == list(APPS)


USED = (
    "ERROR: app: cannot be removed: other images are built on it\n"
    "  | projects/user/Dockerfile:2: app:12.8-py3.12\n"
    "  | docker/Dockerfile.docs:1: app:13.0-py3.12\n"
    "  | projects/serve/Dockerfile:1: app:latest\n"
    "  | projects/user/Dockerfile:2: app:13.0-py3.12\n"
    "  next: change these lines, or remove all: doit rm app user docs serve\n"
)


def test_a_matrix_that_others_are_built_on_stays(root: Path) -> None:
    ran = doit(root, "rm", "app", "--yes")
    assert (ran.status, sorted(ran.text.splitlines())) == (3, sorted(USED.splitlines()))
    assert (root / "projects/app").is_dir()


def test_a_whole_matrix_is_removed_with_what_was_published(root: Path) -> None:
    subprocess.run(("rm", "-r", root / "projects/user:13.0"), check=True)
    (root / "projects/user:11").mkdir()  # of a value that it had before
    (root / "projects/user:11/env.toml").write_text('image = "x"\n')
    commit(root)
    before = doit(root, "rm", "user")
    assert before == Ran(
        3,
        "removes projects/user:12.8/: env.toml, image.json, image.sqsh (image.sqsh: 904 B)\n"
        "removes projects/user:11/: env.toml\n"
        "removes projects/user/: Dockerfile, own, project.toml\n"
        "keeps records, logs and images until `doit gc` removes them, after 30 days\n"
        "ERROR: nothing was changed: there is no terminal to ask at\n"
        "  next: doit rm user --yes\n",
    )
    assert doit(root / "projects", "rm", "user/", "--yes").text.endswith("removed user\n")
    assert not [name for name in os.listdir(root / "projects") if name.startswith("user")]
    graph = open_checkout(root, {}).graph
    assert not graph.broken and not graph.problems and not set(USERS) & set(graph.images)
    assert "D  projects/user/project.toml" in git(root, "status", "--short")
    assert len(os.listdir(root / ".rc/previous/user:12.8")) == 1, "the published image is kept"


def test_aliases_go_with_a_matrix(root: Path) -> None:
    ran = doit(root, "rm", "app", "user", "docs", "serve", "--yes")
    assert ran.status == 0, ran.text
    assert os.listdir(root / "projects") == ["base"]


def test_changes_that_no_commit_has_keep_a_matrix(root: Path) -> None:
    (root / "projects/user/own").write_text("changed")
    (root / "projects/user:12.8/env.toml").write_text("# mine")
    ran = doit(root, "rm", "user", "--yes")
    assert ran.status == 3 and ran.text.endswith(
        "ERROR: nothing was removed: no commit has these files and changes\n"
        "  |  M projects/user:12.8/env.toml\n"
        "  |  M projects/user/own\n"
        "  next: commit them, or remove them as well: doit rm user --discard-changes\n"
    )
    assert (root / "projects/user").is_dir()


def test_an_image_that_is_being_built_keeps_its_matrix(root: Path) -> None:
    with held(open_checkout(root, {}).lock("user:13.0"), "podman:user:13.0"):
        ran = doit(root, "rm", "user", "--yes")
    assert ran.status == 3 and "podman:user:13.0" in ran.text
    assert (root / "projects/user").is_dir() and (root / "projects/user:12.8").is_dir()


def test_a_matrix_cannot_be_renamed(root: Path) -> None:
    assert doit(root, "mv", "app", "other", "--yes") == Ran(
        3,
        "ERROR: projects/app/project.toml: app is a matrix of 3 images; doit mv renames single ones\n"
        "  next: git mv 'projects/app' 'projects/other'   renames it; its images are built again\n",
    )
