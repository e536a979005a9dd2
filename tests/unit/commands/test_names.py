"""Names of images on a command line: paths, patterns, groups and tasks, in every command alike."""

import json
from pathlib import Path

import pytest

from rc_tasks.views import tables
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import DOIT, Ran, doit, doit_process
from tests.support.terminal import Terminal

FILES = {
    "base/Dockerfile": "FROM scratch\n",
    "projects/app:1/Dockerfile": "FROM base\n",
    "projects/app:1/src/main.py": "",
    "projects/app:2/Dockerfile": "FROM base\n",
    "projects/app:latest": "-> app:2",
    "projects/odd:1/Dockerfile": "FROM base\n",
    "projects/odd:1/project.toml": "frozen = ture\n",
    "docs/page.md": "",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_checkout(tmp_path_factory.mktemp("checkout") / "imgs", FILES, 'runner = "local"')
    pretend_built(root, ("base", "app:1"))
    (root / "projects/odd:1/image.sqsh").write_bytes(b"hsqs")
    return root


def listed(root: Path, *argv: str) -> list[str]:
    ran = doit(root, "list", "--json", *argv)
    assert ran.status == 0, ran.text
    return [image["name"] for image in json.loads(ran.text)]


@pytest.mark.parametrize(
    ("folder", "argument", "expected"),
    [
        ("projects/app:1", ".", ["app:1"]),
        ("projects/app:1/src", ".", ["app:1"]),
        ("projects/app:1", "build:.", ["app:1"]),
        ("projects/app:1", "../app:2/", ["app:2"]),
        ("projects", "app:1/", ["app:1"]),
        ("projects", "projects/app:1/", ["app:1"]),
        ("projects", "app:latest/", ["app:2"]),
        ("projects/app:1", "..", ["app:1", "app:2", "odd:1"]),
        (".", "projects/app:1/", ["app:1"]),
        (".", "env:projects/app:1", ["app:1"]),
        (".", "app*", ["app:1", "app:2"]),
        (".", "build:*:1", ["app:1", "odd:1"]),
        (".", "*latest", ["app:2"]),
        (".", "build", ["app:1", "app:2", "base", "odd:1"]),
        (".", "build:app", ["app:1", "app:2"]),
    ],
)
def test_an_argument_may_be_a_path_a_pattern_or_a_task(
    root: Path, folder: str, argument: str, expected: list[str]
) -> None:
    assert sorted(listed(root / folder, argument)) == expected


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ("list", "podman"),
            "ERROR: 'podman' names a step without an image\n"
            "  next: write podman:NAME; `doit list` shows all images\n",
        ),
        (
            ("why", "build:"),
            "ERROR: 'build:' names a step without an image\n"
            "  next: write build:NAME; `doit list` shows all images\n",
        ),
        (
            ("plan", "x*"),
            "ERROR: no image matches 'x*'\n  next: `doit list` shows all images\n",
        ),
        (
            ("build:docs/",),
            "ERROR: docs/: there is no image in this directory\n  next: `doit list` shows all images\n",
        ),
        (
            ("list", "--json", "--all"),
            "ERROR: --json and --all cannot be combined: --json is for images, and --all lists tasks\n"
            "  next: doit list --json\n",
        ),
        (
            ("list", "--state", "lost"),
            "ERROR: --state: must be one of 'fresh', 'stale', 'missing', 'failed', 'building',"
            " not 'lost'\n  next: `doit help list`\n",
        ),
        (
            ("--", "--continue"),
            "ERROR: there is no task named '--continue'\n  next: write options before `--`\n",
        ),
        (
            ("forget", "--", "--all"),
            "ERROR: there is no task named '--all'\n  next: write options before `--`\n",
        ),
    ],
)
def test_an_argument_that_names_no_image_is_refused(
    root: Path, argv: tuple[str, ...], text: str
) -> None:
    assert doit(root, *argv) == Ran(3, text)


def test_commands_of_doit_take_images_groups_and_directories(root: Path) -> None:
    assert doit(root, "list", "-q", "app:1").text.split() == ["build:app:1"]
    assert doit(root, "info", "app:1") == doit(root, "info", "build:app:1")
    one, other = doit(root, "info", "app:1"), doit(root, "info", "env:app:1")
    assert doit(root, "info", "app:1", "env:app:1") == Ran(0, one.text + other.text)
    here = root / "projects/app:2"
    assert doit(here, "forget", ".").text == doit(root, "forget", "app:2").text
    assert "forgetting env:app:2\n" in doit(root, "forget", "build:app:2").text
    assert "image.sqsh" in doit(here, "clean", "-n", "../app:1/").text


