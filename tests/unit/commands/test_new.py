"""New projects: whole or not at all, and an env.toml that gives way to the generated one."""

import os
import tomllib
from pathlib import Path

import pytest

from rc_tasks.commands import new
from rc_tasks.errors import RcError
from rc_tasks.model.dockerfile.parser import parse
from rc_tasks.model.edf import merge
from rc_tasks.state.checkout import Checkout, open_checkout
from tests.support.checkouts import write_checkout

RENDERED = (
    'image = "/official/projects/x/image.sqsh"\nmounts = []\n# Always written out.\nwritable = true\n'
)
FILES = {"base/Dockerfile": "FROM scratch\n", "projects/base:latest": "-> ../base"}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return open_checkout(write_checkout(tmp_path / "imgs ä", FILES), {})


def edf(checkout: Checkout, name: str) -> str:
    return (checkout.root / f"projects/{name}/env.toml").read_text()


@pytest.mark.parametrize(
    ("base", "first", "environment"),
    [
        ("", "base", {"base_environment": "ROOT/base/env.toml"}),
        ("base", "base", {"base_environment": "ROOT/base/env.toml"}),
        ("localhost/base", "localhost/base", {"base_environment": "ROOT/base/env.toml"}),
        ("base:latest", "base:latest", {"base_environment": "ROOT/base/env.toml"}),
        ("nvcr.io/nvidia/pytorch:25.01-py3", None, {"image": "nvcr.io#nvidia/pytorch:25.01-py3"}),
        ("debian:12", None, {"image": "debian:12"}),
        ("host:5000/a/b", None, {"image": "host:5000#a/b"}),
        ("scratch", None, None),
    ],
)
def test_a_project_starts_from_its_base(
    checkout: Checkout, base: str, first: str | None, environment: dict[str, str] | None
) -> None:
    project = new.create(checkout, "x:1", base)
    parsed = parse(
        project.dockerfile.read_bytes(), where="Dockerfile", build_args={}, architecture="x86_64"
    )
    final = parsed.final_base
    assert (final.name if final else "scratch") == (first or base)
    assert not parsed.sets_entrypoint
    assert os.access(project.directory / "entrypoint.sh", os.X_OK)
    if environment is None:
        assert not project.edf.exists()
    else:
        found = tomllib.loads(edf(checkout, "x:1"))
        assert found == {
            key: value.replace("ROOT", str(checkout.root)) for key, value in environment.items()
        }
    assert sorted(os.listdir(checkout.root / "projects")) == ["base:latest", "x:1"]


def test_the_commented_lines_of_the_entrypoint_work_when_uncommented(checkout: Checkout) -> None:
    project = new.create(checkout, "x")
    text = project.dockerfile.read_text()
    for start in ("COPY --chmod", "ENTRYPOINT", "CMD"):
        assert f"# {start}" in text
        text = text.replace(f"# {start}", start)
    parsed = parse(text.encode(), where="Dockerfile", build_args={}, architecture="x86_64")
    assert parsed.sets_entrypoint


def test_the_first_env_toml_gives_way_to_the_generated_one(checkout: Checkout) -> None:
    new.create(checkout, "x")
    first = edf(checkout, "x")
    assert merge.merge(first, RENDERED, "env.toml") == merge.merge(None, RENDERED, "env.toml")
    assert merge.merge(first.replace("\n", "\r\n"), RENDERED, "env.toml").startswith("#")


def test_what_a_person_wrote_into_the_first_env_toml_stays(checkout: Checkout) -> None:
    new.create(checkout, "x")
    mine = edf(checkout, "x") + '# mine\nmounts = ["/a:/a"]\n\n[env]\nA = "1"\n'
    merged = merge.merge(mine, RENDERED, "env.toml")
    assert "# mine" in merged
    assert tomllib.loads(merged) == {
        "image": "/official/projects/x/image.sqsh",
        "writable": True,
        "mounts": ["/a:/a"],
        "env": {"A": "1"},
    }
    # A base_environment of a person's own is theirs.
    theirs = edf(checkout, "x").replace("base/env.toml", "other/env.toml")
    assert "base_environment" in tomllib.loads(merge.merge(theirs, RENDERED, "env.toml"))


@pytest.mark.parametrize("template", ["Dockerfile.j2", "entrypoint.sh.j2", "env.toml.j2"])
@pytest.mark.parametrize("text", ["<@ nope @>", "<% if %>", 'image = 3\n<@ "a" | nope @>'])
def test_a_broken_template_leaves_nothing(checkout: Checkout, template: str, text: str) -> None:
    (checkout.root / new.TEMPLATES / template).write_text(text)
    with pytest.raises(RcError) as caught:
        new.create(checkout, "x")
    assert str(caught.value).startswith(f"templates/new/{template}")
    assert os.listdir(checkout.root / "projects") == ["base:latest"]


def test_a_template_that_makes_no_edf_is_told(checkout: Checkout) -> None:
    (checkout.root / new.TEMPLATES / "env.toml.j2").write_text("imgae = 3\n")
    with pytest.raises(RcError) as caught:
        new.create(checkout, "x")
    assert "the template does not make a valid EDF" in str(caught.value)


def test_files_are_as_readable_as_others(checkout: Checkout) -> None:
    before = os.umask(0o027)
    try:
        project = new.create(checkout, "x")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in project.directory.iterdir()}
    assert modes == {"Dockerfile": 0o640, "env.toml": 0o640, "entrypoint.sh": 0o750}
    assert project.directory.stat().st_mode & 0o777 == 0o750


REGISTRY = "write the image of a registry\n        with its host, as in docker.io/library/debian:12"


@pytest.mark.parametrize(
    ("name", "base", "text"),
    [
        (
            "x:1",
            "nosuch",
            f"there is no image named 'nosuch' in this checkout\n  next: {REGISTRY}",
        ),
        (
            "x:1",
            "bsae",
            "there is no image named 'bsae' in this checkout\n"
            f"  next: did you mean base? Otherwise {REGISTRY}",
        ),
        (
            "app",
            "",
            "an image named app would hide the group of app:1, app:2\n"
            "  next: name a version, such as app:1",
        ),
        (
            "build:x",
            "",
            "'build:x' cannot be the name of an image: doit reads build: as the beginning of a task\n"
            "  next: choose something like reasoning:2025.2",
        ),
        (
            "env",
            "",
            "'env' cannot be the name of an image: doit reads env: as the beginning of a task\n"
            "  next: choose something like reasoning:2025.2",
        ),
    ],
)
def test_a_name_or_base_that_cannot_be_meant_is_refused(
    tmp_path: Path, name: str, base: str, text: str
) -> None:
    files = {f"projects/app:{version}/Dockerfile": "FROM base\n" for version in (1, 2)}
    checkout = open_checkout(write_checkout(tmp_path / "imgs", {**FILES, **files}), {})
    before = sorted(os.listdir(checkout.root / "projects"))
    with pytest.raises(RcError) as caught:
        new.create(checkout, name, base)
    assert str(caught.value) == text
    assert sorted(os.listdir(checkout.root / "projects")) == before
