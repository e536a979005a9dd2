"""`doit new` for Dockerfiles, contexts and matrices of a repository: options, questions, refusals."""

import os
import subprocess
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from rc_tasks.engine.upkeep.new_recipe import dockerfiles_elsewhere, usual_context
from rc_tasks.state.checkout import open_checkout
from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT, Ran, doit
from tests.support.recipes import FILES
from tests.support.terminal import Terminal

MORE: Mapping[str, str] = {
    "docker/Dockerfile.serve": (
        "ARG VERSION\nFROM scratch AS build\nCOPY run.sh /\nFROM scratch AS Serve\nARG cuda_version=1\n"
    ),
    "docker/run.sh": "run\n",
    "tools/build.Dockerfile": "FROM scratch\nCOPY --from=base /a /a\n",
    "tools/ci/Containerfile": 'FROM scratch\nCOPY ["src/lib", "src/*.py", "/"]\nADD https://a/b /\n',
    "tools/Dockerfile": "FROM scratch\n",  # the project `tools`
    "examples/own/dodo.py": "",
    "examples/own/base/Dockerfile": "FROM scratch\n",
    "ci/tests/Dockerfile": "FROM scratch\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = write_checkout(tmp_path / "it's: ä", {**FILES, **MORE})
    subprocess.run(("git", "init", "--quiet"), cwd=made, check=True)
    return made


def written(root: Path, name: str) -> dict[str, object]:
    """The project.toml of a project that has no other file."""
    assert os.listdir(root / f"projects/{name}") == ["project.toml"]
    return tomllib.loads((root / f"projects/{name}/project.toml").read_text())


def test_a_project_for_a_dockerfile_elsewhere_and_a_matrix(root: Path) -> None:
    options = ("--matrix", "cuda=12.8,13.0", "--matrix", "Python=3.12")
    ran = doit(root / "docker", "new", "x", "--dockerfile", "Dockerfile.app", *options)
    assert ran == Ran(
        0,
        "made projects/x/: project.toml\n"
        '    dockerfile = "../../docker/Dockerfile.app"\n'
        '    context = "../.."\n'
        "    \n"
        "    [build_args]\n"
        '    CUDA = "{cuda}"\n'
        '    PYTHON = "{Python}"\n'
        "    \n"
        "    [matrix]\n"
        '    cuda = ["12.8", "13.0"]\n'
        '    Python = ["3.12"]\n'
        "next: `doit list x`, then `doit build:x`\n",
    )
    graph = open_checkout(root, {}).graph
    assert {"x:12.8-3.12", "x:13.0-3.12"} <= set(graph.images) and not graph.broken


def test_a_stage_and_an_argument_in_small_letters(root: Path) -> None:
    argv = ("--dockerfile", "docker/Dockerfile.serve", "--target", "serve", "--context", "src")
    assert doit(root, "new", "x", *argv, "--matrix", "CUDA_VERSION=1,2").status == 0
    assert written(root, "x") == {
        "dockerfile": "../../docker/Dockerfile.serve",
        "context": "../../src",
        "target": "serve",
        "build_args": {"cuda_version": "{CUDA_VERSION}"},
        "matrix": {"CUDA_VERSION": ["1", "2"]},
    }


def test_a_matrix_with_a_new_dockerfile_declares_its_arguments(root: Path) -> None:
    ran = doit(root, "new", "x", "--from", "base", "--matrix", "cuda-version=1,2")
    assert ran.status == 0 and "made projects/x/: Dockerfile, entrypoint.sh, project.toml\n" in ran.text
    assert (root / "projects/x/Dockerfile").read_text().startswith("FROM base\nARG CUDA_VERSION\n\n#")
    images = open_checkout(root, {}).graph.images
    assert images["x:2"].options.build_args == {"CUDA_VERSION": "2"}


def test_a_context_for_a_new_dockerfile(root: Path) -> None:
    assert doit(root, "new", "x:1", "--from=base", "--context", ".").status == 0
    assert sorted(os.listdir(root / "projects/x:1")) == ["Dockerfile", "env.toml", "project.toml"]
    assert open_checkout(root, {}).graph.images["x:1"].project.context == root


def test_what_cannot_be_built_yet_is_written_and_told(root: Path) -> None:
    (root / "docker/Dockerfile.app").write_text("ARG BASE\nFROM ${BASE}\n")
    ran = doit(root, "new", "x", "--dockerfile", "docker/Dockerfile.app")
    assert ran.status == 0
    assert "it cannot be built yet:\ndocker/Dockerfile.app:2: variable BASE has no value" in ran.text
    assert written(root, "x")["dockerfile"] == "../../docker/Dockerfile.app"


@pytest.mark.parametrize(
    ("dockerfile", "context"),
    [
        ("docker/Dockerfile.app", "."),  # copies src
        ("docker/Dockerfile.serve", "docker"),  # copies run.sh, which is beside it
        ("tools/build.Dockerfile", "tools"),  # copies from another image
        ("tools/ci/Containerfile", "."),
    ],
)
def test_the_context_is_where_the_copied_files_are(root: Path, dockerfile: str, context: str) -> None:
    assert usual_context(open_checkout(root, {}), dockerfile) == context


def test_the_dockerfiles_that_belong_to_no_project(root: Path) -> None:
    (root / ".gitignore").write_text("build\n")
    (root / "build").mkdir()
    (root / "build/Dockerfile").write_text("FROM scratch\n")
    assert dockerfiles_elsewhere(open_checkout(root, {})) == [
        "docker/Dockerfile.app",
        "docker/Dockerfile.base",
        "docker/Dockerfile.docs",
        "docker/Dockerfile.serve",
        "tools/build.Dockerfile",
        "tools/ci/Containerfile",
    ]


MATRIX = "  next: write it like --matrix cuda=12.8,13.0\n"
WRONG = {
    "no-file": (
        ("--dockerfile", "docker/None"),
        "docker/None: there is no such file\n"
        "  next: name a file after --dockerfile; a relative path begins at the working directory\n",
    ),
    "a-directory": (
        ("--dockerfile", "docker"),
        "docker: there is no such file\n"
        "  next: name a file after --dockerfile; a relative path begins at the working directory\n",
    ),
    "no-directory": (
        ("--dockerfile", "docker/Dockerfile.app", "--context", "README.md"),
        "README.md: there is no such directory\n"
        "  next: name a directory after --context; a relative path begins at the working directory\n",
    ),
    "outside": (
        ("--context", ".."),
        "..: is not in this checkout, which is ROOT\n"
        "  next: copy or clone it into the checkout, and name it there\n",
    ),
    "stage": (
        ("--dockerfile", "docker/Dockerfile.serve", "--target", "sreve"),
        "docker/Dockerfile.serve: there is no stage 'sreve'\n  next: the stages are: build, Serve\n",
    ),
    "argument": (
        ("--dockerfile", "docker/Dockerfile.app", "--matrix", "cud=1"),
        "docker/Dockerfile.app: there is no ARG CUD, which the axis cud would set\n"
        "  next: name the axis after one of: CUDA\n",
    ),
    "no-argument": (
        ("--dockerfile", "docker/Dockerfile.base", "--matrix", "cuda=1"),
        "docker/Dockerfile.base: there is no ARG CUDA, which the axis cuda would set\n"
        "  next: add a line `ARG CUDA` below FROM\n",
    ),
    "axis-form": (("--matrix", "cuda"), f"--matrix cuda: expected AXIS=VALUE,VALUE\n{MATRIX}"),
    "axis-twice": (
        ("--matrix", "a=1", "--matrix", "a=2"),
        f"--matrix a=2: is given twice\n{MATRIX}",
    ),
    "axes-of-one-argument": (
        ("--from", "base", "--matrix", "cuda=1", "--matrix", "CUDA=2"),
        f"--matrix: the axes cuda and CUDA would both set ARG CUDA\n{MATRIX}",
    ),
    "axis-values": (("--matrix", "a=1,1"), f"--matrix: a: a value is given twice\n{MATRIX}"),
    "axis-name": (
        ("--matrix", "exclude=1"),
        f"--matrix exclude=1: expected AXIS=VALUE,VALUE\n{MATRIX}",
    ),
    "target": (
        ("--target", "a"),
        "--target needs --dockerfile\n  next: a new Dockerfile has one stage\n",
    ),
    "from": (
        ("--from", "base", "--dockerfile", "docker/Dockerfile.app"),
        "--from and --dockerfile cannot be combined\n  next: the Dockerfile names its base in FROM\n",
    ),
}


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_refused_before_anything_is_written(
    root: Path, argv: tuple[str, ...], message: str
) -> None:
    before = os.listdir(root / "projects")
    assert doit(root, "new", "x", *argv) == Ran(3, f"ERROR: {message.replace('ROOT', str(root))}")
    assert os.listdir(root / "projects") == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "app",
            "projects/app/project.toml:5: app is a matrix already\n"
            "  next: doit build:app, or choose another name\n",
        ),
        (
            "app:13.0-py3.12",
            "projects/app/project.toml:5: app:13.0-py3.12 is an image of this matrix already\n"
            "  next: doit build:app:13.0-py3.12, or choose another name\n",
        ),
        (
            "app:latest",
            "projects/app:latest: is an alias, a symlink to app:13.0-py3.12\n"
            "  next: rm 'projects/app:latest', or choose another name\n",
        ),
    ],
)
def test_an_image_beside_those_of_a_matrix_is_refused(root: Path, name: str, message: str) -> None:
    assert doit(root, "new", name, "--from=base") == Ran(3, f"ERROR: {message}")


