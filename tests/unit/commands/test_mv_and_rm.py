"""`doit mv` and `doit rm`: what they list, refuse and change, and moves that are interrupted."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.engine.upkeep import move as moves
from rc_tasks.errors import RcError
from rc_tasks.state import history
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.disk.locks import held
from rc_tasks.state.history import HistoryEntry, Outcome, RunHistory
from rc_tasks.state.judge import Judge
from rc_tasks.state.moves import Move
from rc_tasks.state.records.records import Failure, Step, Task
from rc_tasks.state.records.status import State
from rc_tasks.state.store.previous import Previous
from rc_tasks.steps.__main__ import run as run_step
from tests.support import doit as running
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.family import DOIT
from tests.support.terminal import Terminal

FILES = {
    ".gitignore": ".rc/\n*.sqsh\nimage.json\n",
    "base/Dockerfile": "FROM scratch\n",
    "projects/app:1/Dockerfile": "FROM base\n",
    "projects/app:latest": "-> app:1",
    "projects/app:newest": "-> app:latest",
    "projects/child:1/Dockerfile": "FROM localhost/app:1 AS app\nCOPY --from=base /a /a\n",
    "projects/by-alias/Dockerfile": "FROM app:latest\n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in git in which everything is built, with an odd path."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = write_checkout(tmp_path / "it's: ä", FILES, 'images_root = "/official"')
    pretend_built(made)
    checkout = open_checkout(made, {})
    for name, node in checkout.graph.images.items():
        node.project.image_json.write_text(json.dumps({"name": name}))
        assert not checkout.previous.keep(node.project, checkout.records.get(Step.ENROOT, name))
    git(made, "init", "--quiet")
    commit(made)
    return made


def doit(root: Path, *argv: str) -> tuple[int, str]:
    ran = running.doit(root, *argv)
    return ran.status, ran.text


def git(root: Path, *argv: str) -> str:
    return subprocess.run(("git", *argv), cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=all")


def states(root: Path) -> dict[str, State]:
    checkout = open_checkout(root, {})
    return {name: Judge(checkout).image(name).state for name in checkout.graph.images}


def fresh(root: Path) -> set[str]:
    return {name for name, state in states(root).items() if state is State.FRESH}


def snapshot(root: Path) -> dict[str, object]:
    """Every file of a checkout but for caches, which cost only time, and locks, by content."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if not path.is_dir() and not {"cache", "locks", ".git"} & set(path.relative_to(root).parts)
    }


def entry(name: str, started_at: str) -> HistoryEntry:
    log = f".rc/logs/{name}/podman/x.log"
    return HistoryEntry("run", name, Step.PODMAN, Outcome.DONE, started_at, 1.0, 0.0, log=log)


def test_what_a_move_changes_is_listed_and_nothing_changed_before_a_yes(root: Path) -> None:
    edf = root.parent / "home/.edf/mine.toml"
    edf.parent.mkdir(parents=True)
    edf.write_text(f'base_environment = "{root}/projects/app:1/env.toml"\n')
    before = snapshot(root)
    status, output = doit(root, "mv", "app:1", "app:2")
    assert status == 3
    assert output == (
        "projects/app:1 becomes projects/app:2, with its records, previous images, logs and history\n"
        "  projects/app:latest leads to app:2\n"
        "  by-alias is built on it through an alias, and does not change\n"
        "  projects/child:1/Dockerfile:1 names localhost/app:2\n"
        "stale then, because their Dockerfiles change: child:1\n"
        "  --alias keeps app:1 as an alias: then no Dockerfile changes, and nothing is stale\n"
        "not changed:\n"
        "  job scripts that name /official/projects/app:1/image.sqsh\n"
        "    it is /official/projects/app:2/image.sqsh then\n"
        "  ~/.edf/mine.toml\n"
        "ERROR: nothing was changed: there is no terminal to ask at\n"
        "  next: doit mv app:1 app:2 --yes\n"
    )
    assert snapshot(root) == before