def test_doits_commands_judge_an_image_by_its_steps(root: Path) -> None:
    status = doit(root, "list", "--status", "base", "app:1", "app:2", "app").text
    assert [line.split()[:2] for line in status.splitlines()] == [
        ["R", "build:app"],
        ["U", "build:app:1"],
        ["R", "build:app:2"],
        ["U", "build:base"],
    ]
    fresh, stale = doit(root, "info", "app:1"), doit(root, "info", "app:2")
    assert fresh.status == 0 and "status     : up-to-date\n" in fresh.text
    assert stale.status == 1 and "status     : run\n * podman:app:2: never built\n" in stale.text


def test_info_shows_what_a_step_depends_on_and_why_it_would_run(root: Path) -> None:
    assert doit(root, "info", "podman:app:1").text == (
        "\npodman:app:1\n\nbuild the image of app:1\n\nstatus     : up-to-date\n"
        "\nfile_dep   : \n - projects/app:1/Dockerfile\n - projects/app:1/src\n"
        " - projects/app:1/src/main.py\n"
        "\ntask_dep   : \n - podman:base\n"
    )
    assert doit(root, "info", "--no-status", "env:app:2").text == (
        "\nenv:app:2\n\nwrite env.toml of app:2\n"
        "\ntask_dep   : \n - enroot:app:2\n\ntargets    : \n - projects/app:2/env.toml\n"
    )
    step = doit(root, "info", "env:app:latest")
    assert step.status == 1 and step.text.startswith("\nenv:app:2\n"), step.text
    alias = doit(root, "info", "build:app:latest")
    assert alias.status == 1 and "\nthe same as build:app:2\n" in alias.text
    assert "\n * podman:app:2: never built\n" in alias.text
    broken = doit(root, "info", "odd:1")
    assert broken.status == 1 and "\n * projects/odd:1/project.toml:1: not valid TOML" in broken.text


def test_info_shows_tasks_that_a_dodo_adds(root: Path) -> None:
    dodo = (root / "dodo.py").read_text()
    try:
        (root / "dodo.py").write_text(f"{dodo}\ndef task_own():\n    return {{'actions': ['true']}}\n")
        own = doit_process(root, "info", "own", "env:app:1")
    finally:
        (root / "dodo.py").write_text(dodo)
    assert "\nown\n\nstatus     : run\n" in own.text and "write env.toml of app:1" in own.text


def test_commands_that_show_succeed_for_a_broken_image_and_show_what_is_published(root: Path) -> None:
    for name in ("list", "why", "plan"):
        ran = doit(root, name, "odd:1")
        assert ran.status == 0 and "project.toml:1: not valid TOML" in ran.text
    (image,) = json.loads(doit(root, "list", "odd:1", "--json").text)
    assert image["state"] == "failed" and image["directory"] is None
    assert (image["image"], image["size_bytes"]) == (f"{root}/projects/odd:1/image.sqsh", 4)


def test_a_list_by_state(root: Path) -> None:
    assert listed(root, "--state", "failed") == ["odd:1"]
    assert listed(root, "app", "--state", "missing") == ["app:2"]
    assert doit(root, "list", "--state", "building") == Ran(0, "no image is building\n")


def test_totals_stand_below_the_table_on_a_terminal_only(root: Path) -> None:
    plain = doit(root, "list", "base", "app")
    assert len(plain.text.splitlines()) == 4
    with Terminal((DOIT, "list", "base", "app"), root, {}, columns=100, rows=30) as terminal:
        status, text = terminal.end()
    size = tables.size(
        sum((root / name / "image.sqsh").stat().st_size for name in ("base", "projects/app:1"))
    )
    assert status == 0 and text.endswith(f"\n3 images, {size}: 2 fresh, 1 missing")


@pytest.mark.parametrize("argv", [("list", "app"), ("info", "base"), ("why", "base")])
def test_a_checkout_can_be_named_from_elsewhere(
    root: Path, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    here = doit_process(root, *argv)
    assert doit_process(tmp_path, "-d", str(root / "projects"), *argv) == here
    assert doit_process(tmp_path, "-f", str(root / "dodo.py"), *argv) == here


@pytest.mark.parametrize("argv", [(), ("list",), ("info", "base")])
def test_a_checkout_that_does_not_exist_is_refused(root: Path, argv: tuple[str, ...]) -> None:
    assert doit(root, "-d", "/nosuch", *argv) == Ran(
        3,
        "ERROR: /nosuch: there is no such directory\n"
        "  next: name another directory with -d, or leave -d out in a checkout\n",
    )
    assert doit(root, "-f", "nosuch.py", *argv) == Ran(
        3,
        "ERROR: nosuch.py: there is no such file\n"
        "  next: name another file with -f, or leave -f out in a checkout\n",
    )
