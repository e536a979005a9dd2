"""`doit import`: what bake and compose files become, and what it leaves alone."""

import json
import os
import tempfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.checkouts import write_checkout
from tests.support.doit import doit

GOLDEN = Path(__file__).parents[2] / "golden" / "import"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"

# What has to exist, and the directory and arguments of the import.
CASES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "training": (
        ("docker/Dockerfile.gpu", "docker/common/x", "server/Dockerfile", "Dockerfile"),
        ".",
        ("docker-bake.hcl",),
    ),
    "matrix": (
        (
            *("images/torch/Dockerfile.3.11", "images/torch/Dockerfile.3.12"),
            *("images/tools/Dockerfile", "images/agent/Dockerfile"),
        ),
        "images",
        ("docker-bake.hcl",),
    ),
    "json": (("app/Dockerfile",), ".", ("docker-bake.json", "docker-bake.override.hcl")),
    "compose": (
        ("deploy/Dockerfile.lab", "deploy/data/x", "deploy/api/Dockerfile"),
        "deploy",
        ("compose.yaml",),
    ),
}


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGISTRY", "VERSION", "CUDA", "RELEASE", "MAX_JOBS", "TAG", "INDEX", "CHANNEL"):
        monkeypatch.delenv(name, raising=False)


def checkout(root: Path, case: str) -> Path:
    """A checkout with the files of a case; return the directory of the import."""
    exist, directory, files = CASES[case]
    texts = {f"{directory}/{name}": (GOLDEN / case / name).read_text() for name in files}
    write_checkout(root, dict.fromkeys(exist, "FROM scratch\n") | texts)
    return root / directory