def test_a_project_beside_a_matrix_and_beside_one_for_several_machines(root: Path) -> None:
    (root / "projects/tool:1").mkdir()
    (root / "projects/tool:1/project.toml").write_text(
        'dockerfile = "../../docker/Dockerfile.base"\narch = ["aarch64", "x86_64"]\n'
    )
    for name in ("app:9", "tool:2"):
        ran = doit(root, "new", name, "--dockerfile", str(root / "docker/Dockerfile.base"))
        assert ran.status == 0 and f"made projects/{name}/: project.toml\n" in ran.text, ran.text
        assert doit(root, "list", name).status == 0
        ran = doit(root, "new", name)
        assert f"projects/{name}: is a project already\n  next: doit build:{name}, or" in ran.text
    assert doit(root, "new", "tool:1-x86_64", "--from=base") == Ran(
        3,
        "ERROR: projects/tool:1/project.toml:2: tool:1-x86_64 is an image of this project already\n"
        "  next: doit build:tool:1-x86_64, or choose another name\n",
    )


def test_a_matrix_has_no_version_in_its_name(root: Path) -> None:
    assert doit(root, "new", "x:1", "--from=base", "--matrix", "a=1") == Ran(
        3,
        "ERROR: the images of a matrix are named x:VERSION, and x:1 has a version already\n"
        "  next: name it without one: x\n",
    )


