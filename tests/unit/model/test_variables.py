"""Settings and git facts in build arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from tests.support.checkouts import pretend_built, write_checkout

SETTINGS = 'source = "https://example.org/a.git"\n\n[tool.rc_tasks.edf.env]\nA_B = "x{axis}"\n'
PROJECT = "projects/x/project.toml"


def made(root: Path, project_toml: str) -> Checkout:
    files = {"projects/x/Dockerfile": "FROM scratch\n", PROJECT: project_toml}
    return open_checkout(write_checkout(root, files, SETTINGS), {})


def arguments(root: Path, project_toml: str) -> dict[str, str]:
    return dict(made(root, project_toml).graph.resolve("x").options.build_args)


def repository(root: Path, *remote: str) -> None:
    root.mkdir(exist_ok=True)
    git(root, "init", "--quiet", "--initial-branch=work/a")
    if remote:
        git(root, "remote", "add", "origin", *remote)


def git(root: Path, *argv: str) -> None:
    subprocess.run(("git", *argv), cwd=root, check=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${settings.source}", "https://example.org/a.git"),
        ("<${settings.slurm.time_limit_min}|${settings.store.enabled}>", "<240|true>"),
        ("${settings.runner} ${settings.runner}", "auto auto"),
        ("${settings.images_root}", ""),
        ("${settings.edf.env.A_B}", "x{axis}"),
        ("${X} ${HOME:-y} $settings.source ${settings} {settings.source}", None),
    ],
)
def test_a_setting_replaces_its_variable(tmp_path: Path, text: str, value: str | None) -> None:
    checkout = made(tmp_path, f'build_args = {{ A = "{text}", B = 3 }}\n')
    limit = str(checkout.settings.slurm.time_limit_min)
    expected = text if value is None else value.replace("240", limit)
    assert checkout.graph.resolve("x").options.build_args == {"A": expected, "B": "3"}


def test_axes_of_a_matrix_are_filled_beside_variables_and_not_in_their_values(tmp_path: Path) -> None:
    matrix = '[matrix]\naxis = ["1"]\nkey = ["A_B"]\n'
    text = 'build_args = { A = "${settings.edf.env.{key}}-{axis}" }\n'
    images = made(tmp_path, text + matrix).graph.images
    assert images["x:1-A_B"].options.build_args == {"A": "x{axis}-1"}


def test_the_branch_and_the_remote_come_from_git(tmp_path: Path) -> None:
    repository(tmp_path, "https://ada:token@example.org/ada/x.git")
    text = 'build_args = { A = "${git.branch} of ${git.remote}" }\n'
    assert arguments(tmp_path, text) == {"A": "work/a of https://example.org/ada/x.git"}


@pytest.mark.parametrize("url", ["git@example.org:a/x.git", "ssh://git@example.org/a/x", "/srv/a@b/x"])
def test_the_name_in_an_address_of_ssh_stays(tmp_path: Path, url: str) -> None:
    repository(tmp_path, url)
    assert arguments(tmp_path, 'build_args.A = "${git.remote}"\n') == {"A": url}


WRONG = {
    "commit": (
        "${git.commit}",
        "A: ${git.commit} would build the image again at each commit\n"
        "  next: name a file that changes when the image has to: COPY VERSION /;"
        " image.json has the commit of each build",
    ),
    "describe": (
        "v${git.describe}",
        "A: ${git.describe} would build the image again at each commit\n"
        "  next: name a file that changes when the image has to: COPY VERSION /;"
        " image.json has the commit of each build",
    ),
    "git": (
        "${git.branhc}",
        "A: ${git.branhc} is not a git fact\n  next: did you mean ${git.branch}?",
    ),
    "other": (
        "${git.}",
        "A: ${git.} is not a git fact\n  next: there are ${git.branch} and ${git.remote}",
    ),
    "setting": (
        "${settings.sorce}",
        "A: ${settings.sorce} is not a setting\n  next: did you mean ${settings.source}?",
    ),
    "nothing near": (
        "${settings.xyzzy}",
        "A: ${settings.xyzzy} is not a setting\n  next: `doit settings` lists all",
    ),
    "table": (
        "${settings.edf}",
        "A: ${settings.edf} is not a setting\n  next: `doit settings` lists all",
    ),
    "list": (
        "${settings.edf.mounts}",
        "A: ${settings.edf.mounts} is a list or a table\n  next: name a text, a number or a boolean",
    ),
    "no repository": (
        "${git.branch}",
        "A: ${git.branch} has no value: this directory is in no git repository\n"
        "  next: work in a clone: git clone URL",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_variable_without_a_value_breaks_that_project(tmp_path: Path, text: str, message: str) -> None:
    checkout = made(tmp_path, f'target = "x"\n\n[build_args]\nA = "{text}"\n')
    assert str(checkout.graph.broken["x"]) == f"{PROJECT}:4: build_args.{message}"


def test_a_checkout_on_no_branch_or_without_origin(tmp_path: Path) -> None:
    repository(tmp_path)
    text = 'build_args = { A = "${git.remote}" }\n'
    assert str(made(tmp_path, text).graph.broken["x"]) == (
        f"{PROJECT}:1: build_args.A: ${{git.remote}} has no value: there is no remote origin\n"
        "  next: git remote add origin URL"
    )
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    git(tmp_path, *identity, "commit", "--quiet", "--allow-empty", "--message=a")
    git(tmp_path, "switch", "--quiet", "--detach")
    assert "HEAD is on no branch\n  next: git switch BRANCH" in str(
        made(tmp_path, 'build_args = { A = "${git.branch}" }\n').graph.broken["x"]
    )


def test_each_problem_is_named_with_its_line(tmp_path: Path) -> None:
    text = '[build_args]\nA = "${git.tag} ${settings.x}"\nB = "${git.commit}"\n'
    error = made(tmp_path, text).graph.broken["x"]
    assert error.what == f"3 problems in {PROJECT}"
    assert [line.partition(" ")[0] for line in error.quote] == [f"{PROJECT}:{n}:" for n in (2, 2, 3)]


def test_a_changed_setting_makes_stale_and_the_same_value_does_not(tmp_path: Path) -> None:
    text = 'build_args = { A = "${settings.slurm.partition}" }\n'
    made(tmp_path, text)
    pretend_built(tmp_path)
    assert causes(tmp_path) == []
    (tmp_path / PROJECT).write_text('build_args = { A = "" }\n')
    assert causes(tmp_path) == []
    (tmp_path / PROJECT).write_text(text)
    (tmp_path / "rc_tasks.toml").write_text('slurm.partition = "debug"\n')
    assert causes(tmp_path) == ["build_args.A changed"]


def causes(root: Path) -> list[str]:
    judge = Judge(open_checkout(root, {}))
    return [cause.words for cause in judge.step(Step.PODMAN, "x").causes]


def test_git_is_asked_once_and_only_by_a_project_that_needs_it(tmp_path: Path) -> None:
    repository(tmp_path, "https://example.org/x")
    made(tmp_path, 'build_args = { A = "${settings.source} ${B}" }\n')
    program = (
        "import sys; from pathlib import Path; from rc_tasks.state.checkout import open_checkout\n"
        "open_checkout(Path(sys.argv[1])); print('rc_tasks.tools.git' in sys.modules)"
    )
    run = (sys.executable, "-c", program, str(tmp_path))
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == "False\n"
    asked = tmp_path / "asked"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(f"#!/bin/sh\necho \"$*\" >> '{asked}'\necho refs/heads/a\n")
    (tmp_path / "bin/git").chmod(0o755)
    (tmp_path / PROJECT).write_text('build_args = { A = "${git.branch}", B = "${git.branch}" }\n')
    subprocess.run(run, check=True, env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    assert len(asked.read_text().splitlines()) == 3, "the calls of git.head"