def test_a_moved_image_stays_fresh_with_all_that_was_its(root: Path) -> None:
    checkout = open_checkout(root, {})
    run = RunHistory(checkout.history)
    run.append(entry("app:1", "2026-01-02T03:04:05.678+00:00"))
    log = checkout.logs(Step.ENROOT, "app:1") / "2026-01-02T03-04-05.678Z.1.log"
    log.parent.mkdir(parents=True)
    log.write_text("text\n")
    failure = Failure({"image": "x"}, "2026-01-02T03:04:05+00:00", "why", str(log.relative_to(root)))
    checkout.records.put_failure(Step.ENROOT, "app:1", failure)
    checkout.records.ignore("build:app:1")
    checkout.store.catalogue.put_cache("app:1", ())
    manifest = root / f".rc/manifests/app:1/{'a' * 64}.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"name":"app:1"}')
    os.utime(manifest, (7, 7))
    age_ns = next((root / ".rc/previous/app:1").iterdir()).stat().st_mtime_ns
    status, output = doit(root, "mv", "app:1", "app:2", "--yes")
    assert (status, output.splitlines()[-2:]) == (
        0,
        ["app:1 is app:2 now", "next: `git status`, then commit"],
    )
    assert fresh(root) == {"base", "app:2", "by-alias"}
    status, output = doit(root, "why", "child:1")
    assert "Dockerfile changed" in output and "base" not in output.split("child:1", 1)[0]
    assert (root / "projects/child:1/Dockerfile").read_text() == (
        "FROM localhost/app:2 AS app\nCOPY --from=base /a /a\n"
    )
    assert os.readlink(root / "projects/app:latest") == "app:2"
    assert os.readlink(root / "projects/app:newest") == "app:latest"
    assert "/official/projects/app:2/image.sqsh" in (root / "projects/app:2/env.toml").read_text()
    assert json.loads((root / "projects/app:2/image.json").read_text()) == {"name": "app:2"}
    left = [path for path in snapshot(root) if "app:1" in path]
    assert left == []
    moved = open_checkout(root, {})
    (past,) = history.entries(moved.history)
    assert (past.image, past.log) == ("app:2", ".rc/logs/app:2/podman/x.log")
    kept_failure = moved.records.failure(Step.ENROOT, "app:2")
    assert kept_failure is not None
    assert (root / kept_failure.log).read_text() == "text\n"
    assert moved.records.ignored() == {"build:app:2"}
    assert [name for name, _ in moved.store.catalogue.caches()] == ["app:2"]
    renamed = root / f".rc/manifests/app:2/{'a' * 64}.json"
    assert (renamed.read_text(), renamed.stat().st_mtime) == ('{"name":"app:2"}\n', 7)
    (kept,) = (root / ".rc/previous/app:2").iterdir()
    assert kept.stat().st_mtime_ns == age_ns
    project = moved.graph.images["app:2"].project
    (image,) = Previous(root / ".rc/previous").of(project, moved.records.get(Step.ENROOT, "app:2"))
    assert image.current
    changes = git(root, "status", "--short").splitlines()
    assert set(changes) == {
        "R  projects/app:1/Dockerfile -> projects/app:2/Dockerfile",
        "RM projects/app:1/env.toml -> projects/app:2/env.toml",
        " M projects/app:latest",
        " M projects/child:1/Dockerfile",
    }


def test_with_an_alias_nothing_is_stale_and_old_paths_lead_to_the_image(root: Path) -> None:
    before = fresh(root)
    status, output = doit(root, "mv", "app:1", "app:2", "--alias", "--yes")
    assert status == 0, output
    assert "stale" not in output and "not changed" not in output
    assert fresh(root) == before - {"app:1"} | {"app:2"}
    assert (root / "projects/app:1/image.sqsh").samefile(root / "projects/app:2/image.sqsh")
    assert "app:1" in open_checkout(root, {}).graph.aliases
    bases = json.loads((root / "projects/child:1/image.json").read_text())["bases"]
    assert set(bases) == {"app:2", "base"}


def test_a_base_beside_projects_stays_there(root: Path) -> None:
    assert doit(root, "mv", "base", "ground", "--alias", "--yes")[0] == 0
    assert (root / "ground/Dockerfile").exists()
    assert os.readlink(root / "projects/base") == "../ground"
    assert fresh(root) == {"ground", "app:1", "child:1", "by-alias"}