def at_terminal(root: Path, *answers: str) -> tuple[int, str]:
    """The exit status and the screen of `doit new x` at a terminal, after these answers."""
    with Terminal((DOIT, "new", "x"), root, {}, columns=100, rows=40) as terminal:
        for question, answer in zip(("the Dockerfile of x", "the directory"), answers, strict=False):
            terminal.shows(partial(_is_asked, question))
            terminal.type(answer)
        return terminal.end()


def _is_asked(question: str, text: str) -> bool:
    return question in text.rpartition("\n")[2]


def test_at_a_terminal_it_asks_for_the_dockerfile_and_the_context(root: Path) -> None:
    status, text = at_terminal(root, "4\n", "\n")
    assert status == 0
    assert text.startswith(
        "Dockerfiles of this repository:\n"
        "   1  docker/Dockerfile.app\n"
        "   2  docker/Dockerfile.base\n"
        "   3  docker/Dockerfile.docs\n"
        "   4  docker/Dockerfile.serve\n"
        "   5  tools/build.Dockerfile\n"
        "   6  tools/ci/Containerfile\n"
        "the Dockerfile of x [Enter: a new one]: 4\n"
        "the directory that COPY takes files from [Enter: docker]:\n"
        "made projects/x/: project.toml\n"
    )
    assert written(root, "x") == {
        "dockerfile": "../../docker/Dockerfile.serve",
        "context": "../../docker",
    }


def test_at_a_terminal_enter_makes_a_new_one_and_the_end_of_input_nothing(root: Path) -> None:
    status, text = at_terminal(root, "\x04")
    assert status == 3 and "ERROR: nothing was changed: the input ended\n" in text
    assert not (root / "projects/x").exists()
    status, text = at_terminal(root, "\n")
    assert "made projects/x/: Dockerfile, entrypoint.sh, env.toml" in text and status == 0, text
