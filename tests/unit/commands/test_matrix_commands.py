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


BOTH = 'arch = ["aarch64", "x86_64"]\n'
MACHINES = {
    ".gitignore": ".rc/\n*.sqsh\nimage.json\n",
    "base/Dockerfile": "FROM scratch\n",
    "base/project.toml": BOTH,
    "projects/torch:1/Dockerfile": "FROM base\n",
    "projects/torch:1/project.toml": BOTH,
    "projects/torch:latest": "-> torch:1",
    "projects/grid/Dockerfile": "FROM base\n",
    "projects/grid/project.toml": BOTH + '[matrix]\nn = ["1", "2"]\n',
    "projects/user/Dockerfile": "FROM torch:1\n",
    "projects/user/project.toml": BOTH,
}


@pytest.fixture
def for_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in git with images for two machines, in which everything is built."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = write_checkout(tmp_path / "checkout", MACHINES)
    pretend_built(made)
    git(made, "init", "--quiet")
    commit(made)
    return made


@pytest.mark.parametrize("word", ["user", "user/", "projects/user"])
def test_a_project_for_several_machines_is_removed_with_all_its_images(
    for_machines: Path, word: str
) -> None:
    (for_machines / "projects/user:s390x").mkdir()  # of a machine that it had before
    (for_machines / "projects/user:s390x/env.toml").write_text('image = "x"\n')
    (for_machines / "projects/user:3").mkdir()  # another project
    (for_machines / "projects/user:3/Dockerfile").write_text("FROM base\n")
    commit(for_machines)
    ran = doit(for_machines / ("projects" if word == "user/" else "."), "rm", word, "--yes")
    assert ran == Ran(
        0,
        "removes projects/user:aarch64/: env.toml, image.json, image.sqsh (image.sqsh: 1 kB)\n"
        "removes projects/user:x86_64/: env.toml, image.json, image.sqsh (image.sqsh: 1 kB)\n"
        "removes projects/user:s390x/: env.toml\n"
        "removes projects/user/: Dockerfile, project.toml\n"
        "keeps records, logs and images until `doit gc` removes them, after 30 days\n"
        "removed user\n",
    )
    left = [name for name in os.listdir(for_machines / "projects") if name.startswith("user")]
    assert left == ["user:3"]


def test_aliases_and_users_of_a_project_for_several_machines_are_found(for_machines: Path) -> None:
    ran = doit(for_machines, "rm", "torch:1", "--yes")
    assert ran.status == 3 and ran.text.endswith(
        "  next: change these lines, or remove all: doit rm torch:1 user\n"
    )
    ran = doit(for_machines, "rm", "torch:1", "user", "grid", "--yes")
    assert ran.status == 0, ran.text
    assert "removes the alias projects/torch:latest, which leads to torch:1\n" in ran.text
    assert set(os.listdir(for_machines / "projects")) == {"base:aarch64", "base:x86_64"}


def test_an_image_for_a_machine_that_is_being_built_keeps_its_project(for_machines: Path) -> None:
    for image, project in (("user:aarch64", "user"), ("grid:2-x86_64", "grid")):
        with held(open_checkout(for_machines, {}).lock(image), f"podman:{image}"):
            ran = doit(for_machines, "rm", project, "--yes")
        assert ran.status == 3 and f"podman:{image}" in ran.text
        assert (for_machines / f"projects/{project}/Dockerfile").exists()


def test_the_image_for_one_machine_is_not_removed_alone(for_machines: Path) -> None:
    here = os.uname().machine
    alone = f"grid:1-{here if here in BOTH else 'aarch64'} is the image of grid for "
    assert alone in doit(for_machines, "rm", "grid:1", "--yes").text
    assert doit(for_machines, "rm", "user:aarch64", "--yes") == Ran(
        3,
        "ERROR: projects/user/project.toml: user:aarch64 is the image of user for aarch64, and has no"
        " directory of its own in git\n"
        "  next: change `arch` there, and `doit gc` removes what is left;\n"
        "        or name user, which is all of its images\n",
    )


def test_a_project_for_several_machines_cannot_be_renamed(for_machines: Path) -> None:
    assert doit(for_machines, "mv", "torch:1", "torch:2", "--yes") == Ran(
        3,
        "ERROR: projects/torch:1/project.toml: torch:1 has an image for each machine in `arch`; doit mv"
        " renames single ones\n"
        "  next: git mv 'projects/torch:1' 'projects/torch:2'   renames it; its images are built"
        " again\n",
    )


def test_a_new_version_stands_beside_one_for_several_machines(for_machines: Path) -> None:
    ran = doit(for_machines, "new", "torch:2", "--from", "base")
    assert ran.status == 0 and (for_machines / "projects/torch:2/Dockerfile").exists(), ran.text
    assert doit(for_machines, "new", "torch:1-x86_64") == Ran(
        3,
        "ERROR: projects/torch:1/project.toml:1: torch:1-x86_64 is an image of this project already\n"
        "  next: doit build:torch:1-x86_64, or choose another name\n",
    )
    assert "torch:1: is a project already" in doit(for_machines, "new", "torch:1").text