def listing(root: Path) -> dict[str, str]:
    """Every file and link of a checkout, without generated state."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(root.rglob("*"))
        if ".rc" not in path.parts and (path.is_symlink() or path.is_file())
    }


def imported(root: Path, text: str, *arguments: str, **environ: str) -> tuple[int, str]:
    """Import a bake file of this text in a checkout that has a Dockerfile."""
    write_checkout(root, {"Dockerfile": "FROM scratch\n", "docker-bake.hcl": text})
    ran = doit(root, "import", "docker-bake.hcl", *arguments, environ=environ)
    return ran.status, ran.text


@pytest.mark.parametrize("case", CASES)
def test_a_file_becomes_projects(case: str, tmp_path: Path) -> None:
    """The golden text is what `--dry-run` prints: each project.toml, what is not taken, notes."""
    here = checkout(tmp_path, case)
    before = listing(tmp_path)
    ran = doit(here, "import", "--dry-run", *CASES[case][2])
    assert ran.status == 0, ran.text
    assert listing(tmp_path) == before, "a dry run writes nothing"
    expected = GOLDEN / case / "expected.txt"
    if UPDATE:
        expected.write_text(ran.text)
    assert ran.text == expected.read_text()


@pytest.mark.parametrize("case", CASES)
def test_a_second_import_writes_nothing(case: str, tmp_path: Path) -> None:
    here = checkout(tmp_path, case)
    before = listing(tmp_path)
    first = doit(here, "import", *CASES[case][2])
    after = listing(tmp_path)
    assert first.status == 0, first.text
    new = {name: text for name, text in after.items() if name not in before}
    assert {name: after[name] for name in before} == before
    assert new and all(name.startswith("projects/") for name in new)
    for name, text in new.items():
        if name.endswith("project.toml"):
            tomllib.loads(text)
            assert f"wrote {name}" in first.text
        else:
            assert (tmp_path / name).is_dir(), "an alias leads to a project"
    second = doit(here, "import", *CASES[case][2])
    assert (second.status, listing(tmp_path)) == (0, after)
    assert "nothing to write" in second.text
    assert "wrote" not in second.text


def test_paths_are_relative_to_the_project(tmp_path: Path) -> None:
    here = checkout(tmp_path, "training")
    assert doit(here, "import", "docker-bake.hcl").status == 0
    project = tmp_path / "projects/framework:2025.1"
    options = tomllib.loads((project / "project.toml").read_text())
    assert os.path.samefile(project / options["dockerfile"], tmp_path / "docker/Dockerfile.gpu")
    assert os.path.samefile(project / options["context"], tmp_path)
    assert os.path.samefile(project / options["contexts"]["common"], tmp_path / "docker/common")


def test_json_has_what_the_text_has(tmp_path: Path) -> None:
    here = checkout(tmp_path, "json")
    document = json.loads(doit(here, "import", "--json", *CASES["json"][2]).text)
    (project,) = document["projects"]
    assert project["state"] == "new"
    written = (tmp_path / project["directory"] / "project.toml").read_text()
    assert written == project["text"]
    assert document["aliases"] == [{"name": "app:latest", "target": "app:1.0", "state": "new"}]
    again = json.loads(doit(here, "import", "--json", *CASES["json"][2]).text)
    assert [again["projects"][0]["state"], again["aliases"][0]["state"]] == ["same", "same"]


def test_a_file_that_differs_stays(tmp_path: Path) -> None:
    text = 'target "app" { target = "TARGET" \n tags = ["app:1", "app:new"] \n args = { A = "1" } }'
    assert imported(tmp_path, text.replace("TARGET", "old"))[0] == 0
    own = tmp_path / "projects/app:1/project.toml"
    own.write_text(own.read_text() + '\n[edf]\nworkdir = "/x"\n')
    status, said = imported(tmp_path, text.replace("TARGET", "old"))
    assert (status, "nothing to write" in said) == (0, True), "other keys are the user's"
    (tmp_path / "projects/app:new").unlink()
    (tmp_path / "projects/app:new").symlink_to("elsewhere")
    before = listing(tmp_path)
    other = text.replace("TARGET", "new").replace('A = "1"', 'B = "1"') + '\ntarget "more" {}'
    status, said = imported(tmp_path, other)
    after = listing(tmp_path)
    assert status == 1
    assert "projects/app:1/project.toml differs and stays as it is\n" in said
    assert '    target: "old", and "new" in the imported file\n' in said
    assert '    build_args.B: not set, and "1" in the imported file\n' in said
    assert '    build_args.A: "1", and not set in the imported file\n' in said
    assert "projects/app:new is no alias of app:1 and stays as it is\n" in said
    assert {name: after[name] for name in before if name != "docker-bake.hcl"} == {
        name: text for name, text in before.items() if name != "docker-bake.hcl"
    }
    assert "wrote projects/more/project.toml" in said, "what is new is written all the same"


def test_a_number_in_project_toml_is_the_same_argument(tmp_path: Path) -> None:
    text = 'target "app" { args = { A = 1, B = true } }'
    assert imported(tmp_path, text)[0] == 0
    own = tmp_path / "projects/app/project.toml"
    own.write_text(own.read_text().replace('"1"', "1").replace('"true"', "true"))
    assert "nothing to write" in imported(tmp_path, text)[1]


def test_a_project_that_is_there_gets_its_options(tmp_path: Path) -> None:
    """The directory of the context may be a project of this name already."""
    files = {"projects/app:1/Dockerfile": "FROM scratch\n", "base/Dockerfile": "FROM scratch\n"}
    write_checkout(tmp_path, files)
    text = (
        'target "app" { context = "projects/app:1" \n tags = ["app:1"] \n target = "x" }\n'
        'target "base" { context = "base" }\n'
    )
    status, said = imported(tmp_path, text)
    assert (status, "wrote projects/app:1/project.toml" in said) == (0, True), said
    assert tomllib.loads((tmp_path / "projects/app:1/project.toml").read_text()) == {"target": "x"}
    assert not (tmp_path / "base/project.toml").exists(), "it says all by itself"
    assert not (tmp_path / "projects/base").exists()


def test_another_dockerfile_of_a_project_stays(tmp_path: Path) -> None:
    write_checkout(tmp_path, {"projects/app:1/Dockerfile": "FROM scratch\n"})
    status, said = imported(tmp_path, 'target "app" { tags = ["app:1"] }')
    assert status == 1, "the image app:1 would be another one"
    assert 'dockerfile: not set, and "../../Dockerfile" in the imported file' in said
    assert not (tmp_path / "projects/app:1/project.toml").exists()


def test_a_compose_file_without_its_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    write_checkout(tmp_path, {"compose.yaml": "services:\n  web:\n    build: ./web\n"})
    ran = doit(tmp_path, "import", "compose.yaml")
    assert ran.status == 1
    assert ran.text.startswith(
        "compose.yaml:3: 'web' is not taken: there is no file web/Dockerfile in the checkout\n"
        "  next: correct the path; it begins at the directory of a compose file, or, in a bake file,"
    )


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ('context = ".."', "'app' is not taken: .. leads out of the checkout"),
        ('context = "link"', "'app' is not taken: link leads out of the checkout"),
        ('context = "/etc"', "leads out of the checkout"),
        ('dockerfile = "link/Dockerfile"', "link/Dockerfile leads out of the checkout"),
        ('dockerfile = "none"', "there is no file none in the checkout"),
        ('context = "Dockerfile"', "there is no directory Dockerfile in the checkout"),
        ('contexts = { x = "../.." }', "the context 'x' is not taken: ../.. leads out of the checkout"),
        ('args = { A = "\\u0000" }', "'app' is not taken: a text in it has a NUL, or is not UTF-8"),
        ('tags = ["app\\u001b[31m"]', "the tag 'app\\x1b[31m' of target 'app' is not its name"),
        ('tags = ["build:1"]', "doit reads build: as the beginning of a task"),
        ('secret = ["id=a/b,env=X"]', "the secret 'a/b' of 'app' is not taken"),
        ('secret = ["hf_secret_itself"]', "a secret is not taken: it has an unknown form"),
        ('args = { "A B" = "1" }', "the build argument 'A B' is not taken"),
        ('output = ["type=local,dest=out"]', "output of target 'app' is files"),
        ('shiny = "1"', "shiny of target 'app' is not taken"),
    ],
)
def test_what_is_not_taken_has_its_line(attributes: str, reason: str, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    (tmp_path / "Dockerfile").touch()
    root.mkdir()
    (root / "link").symlink_to("..")
    status, said = imported(root, f'\ntarget "app" {{\n  {attributes}\n}}\n')
    (line,) = [line for line in said.splitlines() if reason in line]
    assert line.startswith(("docker-bake.hcl:2: ", "docker-bake.hcl:3: ")), line
    assert "hf_secret_itself" not in said
    assert "\x1b" not in said
    assert status == (0 if "wrote projects/app/project.toml" in said else 1)


TAGS = st.sampled_from(["x", "x:1", "x:2", "x:latest", "y", "y:latest", "a:1", "b", "h/x:1", "", "Z:"])


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.sampled_from("abcd"), st.lists(TAGS, max_size=3), min_size=1))
def test_tags_of_any_kind_are_imported_once(tags: dict[str, list[str]]) -> None:
    """Whatever names images share, the second import writes nothing and no name is broken or hidden."""
    text = "".join(
        f'target "{name}" {{\n  target = "{name}"\n  tags = {json.dumps(tagged)}\n}}\n'
        for name, tagged in tags.items()
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(os.path.realpath(scratch))
        status, said = imported(root, text)
        assert status == 0, said
        after = listing(root)
        names = os.listdir(root / "projects")
        assert not {name for name in names if any(other.startswith(f"{name}:") for other in names)}
        status, said = imported(root, text)
        assert (status, listing(root)) == (0, after), said
        assert "nothing to write" in said


def test_a_context_of_an_image_that_is_not_imported_is_left_out(tmp_path: Path) -> None:
    text = (
        'target "base" { context = "none" }\n'
        'target "app" { contexts = { base = "target:base", old = "target:old" } }\n'
        'target "old" {}\n'
    )
    said = imported(tmp_path, text)[1]
    assert "docker-bake.hcl:2: the context 'base' is not taken: the image base is not imported\n" in said
    options = tomllib.loads((tmp_path / "projects/app/project.toml").read_text())
    assert options["contexts"] == {"old": "image:old"}


def test_keys_for_ssh_are_relative_to_the_project(tmp_path: Path) -> None:
    compose = (
        "services:\n  app:\n    build:\n      context: .\n"
        "      ssh: [default, 'a=./keys/a,/keys/b', 'home=~/.ssh/build']\n"
    )
    root = write_checkout(
        tmp_path, {"deploy/Dockerfile": "FROM scratch\n", "deploy/compose.yaml": compose}
    )
    assert doit(root, "import", "deploy/compose.yaml").status == 0
    options = tomllib.loads((root / "projects/app/project.toml").read_text())
    assert options["ssh"] == ["default", "a=../../deploy/keys/a,/keys/b", "home=~/.ssh/build"]


def test_images_for_each_machine_without_a_version_are_imported_once(tmp_path: Path) -> None:
    platforms = 'platforms = ["linux/amd64", "linux/arm64"]'
    files = {"Dockerfile": "FROM scratch\n", "docker-bake.hcl": f'target "app" {{\n{platforms}\n}}\n'}
    root = write_checkout(tmp_path, files)
    assert doit(root, "import", "docker-bake.hcl").text.startswith("wrote projects/app/project.toml\n")
    assert doit(root, "import", "docker-bake.hcl").text == (
        "nothing to write: 1 of 1 files say the same already\n"
    )


def test_a_name_without_a_version_is_latest_beside_versions_of_the_checkout(tmp_path: Path) -> None:
    write_checkout(tmp_path, {"projects/app:1/Dockerfile": "FROM scratch\n"})
    text = 'target "app" {}\ntarget "more" { contexts = { app = "target:app" } }'
    assert "wrote projects/app:latest/project.toml" in imported(tmp_path, text)[1]
    assert 'app = "image:app:latest"' in (tmp_path / "projects/more/project.toml").read_text()
    assert "nothing to write" in imported(tmp_path, text)[1]


def test_variables_of_the_environment_override_and_are_named(tmp_path: Path) -> None:
    text = 'variable "TAG" { default = "1" }\ntarget "app" { tags = ["app:${TAG}"] }'
    status, said = imported(tmp_path, text, TAG="2")
    assert (status, "wrote projects/app:2/project.toml" in said) == (0, True)
    assert "note: values of the environment: TAG\n" in said


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "FILE is missing"),
        (("c.yaml", "big.hcl"), "c.yaml big.hcl: expected one compose file"),
        (("Makefile",), "Makefile: expected one compose file"),
        (("none.hcl",), "none.hcl: cannot be read: No such file or directory"),
        ((".rc.hcl",), ".rc.hcl: cannot be read: Is a directory"),
        (("latin1.hcl",), "latin1.hcl:1: not UTF-8 (byte 0xff)"),
        (("big.hcl",), "big.hcl: has 300000 characters, and 262144 are allowed"),
    ],
)
def test_files_that_cannot_be_read(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write_checkout(tmp_path, {"big.hcl": "#" * 300_000})
    (tmp_path / ".rc.hcl").mkdir()
    (tmp_path / "latin1.hcl").write_bytes(b"\xff")
    ran = doit(tmp_path, "import", *files)
    assert (ran.status, ran.text.startswith(f"ERROR: {message}")) == (3, True), ran.text
    assert not (tmp_path / "projects").exists()


def test_each_mistake_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    text = 'target "a" { tags = "x" }\ntarget "b" { inherits = ["c"] }\ntarget "ok" {}\n'
    status, said = imported(tmp_path, text)
    assert status == 3
    assert said == (
        "ERROR: 2 problems in docker-bake.hcl\n"
        "  | docker-bake.hcl:1: tags is not a list (correct this value)\n"
        "  | docker-bake.hcl:2: target 'b' inherits from 'c', which does not exist (correct the name)\n"
        "  next: correct the places named above\n"
    )
    assert not (tmp_path / "projects").exists()


def test_a_kill_leaves_no_half_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rc_tasks.engine.upkeep import imports
    from rc_tasks.state.checkout import open_checkout

    here = checkout(tmp_path, "training")
    planned = json.loads(doit(here, "import", "--dry-run", "--json", "docker-bake.hcl").text)
    project = imports.ProjectFile(**{**planned["projects"][0], "state": imports.FileState.NEW})

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imports, "put_in_place", killed)
    with pytest.raises(KeyboardInterrupt):
        imports.write(open_checkout(tmp_path, {}), imports.Plan((project,)))
    assert not [*(tmp_path / "projects").iterdir()]
