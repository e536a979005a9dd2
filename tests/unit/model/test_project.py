"""Finding projects: what counts, what is an alias, what is broken and how it is told."""

from pathlib import Path

import pytest

from rc_tasks.model.graph.project import Alias, Broken, Project, discover


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        name, _, target = path.partition(" -> ")
        full = root / name
        full.parent.mkdir(parents=True, exist_ok=True)
        if target:
            full.symlink_to(target)
        elif name.endswith("/"):
            full.mkdir(parents=True, exist_ok=True)
        else:
            full.write_text("FROM scratch\n")
    return root


def test_projects_and_bases_are_found_and_other_directories_are_not(tmp_path: Path) -> None:
    make(
        tmp_path,
        "reasoning_base/Dockerfile",
        "projects/reasoning:2025.1/Dockerfile",
        "projects/.hidden/Dockerfile",
        "templates/env.toml.j2",
        "examples/demo/Dockerfile.txt",
        "projects/README.md",
    )
    found = list(discover(tmp_path))
    assert [(one.name, one.path) for one in found if isinstance(one, Project)] == [
        ("reasoning_base", "reasoning_base"),
        ("reasoning:2025.1", "projects/reasoning:2025.1"),
    ]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["Containerfile"], "Containerfile"),
        (["Containerfile", "Dockerfile"], "Containerfile"),
        (["Containerfile -> Dockerfile", "Dockerfile"], "Containerfile"),
        # podman 4.3.1 passes over these.
        (["Containerfile -> gone", "Dockerfile"], "Dockerfile"),
        (["Containerfile/", "Dockerfile"], "Dockerfile"),
    ],
)
@pytest.mark.parametrize("directory", ["base", "projects/a:1"])
def test_the_dockerfile_is_the_one_that_podman_takes(
    tmp_path: Path, directory: str, paths: list[str], name: str
) -> None:
    make(tmp_path, *(f"{directory}/{path}" for path in paths))
    (found,) = discover(tmp_path)
    assert isinstance(found, Project)
    assert found.dockerfile == tmp_path / directory / name
    assert found.shown_dockerfile == f"{directory}/{name}"


def test_a_symlink_is_another_name_for_its_project(tmp_path: Path) -> None:
    make(tmp_path, "projects/a:1/Dockerfile", "projects/a:latest -> a:1", "projects/a:new -> a:latest")
    aliases = [one for one in discover(tmp_path) if isinstance(one, Alias)]
    assert aliases == [Alias("a:latest", "a:1"), Alias("a:new", "a:1")]


def test_a_directory_that_git_left_behind_is_no_project(tmp_path: Path) -> None:
    make(tmp_path, "projects/gone:1/image.sqsh", "projects/gone:1/image.json", "projects/empty/")
    # A branch without the matrix leaves an env.toml that no commit has.
    make(tmp_path, "projects/m:1/image.sqsh", "projects/m:1/image.json", "projects/m:1/env.toml")
    assert list(discover(tmp_path)) == []


@pytest.mark.parametrize(
    ("paths", "name", "text"),
    [
        (
            ["projects/a/entrypoint.sh"],
            "a",
            "projects/a/: this project has no Dockerfile\n"
            "  next: write one (its first line is FROM and a base), or remove the directory",
        ),
        (
            ["projects/a/Containerfile -> gone"],
            "a",
            "projects/a/Containerfile: is a symlink to gone, which does not exist\n"
            "  next: write the file, or point the symlink to one:"
            " ln -sfn FILE 'projects/a/Containerfile'",
        ),
        (
            ["projects/a:latest -> a:1"],
            "a:latest",
            "projects/a:latest: this alias points to a:1, which does not exist\n"
            "  next: point it to a project: ln -sfn NAME 'projects/a:latest'",
        ),
        (
            ["projects/x -> /etc"],
            "x",
            "projects/x: this alias points to /etc, outside of the projects of this checkout\n"
            "  next: an alias names a project beside it: ln -sfn NAME 'projects/x'",
        ),
        (
            ["projects/My Project/Dockerfile"],
            "My Project",
            "projects/My Project: 'My Project' cannot be the name of an image: it contains a space\n"
            "  next: rename it to something like reasoning:2025.1",
        ),
        (
            ["Docker/Dockerfile"],
            "Docker",
            "Docker: 'Docker' cannot be the name of an image: it has capital letters before the tag\n"
            "  next: rename it to something like reasoning:2025.1, or set top_projects = false: then"
            " projects are in projects/ alone",
        ),
    ],
    ids=["no-dockerfile", "dangling-dockerfile", "dangling", "outside", "space", "top"],
)
def test_what_is_wrong_is_told_and_the_rest_is_found(
    tmp_path: Path, paths: list[str], name: str, text: str
) -> None:
    make(tmp_path, "projects/good/Dockerfile", *paths)
    found = list(discover(tmp_path))
    assert [one.name for one in found if isinstance(one, Project)] == ["good"]
    (broken,) = [one for one in found if isinstance(one, Broken)]
    assert (broken.name, str(broken.error)) == (name, text)
