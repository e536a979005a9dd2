"""git: commit, branch and upstream of a checkout, and switching branches."""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import CommandError, RcError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command

# A git hook may have started us. These variables then name its repository in place of ours.
_PLACES = frozenset(
    {
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_COMMON_DIR",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_QUARANTINE_PATH",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
        "GIT_GRAFT_FILE",
        "GIT_SHALLOW_FILE",
    }
)
# The configuration of somebody else's repository could run programs through these keys.
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
# The files that git keeps in its directory during an operation (gitrepository-layout(5)), and the NAME
# of that operation in `git NAME --abort`. Only `applying` distinguishes `git am` from a rebase.
_OPERATIONS = {
    "rebase-apply/applying": "am",
    "rebase-apply": "rebase",
    "rebase-merge": "rebase",
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "BISECT_LOG": "bisect",
}
# Since 2.47 git names a reference before it: cannot lock ref 'HEAD': Unable to create '…'.
_LOCKED = re.compile(r"Unable to create '(.*\.lock)': File exists")
# A token may stand in the URL of a clone by HTTP. The name before ssh://git@host is no secret.
_CREDENTIALS = re.compile(r"^(https?://)[^/]*@")
_FETCH_TIMEOUT_S = 120.0
_NOT_IN_A_BRANCH = re.compile(r"[^A-Za-z0-9._-]|(?<=\.)\.")


class Commit(Struct, frozen=True):
    """A checkout's commit in full hex, and whether a directory in it differs from that commit."""

    id: str
    dirty: bool


class Head(Struct, frozen=True):
    """HEAD of a checkout. `branch` is empty when HEAD is detached, `commit` before the first commit.

    `operation` is the unfinished git command, such as `merge` or `rebase`.
    """

    branch: str
    commit: str
    operation: str


class Distance(Struct, frozen=True):
    """How many commits one checkout has that the other lacks (`ahead`), and lacks itself (`behind`)."""

    ahead: int
    behind: int


def commit(directory: Path, *others: Path) -> Commit | None:
    """Return the commit of a directory, or None without a repository or without git.

    It is dirty if the directory or one of the `others` differs from it.
    """
    try:
        id = command.capture(_reading(directory, "rev-parse", "--verify", "HEAD")).stdout.strip()
        paths = (f":(literal){path}" for path in others)
        status = _reading(directory, "status", "--porcelain", "--", ".", *paths)
        changes = command.capture(status).stdout
    except RcError:
        return None
    return Commit(id, bool(changes))


def head(directory: Path) -> Head:
    """Return HEAD of a checkout. Raise CommandError when the directory is in no repository."""
    git_directory = _reading(directory, "rev-parse", "--absolute-git-dir")
    done = command.capture(git_directory, check=False)
    if done.returncode != 0:
        raise CommandError(
            "this directory is in no git repository",
            where=directory,
            quote=tuple(done.stderr.splitlines()),
            hint="work in a clone: git clone URL",
        )
    internal = Path(done.stdout.removesuffix("\n"))
    ref = command.capture(_reading(directory, "symbolic-ref", "--quiet", "HEAD"), check=False)
    at = command.capture(_reading(directory, "rev-parse", "--verify", "--quiet", "HEAD"), check=False)
    return Head(
        branch=ref.stdout.removesuffix("\n").removeprefix("refs/heads/"),
        commit=at.stdout.strip(),
        operation=next((name for file, name in _OPERATIONS.items() if (internal / file).exists()), ""),
    )


def changes(directory: Path) -> list[str]:
    """Return the files of a checkout that differ from its commit, as `git status --short` lists them."""
    return command.capture(_reading(directory, "status", "--porcelain")).stdout.splitlines()


def files(directory: Path, *patterns: str) -> list[str]:
    """Return the files of a checkout that match one of these patterns (gitglossary(7), pathspec `glob`).

    Capital letters make no difference. Files that git ignores are not among them, and those that are
    not added yet are. Return nothing without a repository or without git.
    """
    shown = ("--cached", "--others", "--exclude-standard", "--deduplicate", "-z", "--")
    listing = _reading(
        directory, "ls-files", *shown, *(f":(icase,glob){pattern}" for pattern in patterns)
    )
    try:
        return sorted(filter(None, command.capture(listing).stdout.split("\0")))
    except RcError:
        return []


