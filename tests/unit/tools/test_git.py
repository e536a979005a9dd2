"""git on real repositories, with hooks, locks and half-done merges in the way."""

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rc_tasks.commands.remote import branch_name
from rc_tasks.errors import CommandError
from rc_tasks.tools import git
from rc_tasks.tools.git import Distance, Head

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, whose path has a colon, quotes and an umlaut."""
    root = tmp_path / 'a: "b" ü'
    root.mkdir()
    run(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "file", "one\n")
    return root


def run(root: Path, *argv: str, status: int = 0) -> str:
    done = subprocess.run(
        ["git", *argv], cwd=root, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == status, done.stderr
    return done.stdout.strip()


def commit(root: Path, name: str, text: str) -> str:
    (root / name).write_text(text)
    run(root, "add", name)
    run(root, "commit", "--quiet", "--message", f"write {name}")
    return run(root, "rev-parse", "HEAD")


def conflict(root: Path) -> None:
    """Two branches that cannot be merged; `main` is checked out."""
    run(root, "checkout", "--quiet", "-b", "other")
    commit(root, "file", "theirs\n")
    run(root, "checkout", "--quiet", "main")
    commit(root, "file", "ours\n")


def test_a_branch_name_says_what_whose_and_when() -> None:
    assert branch_name("reasoning:2025.1", "ada", NOW) == "reasoning-2025.1_ada_26-01-02T03-04-05Z"


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("a", "b"),
        ("a:1..2", "ada"),
        ("a:1.lock", "x.lock"),
        ("a:b", "EXAMPLE\\ada lovelace"),
        ("a_b--c:D", "ada@example.org$"),
        ("a", "@{-1}"),
        ("a", "~^?*[:"),
        ("a", "müller\n\x7f"),
        ("a", ""),
    ],
)
def test_every_branch_name_is_one_that_git_takes(name: str, user: str) -> None:
    made = branch_name(name, user, NOW)
    checked = subprocess.run(["git", "check-ref-format", "--branch", made], check=False)
    assert checked.returncode == 0


def test_a_new_branch_carries_all_local_changes(repository: Path) -> None:
    (repository / "file").write_text("edited\n")
    (repository / "new").write_text("new\n")
    run(repository, "add", "new")
    before = run(repository, "status", "--porcelain")
    git.switch(repository, "work", create=True)
    assert git.head(repository).branch == "work"
    assert run(repository, "status", "--porcelain") == before
    assert len(git.changes(repository)) == 2


def test_a_switch_that_would_lose_changes_is_refused(repository: Path) -> None:
    run(repository, "branch", "work")
    commit(repository, "file", "two\n")
    (repository / "file").write_text("edited\n")
    with pytest.raises(CommandError) as caught:
        git.switch(repository, "work", create=False)
    assert "would be overwritten" in str(caught.value) and "commit or stash" in str(caught.value)
    assert (repository / "file").read_text() == "edited\n"
    assert git.head(repository).branch == "main"


def test_a_branch_that_exists_is_not_made_again(repository: Path) -> None:
    run(repository, "branch", "work")
    with pytest.raises(CommandError, match="cannot go to the branch work"):
        git.switch(repository, "work", create=True)


def test_no_hook_runs(repository: Path) -> None:
    hooks = repository / ".git/hooks"
    for name in ("post-checkout", "reference-transaction", "pre-commit"):
        (hooks / name).write_text(f"#!/bin/sh\necho {name} >> '{repository.parent}/ran'\nexit 1\n")
        (hooks / name).chmod(0o755)
    git.switch(repository, "work", create=True)
    assert not (repository.parent / "ran").exists()


def test_a_locked_repository_is_told_with_its_lock(repository: Path) -> None:
    (repository / ".git/HEAD.lock").touch()
    with pytest.raises(CommandError) as caught:
        git.switch(repository, "work", create=True)
    assert f"rm '{repository}/.git/HEAD.lock'" in str(caught.value)
    assert git.branches(repository, "work") == ()


@pytest.mark.parametrize(
    ("begin", "operation"),
    [
        (lambda root: run(root, "merge", "other", status=1), "merge"),
        (lambda root: run(root, "rebase", "other", status=1), "rebase"),
        (lambda root: run(root, "rebase", "--apply", "other", status=1), "rebase"),
        (lambda root: run(root, "cherry-pick", "other", status=1), "cherry-pick"),
        (lambda root: run(root, "bisect", "start"), "bisect"),
        (lambda root: None, ""),
    ],
    ids=["merge", "rebase", "rebase-apply", "cherry-pick", "bisect", "nothing"],
)
def test_what_is_half_done_is_known(
    repository: Path, begin: Callable[[Path], object], operation: str
) -> None:
    conflict(repository)
    begin(repository)
    assert git.head(repository).operation == operation


def test_where_a_checkout_is(repository: Path, tmp_path: Path) -> None:
    id = run(repository, "rev-parse", "HEAD")
    assert git.head(repository) == Head("main", id, "")
    run(repository, "tag", "main")
    assert git.head(repository).branch == "main"
    run(repository, "checkout", "--quiet", "--detach")
    assert git.head(repository) == Head("", id, "")
    empty = tmp_path / "empty"
    run(tmp_path, "init", "--quiet", "--initial-branch=trunk", str(empty))
    assert git.head(empty) == Head("trunk", "", "")
    git.switch(empty, "work", create=True)
    assert git.head(empty) == Head("work", "", "")
    with pytest.raises(CommandError, match="in no git repository"):
        git.head(tmp_path)


def test_the_repository_of_a_calling_hook_is_not_meant(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    run(tmp_path, "clone", "--quiet", str(repository), str(other))
    run(other, "checkout", "--quiet", "-b", "theirs")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert git.head(repository).branch == "main"
    assert git.changes(repository) == []


def test_the_distance_to_another_checkout_is_counted_without_writing_there_or_here(
    repository: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    run(tmp_path, "clone", "--quiet", str(repository), str(clone))
    assert git.distance(clone, repository) == Distance(0, 0)
    commit(clone, "mine", "1\n")
    for text in ("2\n", "3\n"):
        commit(repository, "theirs", text)
    before = {path: path.stat().st_mtime_ns for root in (clone, repository) for path in root.rglob("*")}
    assert git.distance(clone, repository) == Distance(ahead=1, behind=2)
    assert git.distance(repository, clone) == Distance(ahead=2, behind=1)
    after = {path: path.stat().st_mtime_ns for root in (clone, repository) for path in root.rglob("*")}
    assert after == before


@pytest.mark.parametrize("what", ["missing", "no repository", "empty repository"])
def test_a_checkout_that_cannot_be_compared_is_an_error(
    what: str, repository: Path, tmp_path: Path
) -> None:
    other = tmp_path / what
    if what != "missing":
        other.mkdir()
    if what == "empty repository":
        run(other, "init", "--quiet")
    with pytest.raises(CommandError):
        git.distance(repository, other)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_checkout_of_somebody_else_is_read_and_its_configuration_runs_nothing(
    repository: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    run(tmp_path, "clone", "--quiet", str(repository), str(clone))
    commit(repository, "theirs", "2\n")
    run(repository, "config", "core.fsmonitor", f"touch '{tmp_path}/ran'; false")
    for path in (repository, *repository.rglob("*")):
        os.chown(path, 65534, 65534)
    assert git.distance(clone, repository) == Distance(0, 1)
    found = git.commit(repository)
    assert found is not None and not found.dirty
    assert not (tmp_path / "ran").exists()


def test_a_checkout_and_what_it_follows(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    assert git.upstream(repository) == ""
    run(tmp_path, "clone", "--quiet", str(repository), str(clone))
    assert git.upstream(clone) == "origin/main"
    there = commit(repository, "new", "1\n")
    assert git.distance_from_upstream(clone) == Distance(0, 0), "nothing was fetched"
    git.fetch(clone)
    assert git.distance_from_upstream(clone) == Distance(0, 1)
    git.fast_forward(clone)
    assert git.head(clone).commit == there
    commit(clone, "mine", "1\n")
    commit(repository, "new", "2\n")
    git.fetch(clone)
    assert git.distance_from_upstream(clone) == Distance(1, 1)
    with pytest.raises(CommandError, match="git failed"):
        git.fast_forward(clone)
    repository.rename(tmp_path / "moved")
    with pytest.raises(CommandError, match="git failed"):
        git.fetch(clone)


def test_a_directory_is_renamed_in_the_index_alone(repository: Path) -> None:
    """The checkout may be a folder of the repository; what is staged and not committed goes along."""
    checkout = repository / "images ü"
    (checkout / "old:1").mkdir(parents=True)
    odd = os.fsencode(checkout) + b"/old:1/odd \xff"
    Path(os.fsdecode(odd)).write_text("odd\n")
    (checkout / "old:1/run").write_text("one\n")
    (checkout / "old:1/run").chmod(0o755)
    (checkout / "old:11").mkdir()
    (checkout / "old:11/other").touch()
    run(repository, "add", "--all")
    run(repository, "commit", "--quiet", "--message=all")
    (checkout / "old:1/run").write_text("staged\n")
    run(repository, "add", "--all")
    (checkout / "old:1/run").write_text("not staged\n")
    (checkout / "old:1/untracked").touch()
    staged = run(checkout, "ls-files", "--stage", "old:1")
    for _ in range(2):
        git.rename_in_index(checkout, "old:1", "new")
        assert run(checkout, "ls-files", "--stage", "new") == staged.replace("old:1/", "new/")
        assert run(checkout, "ls-files", "old:1") == ""
    assert run(checkout, "ls-files", "old:11") == "old:11/other"
    assert (checkout / "old:1/run").read_text() == "not staged\n"
    git.remove_from_index(checkout, ("new", "old:11", "never"))
    assert run(repository, "ls-files") == "file"


def test_without_a_repository_there_is_no_index(tmp_path: Path) -> None:
    git.rename_in_index(tmp_path, "a", "b")
    git.remove_from_index(tmp_path, ("a",))
    assert git.uncommitted(tmp_path, "a") is None