def test_a_move_there_and_back_leaves_everything_as_it_was(root: Path) -> None:
    before = snapshot(root)
    assert doit(root, "mv", "app:1", "app:2", "--yes")[0] == 0
    assert doit(root, "mv", "app:2", "app:1", "--yes")[0] == 0
    assert states(root)["child:1"] is State.FRESH
    after = snapshot(root)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == {
        "projects/app:1/env.toml",
        "projects/app:1/image.json",
        "projects/child:1/image.json",
        "projects/by-alias/image.json",
        ".rc/history/renames.jsonl",
        ".rc/state/env:app:1.json",
    }
    assert git(root, "diff", "--cached", "--name-only") == ""


def test_a_name_that_was_used_before_keeps_none_of_the_earlier_projects_records(root: Path) -> None:
    shutil.rmtree(root / "projects/by-alias")
    assert doit(root, "mv", "child:1", "by-alias", "--yes")[0] == 0
    assert states(root)["by-alias"] is State.FRESH
    (root / "projects/unbuilt").mkdir()
    (root / "projects/unbuilt/Dockerfile").write_text("FROM scratch\n")
    assert doit(root, "mv", "by-alias", "child:1", "--yes")[0] == 0
    pretend_built(root, ["unbuilt"])
    for step in Step:
        open_checkout(root, {}).records.forget(step, "unbuilt")
    shutil.rmtree(root / "projects/child:1")
    assert doit(root, "mv", "unbuilt", "child:1", "--yes")[0] == 0
    assert states(root)["child:1"] is not State.FRESH
    assert open_checkout(root, {}).records.get(Step.PODMAN, "child:1") is None


def test_only_the_steps_before_a_rename_get_the_new_name(root: Path) -> None:
    directory = root / ".rc/history"
    run = RunHistory(directory)
    for name, day in (("a", 1), ("b", 1), ("a", 3), ("b", 5), ("c", 5)):
        run.append(entry(name, f"2026-01-0{day}T00:00:00+00:00"))
    history.put_rename(directory, history.Rename("a", "b", "2026-01-02T00:00:00+00:00"))
    for _ in range(2):
        history.put_rename(directory, history.Rename("b", "c", "2026-01-04T00:00:00+00:00"))
    named = [(past.image, past.started_at[8:10]) for past in history.entries(directory)]
    assert sorted(named) == [("a", "03"), ("b", "05"), ("c", "01"), ("c", "01"), ("c", "05")]
    assert (directory / "renames.jsonl").read_text().count("\n{") == 2