def uncommitted(directory: Path, path: str) -> list[str] | None:
    """Return what no commit has at or below a path of a checkout, as `git status --short` lists it.

    Files that git ignores are among it, after `!!`. Return None without a repository or without git.
    """
    try:
        # A user's configuration may hide new files.
        shown = ("--porcelain", "--untracked-files=all", "--ignored")
        status = _reading(directory, "status", *shown, "--", _literal(path))
        return command.capture(status).stdout.splitlines()
    except RcError:
        return None


def rename_in_index(directory: Path, old: str, new: str) -> None:
    """Rename a directory in the index as `git mv` does, but not on disk; do nothing in no repository.

    Both paths are relative to the checkout. A second call goes on after a kill. Raise CommandError, for
    example while another git runs.
    """
    prefix = _prefix(directory)
    listing = _reading(directory, "ls-files", "-z", "--", _literal(old))
    if prefix is None or not command.capture(listing).stdout:
        return
    # A killed call may have left some there, and a directory that was removed without git all.
    remove_from_index(directory, (new,))
    # As a tree, because names of files need not be UTF-8.
    tree = _change_index(directory, "write-tree", f"--prefix={prefix}{old}/").strip()
    _change_index(directory, "read-tree", f"--prefix={prefix}{new}/", tree)
    remove_from_index(directory, (old,))


def remove_from_index(directory: Path, paths: Sequence[str]) -> None:
    """Remove files and directories from the index, but not on disk; do nothing in no repository.

    Raise CommandError, for example while another git runs.
    """
    if _prefix(directory) is not None:
        argv = ("rm", "-r", "--cached", "--force", "--quiet", "--ignore-unmatch", "--")
        _change_index(directory, *argv, *map(_literal, paths))


def _prefix(directory: Path) -> str | None:
    """Return the path of a directory in its repository, with a slash at its end unless it is empty.

    Return None without a repository or without git.
    """
    with contextlib.suppress(RcError):
        return command.capture(_reading(directory, "rev-parse", "--show-prefix")).stdout[:-1]
    return None


def _literal(path: str) -> str:
    return f":(literal){path}"


def _change_index(directory: Path, *argv: str) -> str:
    done = command.capture(_git(directory, *argv), check=False)
    if done.returncode != 0:
        locked = _LOCKED.search(done.stderr)
        raise CommandError(
            "git cannot change its index",
            where=directory,
            quote=tuple(filter(None, done.stderr.splitlines())),
            hint=_locked_hint(locked[1]) if locked else "`git status` shows what is wrong",
        )
    return done.stdout


def _locked_hint(lock: str) -> str:
    return f"wait for the other git that is running here; if `ps` shows none: rm '{lock}'"


def upstream(directory: Path) -> str:
    """Return the upstream of a checkout's branch, such as `origin/main`; empty when it has none."""
    query = _reading(directory, "rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}")
    return command.capture(query, check=False).stdout.removesuffix("\n")


def distance_from_upstream(directory: Path) -> Distance:
    """Return the distance to the upstream as of the last fetch. Raise CommandError."""
    count = _reading(directory, "rev-list", "--left-right", "--count", "HEAD...@{upstream}")
    ahead, behind = command.capture(count).stdout.split()
    return Distance(int(ahead), int(behind))


def fetch(directory: Path) -> None:
    """Fetch from the branch's remote. Raise CommandError, after two minutes at the latest."""
    fetching = _git(directory, "fetch", "--quiet")
    if "GIT_SSH_COMMAND" not in os.environ:
        # Without BatchMode, ssh may wait for a password.
        fetching = replace(fetching, env={**fetching.env, "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"})
    command.capture(fetching, timeout_s=_FETCH_TIMEOUT_S)


def fast_forward(directory: Path) -> None:
    """Move the branch to the fetched commit. Raise CommandError where that is not a fast-forward."""
    command.capture(_git(directory, "merge", "--quiet", "--ff-only", "@{upstream}"))


