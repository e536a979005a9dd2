"""What `doit watch` takes for a change: what can make an image stale, and nothing else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.engine.watched import Inputs, look
from tests.support.checkouts import write_checkout

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY tool /\n",
    "base/tool": "1",
    "projects/app:1/Dockerfile": "FROM base\nCOPY . /\n",
    "projects/app:1/.containerignore": "*.log\nignored/\n",
    "projects/app:1/src/main.py": "1",
    "projects/app:1/ignored/x": "1",
    "projects/other:1/Dockerfile": "FROM base\n",
    "projects/other:1/file": "1",
    "shared/Dockerfile.txt": "FROM base\n",
    "projects/linked:1/Dockerfile": "-> ../../shared/Dockerfile.txt",
}
NAMES = ("app:1",)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "home/.config").mkdir(parents=True)
    return write_checkout(tmp_path / "imgs", FILES)


def write(path: Path, text: str = "changed") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def shown(root: Path, before: Inputs, after: Inputs) -> list[str]:
    return [os.path.relpath(path, root) for path in before.changed(after)]


@pytest.mark.parametrize(
    "path",
    [
        "projects/app:1/Dockerfile",
        "projects/app:1/src/main.py",
        "projects/app:1/src/new.py",
        "projects/app:1/.containerignore",
        "projects/app:1/project.toml",
        "projects/app:1/env.toml",
        "base/tool",
        "pyproject.toml",
        "rc_tasks.toml",
        "../home/.config/rc_tasks.toml",
        "templates/env.toml.j2",
        "bases.lock",
    ],
)
def test_what_an_image_depends_on_is_a_change(root: Path, path: str) -> None:
    before = look(root, NAMES)
    text = (root / path).read_text() if (root / path).exists() else ""
    write(root / path, f"{text}\n# changed\n")
    after = look(root, NAMES, before)
    assert shown(root, before, after) == [path]
    assert after.errors == ()
    # It is noticed by events in these directories.
    assert (root / path).resolve().parent in before.directories


@pytest.mark.parametrize(
    "path",
    [
        "projects/app:1/run.log",
        "projects/app:1/ignored/x",
        "projects/app:1/ignored/new/y",
        "projects/app:1/image.sqsh",
        "projects/app:1/image.json",
        "projects/app:1/.image.1234.tmp.sqsh",
        "projects/app:1/.env.toml.x1",
        "projects/app:1/.Dockerfile.swp",
        "projects/app:1/src/main.py~",
        "projects/app:1/src/4913",
        "projects/app:1/src/.#main.py",
        ".rc/state/podman:app:1.json",
        "projects/other:1/file",
        "projects/other:1/Dockerfile",
        "README.md",
    ],
)
def test_nothing_else_is(root: Path, path: str) -> None:
    before = look(root, NAMES)
    write(root / path, "FROM base\nRUN true\n")
    assert look(root, NAMES, before) == before


def test_modes_removals_and_directories_are_changes(root: Path) -> None:
    source = root / "projects/app:1/src"
    before = look(root, NAMES)
    source.joinpath("main.py").chmod(0o755)
    changed = look(root, NAMES, before)
    assert shown(root, before, changed) == ["projects/app:1/src/main.py"]
    source.joinpath("empty").mkdir()
    more = look(root, NAMES, changed)
    assert shown(root, changed, more) == ["projects/app:1/src/empty"]
    shutil.rmtree(source)
    # Files come before directories.
    assert shown(root, more, look(root, NAMES, more)) == [
        f"projects/app:1/src{path}" for path in ("/main.py", "", "/empty")
    ]


def test_a_file_that_a_symlink_names(root: Path) -> None:
    before = look(root, ("linked:1",))
    assert root / "shared" in before.directories
    write(root / "shared/Dockerfile.txt", "FROM base\nRUN true\n")
    after = look(root, ("linked:1",), before)
    assert shown(root, before, after) == ["shared/Dockerfile.txt"]
    link = root / "projects/linked:1/Dockerfile"
    link.unlink()
    link.symlink_to("../app:1/Dockerfile")
    again = look(root, ("linked:1",), after)
    assert "projects/linked:1/Dockerfile" in shown(root, after, again)


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        ("projects/app:1/Dockerfile", "FRM base\n"),
        ("projects/app:1/project.toml", "frozen = ture\n"),
        ("projects/app:1/.containerignore", "[\n"),
        ("base/Dockerfile", "FRM scratch\n"),
        ("pyproject.toml", "[tool.rc_tasks]\nrunner = 1\n"),
        ("pyproject.toml", "[tool"),
    ],
)
def test_the_repair_of_a_broken_file_shows_that_file_alone(root: Path, path: str, broken: str) -> None:
    right = (root / path).read_text() if (root / path).exists() else "frozen = true\n"
    write(root / path, right)
    before = look(root, NAMES)
    assert before.errors == ()
    write(root / path, broken)
    failed = look(root, NAMES, before)
    assert failed.errors != ()
    assert shown(root, before, failed) == [path]
    write(root / path, right)
    repaired = look(root, NAMES, failed)
    assert repaired.errors == ()
    assert shown(root, failed, repaired) == [path]
    assert repaired.images == before.images == 2


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: write(root / "new/Dockerfile", "FROM scratch\n"),
        lambda root: (root / "projects/new:1").symlink_to("other:1"),
    ],
    ids=["project", "alias"],
)
def test_a_new_project_that_the_dockerfile_names(root: Path, edit: Callable[[Path], None]) -> None:
    write(root / "projects/app:1/Dockerfile", "FROM localhost/new:1\n")
    before = look(root, NAMES)
    assert before.errors != ()
    write(root / "projects/new:1/Dockerfile", "FROM scratch\n")
    after = look(root, NAMES, before)
    assert (after.errors, after.images) == ((), 2)
    assert root / "projects" in before.directories


def test_an_image_that_is_removed_and_comes_back(root: Path) -> None:
    before = look(root, NAMES)
    (root / "projects/app:1").rename(root / "away")
    gone = look(root, NAMES, before)
    assert gone.errors[0].startswith("there is no image named 'app:1'")
    (root / "away").rename(root / "projects/app:1")
    assert look(root, NAMES, gone).errors == ()