REFUSED: dict[str, tuple[tuple[str, ...], Callable[[Path], object] | None, str]] = {
    "in use": (
        ("app:1", "child:1"),
        None,
        "ERROR: projects/child:1: is a project already\n"
        "  next: doit build:child:1, or choose another name\n",
    ),
    "no name": (
        ("app:1", "App"),
        None,
        "ERROR: 'App' cannot be the name of an image: it has capital letters before the tag\n"
        "  next: choose something like reasoning:2025.2\n",
    ),
    "an alias": (
        ("app:latest", "app:2"),
        None,
        "ERROR: projects/app:latest: app:latest is an alias of app:1; doit mv renames projects\n"
        "  next: doit mv app:1 app:2   renames the project, and its aliases follow\n"
        "        git mv 'projects/app:latest' 'projects/app:2'   renames the alias\n",
    ),
    "no project": (
        ("app:3", "app:2"),
        None,
        "ERROR: there is no image named 'app:3' in this checkout\n  next: did you mean app:1?\n",
    ),
    "one name": (
        ("app:1",),
        None,
        "ERROR: expected two names, not 1\n  next: doit mv OLD NEW; `doit list` shows all\n",
    ),
    "a variable": (
        ("app:1", "app:2"),
        lambda root: (root / "projects/child:1/Dockerfile").write_text("ARG B=app:1\nFROM $B\n"),
        "ERROR: projects/child:1/Dockerfile:2: FROM has app:1 not written out, as with a variable; that"
        " cannot be renamed safely\n"
        "  next: write the name in this line, then run the same command again\n",
    ),
    "a stage": (
        ("app:1", "app"),
        lambda root: (root / "projects/child:1/Dockerfile").write_text(
            "FROM base AS app\nCOPY --from=app:1 /a /b\n"
        ),
        "ERROR: projects/child:1/Dockerfile:2: app would mean something else here, as a stage of this"
        " name or number does\n"
        "  next: choose another name, or rename the stage first\n",
    ),
    "a registry image": (
        ("app:1", "debian:12"),
        lambda root: (root / "projects/by-alias/Dockerfile").write_text("FROM debian:12\n"),
        "ERROR: projects/by-alias/Dockerfile:1: takes debian:12 from a registry, and would be built on"
        " the renamed project\n"
        "  next: choose another name, or write the registry's host before this one\n",
    ),
    "a symlink": (
        ("app:1", "app:2"),
        lambda root: (
            (root / "projects/by-alias/Dockerfile").unlink(),
            (root / "projects/by-alias/Dockerfile").symlink_to("../app:1/Dockerfile"),
        ),
        "ERROR: projects/by-alias/Dockerfile: is a symlink into projects/app:1\n"
        "  next: make it a file, then run the same command again\n",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_move_that_cannot_be_made_changes_nothing(root: Path, case: str) -> None:
    names, change, message = REFUSED[case]
    if change is not None:
        change(root)
    if case == "a stage":
        (root / "projects/app:latest").unlink()
        (root / "projects/app:newest").unlink()
        shutil.rmtree(root / "projects/by-alias")
    before = snapshot(root)
    assert doit(root, "mv", *names, "--yes") == (3, message)
    assert snapshot(root) == before


@pytest.mark.parametrize("name", ["app:1", "child:1", "by-alias", "app:2"])
def test_an_image_that_is_being_built_is_not_moved(root: Path, name: str) -> None:
    before = snapshot(root)
    with held(open_checkout(root, {}).lock(name), f"podman:{name}"):
        status, output = doit(root, "mv", "app:1", "app:2", "--yes")
    assert status == 3
    assert f"has been running podman:{name} since" in output
    assert "next: wait for it, then run the same command again" in output
    assert snapshot(root) == before


def test_a_locked_index_of_git_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    (root / ".git/index.lock").touch()
    status, output = doit(root, "mv", "app:1", "app:2", "--yes")
    assert status == 3
    assert f"rm '{root}/.git/index.lock'" in output
    assert snapshot(root) == before
    (root / ".git/index.lock").unlink()
    assert doit(root, "mv", "app:1", "app:2", "--yes")[0] == 0


def interrupted(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let moves end before a phase, as if they were killed."""

    def killed(_checkout: Checkout, _move: Move) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moves, "PHASES", (*moves.PHASES[:number], killed))


@pytest.mark.parametrize("number", range(len(moves.PHASES) + 1))
def test_an_interrupted_move_is_reported_and_finished(
    root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = root.with_name("complete")
    shutil.copytree(root, complete, symlinks=True)
    assert doit(complete, "mv", "app:1", "app:2", "--yes")[0] == 0
    checkout = open_checkout(root, {})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(number, patched)
        moves.carry_out(checkout, moves.plan(checkout, "app:1", "app:2", keep_alias=False))
    status, output = doit(root, "list")
    assert output.startswith(
        "warning: projects/app:1: the move of app:1 to app:2 was interrupted\n"
        "  next: doit mv app:1 app:2   finishes it\n"
    )
    status, output = doit(root, "mv", "app:1", "app:3")
    assert (status, "finish it first: doit mv app:1 app:2" in output) == (3, True)
    assert doit(root, "mv", "app:1", "app:2")[0] == 0
    assert doit(root, "list")[1].startswith("IMAGE")
    assert fresh(root) == fresh(complete)
    # Times of the move, and of the step that writes env.toml, differ.
    timed = {".rc/history/renames.jsonl", ".rc/state/env:app:2.json"}
    ours, theirs = snapshot(root), snapshot(complete)
    assert {path for path in ours.keys() | theirs if ours.get(path) != theirs.get(path)} <= timed
    assert git(root, "status", "--short") == git(complete, "status", "--short")


def test_a_step_of_an_interrupted_move_does_not_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "projects/child:1/Dockerfile").write_text("FROM app:1\n")
    checkout = open_checkout(root, {})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(1, patched)
        moves.carry_out(checkout, moves.plan(checkout, "app:1", "app:2", keep_alias=False))
    with pytest.raises(RcError, match="the move of app:1 to app:2 was interrupted"):
        run_step(open_checkout(root, {}), Task(Step.ENV, "child:1"))
    run_step(open_checkout(root, {}), Task(Step.ENV, "base"))


def test_without_git_a_project_moves_too(root: Path) -> None:
    shutil.rmtree(root / ".git")
    status, output = doit(root, "mv", "app:1", "app:2", "--yes")
    assert (status, output.endswith("app:1 is app:2 now\n")) == (0, True)
    assert "app:2" in fresh(root)


def test_what_a_removal_takes_is_listed_and_taken(root: Path) -> None:
    before = snapshot(root)
    listed = (
        "removes projects/by-alias/: Dockerfile, env.toml, image.json, image.sqsh (image.sqsh: 804 B)\n"
        "removes projects/child:1/: Dockerfile, env.toml, image.json, image.sqsh (image.sqsh: 704 B)\n"
        "removes projects/app:1/: Dockerfile, env.toml, image.json, image.sqsh (image.sqsh: 504 B)\n"
        "removes the alias projects/app:latest, which leads to app:1\n"
        "removes the alias projects/app:newest, which leads to app:latest\n"
        "keeps records, logs and images until `doit gc` removes them, after 30 days\n"
    )
    names = ("by-alias", "child:1", "app:1")
    assert doit(root, "rm", *names) == (
        3,
        f"{listed}ERROR: nothing was changed: there is no terminal to ask at\n"
        "  next: doit rm by-alias child:1 app:1 --yes\n",
    )
    assert snapshot(root) == before
    assert doit(root, "rm", *names, "--yes") == (0, f"{listed}removed by-alias child:1 app:1\n")
    after = snapshot(root)
    assert [path for path in after if path.startswith("projects/")] == []
    assert {path for path in before if path.startswith(".rc/")} <= after.keys()
    assert list((root / ".rc").glob(".rm*")) == []
    assert "D  projects/app:latest" in git(root, "status", "--short")
    assert fresh(root) == {"base"}
    git(root, "checkout", "HEAD", "--", "projects")
    _, output = doit(root, "list", "app:1")
    assert "image.sqsh is missing" in output


def test_the_published_image_of_a_removed_project_stays_for_running_jobs(root: Path) -> None:
    shutil.rmtree(root / ".rc/previous")
    artifact = (root / "projects/by-alias/image.sqsh").stat()
    assert doit(root, "rm", "by-alias", "--yes")[0] == 0
    (kept,) = (root / ".rc/previous/by-alias").iterdir()
    assert (kept / "image.sqsh").stat().st_ino == artifact.st_ino


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "app:1",
            "ERROR: app:1: cannot be removed: other images are built on it\n"
            "  | projects/by-alias/Dockerfile:1: app:latest\n"
            "  | projects/child:1/Dockerfile:1: localhost/app:1\n"
            "  next: change these lines, or remove all: doit rm app:1 by-alias child:1\n",
        ),
        (
            "app:latest",
            "ERROR: app:latest: cannot be removed: other images are built on it\n"
            "  | projects/by-alias/Dockerfile:1: app:latest\n"
            "  next: change these lines, or remove all: doit rm app:latest by-alias\n",
        ),
        (
            "ap",
            "ERROR: there is no image named 'ap' in this checkout\n"
            "  next: `doit list` shows all names\n",
        ),
    ],
)
def test_a_base_of_other_images_is_not_removed(root: Path, name: str, message: str) -> None:
    before = snapshot(root)
    assert doit(root, "rm", name, "--yes") == (3, message)
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda path: (path / "Dockerfile").write_text("FROM scratch\n"),
            " M projects/by-alias/Dockerfile",
        ),
        (lambda path: (path / "new").touch(), "?? projects/by-alias/new"),
        (lambda path: (path / "out.sqsh").touch(), "!! projects/by-alias/out.sqsh"),
    ],
)
def test_what_no_commit_has_is_removed_only_by_an_explicit_option(
    root: Path, change: Callable[[Path], object], line: str
) -> None:
    change(root / "projects/by-alias")
    before = snapshot(root)
    status, output = doit(root, "rm", "by-alias", "--yes")
    assert (status, output.partition("ERROR: ")[2]) == (
        3,
        "nothing was removed: no commit has these files and changes\n"
        f"  | {line}\n"
        "  next: commit them, or remove them as well: doit rm by-alias --discard-changes\n",
    )
    assert snapshot(root) == before
    status, output = doit(root, "rm", "by-alias", "--yes", "--discard-changes")
    assert (status, f"in no commit: {line}\n" in output) == (0, True)
    assert not (root / "projects/by-alias").exists()


def test_a_directory_without_git_needs_the_option_too(root: Path) -> None:
    shutil.rmtree(root / ".git")
    status, output = doit(root, "rm", "by-alias", "--yes")
    assert (status, "  | projects/by-alias/ (in no git repository)\n" in output) == (3, True)
    assert doit(root, "rm", "by-alias", "--yes", "--discard-changes")[0] == 0


@pytest.mark.parametrize("name", ["app:newest", "dangling", "no-dockerfile"])
def test_an_alias_and_what_is_broken_are_removed(root: Path, name: str) -> None:
    (root / "projects/dangling").symlink_to("nowhere")
    (root / "projects/no-dockerfile").mkdir()
    (root / "projects/no-dockerfile/file").touch()
    commit(root)
    status, output = doit(root, "rm", name, "--yes")
    assert (status, output.splitlines()[-1]) == (0, f"removed {name}")
    assert not os.path.lexists(root / "projects" / name)
    assert "app:1" in fresh(root)
    assert git(root, "status", "--short").startswith(f"D  projects/{name}")


def test_an_image_that_is_being_built_is_not_removed(root: Path) -> None:
    before = snapshot(root)
    with held(open_checkout(root, {}).lock("by-alias"), "podman:by-alias"):
        status, output = doit(root, "rm", "by-alias", "--yes")
    assert (status, "has been running podman:by-alias since" in output) == (3, True)
    assert snapshot(root) == before


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_on_a_terminal_a_user_is_asked(root: Path, answer: str) -> None:
    before = snapshot(root)
    with Terminal((DOIT, "mv", "app:1", "app:2"), root, dict(os.environ), 120, 40) as terminal:
        terminal.shows(lambda text: "rename app:1 to app:2? [y/N]" in text)
        terminal.type(f"{answer}\n")
        status, _ = terminal.end()
    assert status == (0 if answer == "y" else 1)
    assert (snapshot(root) == before) == (answer != "y")


@pytest.mark.parametrize("word", ["projects/app:latest", "projects/app:latest/", "projects/by-alias/"])
def test_a_directory_means_its_project_and_an_alias_itself(root: Path, word: str) -> None:
    if "latest" in word:
        shutil.rmtree(root / "projects/by-alias")
        commit(root)
    assert doit(root, "rm", word, "--yes")[0] == 0
    assert (root / "projects/app:1").is_dir()
    assert not os.path.lexists(root / word.rstrip("/"))


def test_a_second_move_waits_for_an_interrupted_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = open_checkout(root, {})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(3, patched)
        moves.carry_out(checkout, moves.plan(checkout, "app:1", "app:2", keep_alias=False))
    for argv in (("mv", "child:1", "other"), ("rm", "child:1", "--discard-changes")):
        status, output = doit(root, *argv, "--yes")
        assert (status, "ERROR: projects/app:1: the move of app:1 to app:2 was" in output) == (3, True)
        assert (root / "projects/child:1").is_dir()
    assert doit(root, "mv", "app:1", "app:2")[0] == 0