def branches(directory: Path, beginning: str) -> tuple[str, ...]:
    """Return the branches whose names start with `beginning` (no wildcards), the newest commit first."""
    argv = ("for-each-ref", "--sort=-committerdate", "--format=%(refname:lstrip=2)")
    names = command.capture(_reading(directory, *argv, f"refs/heads/{beginning}*")).stdout
    return tuple(names.splitlines())


def switch(directory: Path, branch: str, *, create: bool) -> None:
    """Switch to a branch with all local changes. Raise CommandError where git refuses to keep them."""
    # Without --no-track, branch.autoSetupMerge may make `git push` write to the branch we come from.
    new = ("--no-track", "--create") if create else ()
    switching = _git(directory, "switch", "--quiet", *new, branch)
    is_new = create and branch not in branches(directory, branch)
    done = command.capture(switching, check=False)
    if done.returncode == 0:
        return
    if is_new:
        # git creates the branch before it finds that it cannot switch to it.
        remove = _git(directory, "update-ref", "--no-deref", "-d", f"refs/heads/{branch}")
        command.capture(remove, check=False)
    lines = [line for line in done.stderr.splitlines() if line]
    locked = _LOCKED.search(done.stderr)
    hint = (
        _locked_hint(locked[1])
        if locked
        else "nothing was changed; commit or stash what stands in the way, then run this again"
    )
    raise CommandError(
        f"git cannot go to the branch {branch}", where=directory, quote=tuple(lines), hint=hint
    )


def distance(directory: Path, other: Path) -> Distance:
    """Return how far a checkout is from the commit of another one, without a fetch.

    `other` is only read. Raise CommandError when it is in no repository, or git cannot read it.
    """
    theirs = command.capture(_reading(other, "rev-parse", "--verify", "HEAD")).stdout.strip()
    relative = command.capture(_reading(other, "rev-parse", "--git-path", "objects")).stdout
    objects = os.path.join(os.path.realpath(other), relative.removesuffix("\n"))
    # `git fetch` would write here, and since 2.45 git does not serve another user's repository. Without
    # quotes, git splits the path at colons (git(1), GIT_ALTERNATE_OBJECT_DIRECTORIES).
    borrowing = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": json.dumps(objects, ensure_ascii=False)}
    count = _reading(directory, "rev-list", "--left-right", "--count", f"HEAD...{theirs}")
    count = replace(count, env={**count.env, **borrowing}, unset=count.unset - frozenset(borrowing))
    ahead, behind = command.capture(count).stdout.split()
    return Distance(int(ahead), int(behind))


def origin_url(directory: Path) -> str:
    """Return the URL of the remote `origin` without name and password; empty when there is none.

    It is as git's configuration has it: `url.*.insteadOf` of one user does not change it.
    """
    query = _reading(directory, "config", "--get", "remote.origin.url")
    url = command.capture(query, check=False).stdout.removesuffix("\n")
    return _CREDENTIALS.sub(r"\1", url)


def remote_url(directory: Path, name: str) -> str:
    """Return the URL to which `git push NAME` pushes; empty when there is no such remote."""
    query = _reading(directory, "remote", "get-url", "--push", name)
    return command.capture(query, check=False).stdout.removesuffix("\n")


def legal(text: str) -> str:
    """Return a text as a part of a branch name: all but ASCII letters, digits and . _ - becomes a dash.

    So does a dot after a dot. git forbids more at the beginning and the end of a name
    (git-check-ref-format(1)), so use the result only between other text.
    """
    return _NOT_IN_A_BRANCH.sub("-", text)


def _reading(directory: Path, *argv: str) -> Command:
    # git refuses a checkout of another user, such as the official one, without safe.directory; we only
    # read. With optional locks, a reader would rewrite the index of that checkout.
    read = _git(directory, *argv)
    _, *rest = read.argv
    return replace(
        read,
        argv=("git", "-c", "safe.directory=*", *rest),
        env={**read.env, "GIT_OPTIONAL_LOCKS": "0"},
    )


def _git(directory: Path, *argv: str) -> Command:
    return Command(
        ("git", *_QUIET, "-C", str(directory), *argv),
        # We parse git's messages in English, and a prompt would wait for ever.
        env={"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"},
        unset=_PLACES & os.environ.keys(),
    )