def test_a_published_base_beside_projects_stays_one(for_machines: Path) -> None:
    (for_machines / "projects/any").symlink_to("base:x86_64")
    matrix = for_machines / "top"
    matrix.mkdir()
    (matrix / "Dockerfile").write_text("FROM scratch\n")
    (matrix / "project.toml").write_text('[matrix]\nn = ["1"]\n')
    pretend_built(for_machines)
    checkout = open_checkout(for_machines, {})
    assert not checkout.graph.broken and not checkout.graph.problems
    assert {"base:aarch64", "base:x86_64", "top:1"} <= set(checkout.graph.images)
    places = {
        name: node.project.shown_common_edf
        for name, node in checkout.graph.images.items()
        if node.project.machine
    }
    assert places["base:x86_64"] == "base/env.toml"
    assert places["torch:1-x86_64"] == "projects/torch:1/env.toml"
    assert places["grid:1-x86_64"] == "projects/grid:1/env.toml"


def test_a_new_project_stands_on_the_base_for_several_machines(for_machines: Path) -> None:
    assert doit(for_machines, "new", "torch:2").status == 0
    dockerfile = (for_machines / "projects/torch:2/Dockerfile").read_text()
    assert dockerfile.startswith("FROM base\n")


@pytest.mark.parametrize("name", ["tool", "tool:1"])
def test_an_image_for_each_machine_is_removed_and_not_renamed(root: Path, name: str) -> None:
    of = f"{name}{'-' if ':' in name else ':'}"
    (root / f"projects/{name}").mkdir()
    (root / f"projects/{name}/Dockerfile").write_text("FROM scratch\nENV A=1\n")
    (root / f"projects/{name}/project.toml").write_text('arch = ["x86_64", "aarch64"]\n')
    (root / f"projects/{of}x86_64").mkdir()
    (root / f"projects/{of}x86_64/env.toml").write_text('image = "x"\n')
    (root / f"projects/{of}s390x").mkdir()  # of a machine that it had before
    (root / f"projects/{of}s390x/env.toml").write_text('image = "x"\n')
    (root / "projects/it").symlink_to(name)
    commit(root)
    assert doit(root, "mv", name, "other:1", "--yes") == Ran(
        3,
        f"ERROR: projects/{name}/project.toml: {name} has an image for each machine in `arch`; doit mv"
        f" renames single ones\n  next: git mv 'projects/{name}' 'projects/other:1'   renames it;"
        " its images are built again\n",
    )
    (root / "projects/serve/Dockerfile").write_text(f"FROM {name}\n")
    (root / "projects/serve/project.toml").unlink()
    commit(root)
    ran = doit(root, "rm", name, "--yes")
    assert (
        ran.status == 3
        and f"  next: change these lines, or remove all: doit rm {name} serve\n" in ran.text
    )
    ran = doit(root, "rm", name, "serve", "--yes", "--discard-changes")
    assert ran.status == 0 and f"removed {name} serve\n" in ran.text, ran.text
    assert "removes the alias projects/it, which leads to" in ran.text
    assert not [*(root / "projects").glob("tool*")] and not os.path.lexists(root / "projects/it")


def test_why_of_an_image_whose_base_is_no_image_any_more(root: Path) -> None:
    options = root / "projects/app/project.toml"
    options.write_text(options.read_text().replace('"13.0"', '"13.1"'))
    ran = doit(root, "why", "user:13.0")
    assert ran.status == 0, ran.text
    assert "  podman  base image app:13.0-py3.12 removed: " in ran.text
    assert "app:13.0-py3.12 is not an image of this checkout" in ran.text


def test_a_project_that_a_context_names_is_renamed_with_an_alias(root: Path) -> None:
    (root / "projects/tools:1").mkdir()
    (root / "projects/tools:1/Dockerfile").write_text("FROM scratch\nENV A=1\n")
    options = root / "projects/serve/project.toml"
    options.write_text(options.read_text().replace("image:base", "image:tools:1"))
    commit(root)
    assert doit(root, "mv", "tools:1", "tools:2", "--yes") == Ran(
        3,
        "ERROR: projects/serve/project.toml:4: contexts.tools names tools:1, and doit mv changes"
        " Dockerfiles alone\n"
        "  next: doit mv tools:1 tools:2 --alias\n"
        "        then write tools:2 here; `doit rm tools:1` removes the alias\n",
    )
    assert doit(root, "mv", "tools:1", "tools:2", "--yes", "--alias").status == 0
    options.write_text(options.read_text().replace("image:tools:1", "image:tools:2"))
    assert doit(root, "rm", "tools:1", "--yes", "--discard-changes").status == 0
    assert not open_checkout(root, {}).graph.broken
