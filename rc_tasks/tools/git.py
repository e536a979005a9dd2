"""git: where a checkout is, and the branch of a piece of work."""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from rc_tasks.errors import CommandError, RcError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command

# A hook of git's may have started us: these name its repository, not the one we are told to look at.
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
# What of a repository's own configuration would run programs, were it somebody else's.
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
# What git leaves in its directory while something is half done (gitrepository-layout(5)), and its name
# in `git NAME --abort`. `applying` is what tells `git am` from a rebase.
_OPERATIONS = {
    "rebase-apply/applying": "am",
    "rebase-apply": "rebase",
    "rebase-merge": "rebase",
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "BISECT_LOG": "bisect",
}
_FETCH_TIMEOUT_S = 120.0
_NOT_IN_A_BRANCH = re.compile(r"[^A-Za-z0-9._-]|(?<=\.)\.")


@dataclass(frozen=True, slots=True)
class Commit:
    """A checkout's commit in full hex, and whether a directory in it differs from that commit."""

    id: str
    dirty: bool


@dataclass(frozen=True, slots=True)
class Head:
    """Where a checkout is. `branch` is empty when HEAD is detached, `commit` before the first one.

    `operation` is what is half done, by the name of its command: `merge`, `rebase` and so on.
    """

    branch: str
    commit: str
    operation: str


@dataclass(frozen=True, slots=True)
class Distance:
    """How many commits one checkout has that the other one has not, and the other way round."""

    ahead: int
    behind: int


def commit(directory: Path) -> Commit | None:
    """The commit that a directory is at, or None where git cannot tell (no repository, no git)."""
    try:
        id = command.capture(_reading(directory, "rev-parse", "--verify", "HEAD")).stdout.strip()
        changes = command.capture(_reading(directory, "status", "--porcelain", "--", ".")).stdout
    except RcError:
        return None
    return Commit(id, bool(changes))


def head(directory: Path) -> Head:
    """Where a checkout is; raises CommandError when it is in no repository."""
    asked = _reading(directory, "rev-parse", "--absolute-git-dir")
    done = command.capture(asked, check=False)
    if done.returncode != 0:
        raise CommandError(
            "this directory is in no git repository",
            where=directory,
            quote=tuple(done.stderr.splitlines()),
            hint="work in a clone: git clone URL",
        )
    inside = Path(done.stdout.removesuffix("\n"))
    ref = command.capture(_reading(directory, "symbolic-ref", "--quiet", "HEAD"), check=False)
    at = command.capture(_reading(directory, "rev-parse", "--verify", "--quiet", "HEAD"), check=False)
    return Head(
        branch=ref.stdout.removesuffix("\n").removeprefix("refs/heads/"),
        commit=at.stdout.strip(),
        operation=next((name for file, name in _OPERATIONS.items() if (inside / file).exists()), ""),
    )


def changes(directory: Path) -> list[str]:
    """The files of a checkout that differ from its commit, as `git status --short` lists them."""
    return command.capture(_reading(directory, "status", "--porcelain")).stdout.splitlines()


def upstream(directory: Path) -> str:
    """What the branch of a checkout follows, such as `origin/main`; empty when it follows nothing."""
    asked = _reading(directory, "rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}")
    return command.capture(asked, check=False).stdout.removesuffix("\n")


def distance_from_upstream(directory: Path) -> Distance:
    """How far a checkout is from what its branch follows, as of the last fetch. Raises CommandError."""
    counted = _reading(directory, "rev-list", "--left-right", "--count", "HEAD...@{upstream}")
    ahead, behind = command.capture(counted).stdout.split()
    return Distance(int(ahead), int(behind))


def fetch(directory: Path) -> None:
    """Ask the branch's remote for what is new; raises CommandError, after two minutes at the latest."""
    wanted = _git(directory, "fetch", "--quiet")
    if "GIT_SSH_COMMAND" not in os.environ:
        # Without it, ssh may wait for a password.
        wanted = replace(wanted, env={**wanted.env, "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"})
    command.capture(wanted, timeout_s=_FETCH_TIMEOUT_S)


def fast_forward(directory: Path) -> None:
    """Go to the commit that was fetched; raises CommandError where that is no fast-forward."""
    command.capture(_git(directory, "merge", "--quiet", "--ff-only", "@{upstream}"))


def branches(directory: Path, beginning: str) -> tuple[str, ...]:
    """The branches whose names begin so, the newest commit first; `beginning` holds no wildcards."""
    argv = ("for-each-ref", "--sort=-committerdate", "--format=%(refname:lstrip=2)")
    listed = command.capture(_reading(directory, *argv, f"refs/heads/{beginning}*")).stdout
    return tuple(listed.splitlines())


def switch(directory: Path, branch: str, *, create: bool) -> None:
    """Go to a branch, with all local changes; raises CommandError where git refuses to carry them."""
    # Without --no-track, branch.autoSetupMerge may make `git push` write to the branch we come from.
    new = ("--no-track", "--create") if create else ()
    wanted = _git(directory, "switch", "--quiet", *new, branch)
    is_new = create and branch not in branches(directory, branch)
    done = command.capture(wanted, check=False)
    if done.returncode == 0:
        return
    if is_new:
        # git makes the branch before it finds out that it cannot go there.
        remove = _git(directory, "update-ref", "--no-deref", "-d", f"refs/heads/{branch}")
        command.capture(remove, check=False)
    lines = [line for line in done.stderr.splitlines() if line]
    # Since 2.47 git names the reference before it: cannot lock ref 'HEAD': Unable to create '…'.
    locked = re.search(r"Unable to create '(.*\.lock)': File exists", done.stderr)
    hint = (
        f"another git is at work here; if none is (`ps`), one was killed: rm '{locked[1]}'"
        if locked
        else "nothing was changed; commit or stash what stands in the way, then run this again"
    )
    raise CommandError(
        f"git cannot go to the branch {branch}", where=directory, quote=tuple(lines), hint=hint
    )


def distance(directory: Path, other: Path) -> Distance:
    """How far a checkout is from the commit of another one, which is only read, and nothing is fetched.

    Raises CommandError when the other one is in no repository, or git cannot read it.
    """
    theirs = command.capture(_reading(other, "rev-parse", "--verify", "HEAD")).stdout.strip()
    found = command.capture(_reading(other, "rev-parse", "--git-path", "objects")).stdout
    objects = os.path.join(os.path.realpath(other), found.removesuffix("\n"))
    # Not `git fetch`: it would write here, and a git since 2.45 serves nobody else's repository. Quoted,
    # as colons would part the path (git(1), GIT_ALTERNATE_OBJECT_DIRECTORIES).
    borrowed = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": json.dumps(objects, ensure_ascii=False)}
    counted = _reading(directory, "rev-list", "--left-right", "--count", f"HEAD...{theirs}")
    counted = replace(
        counted, env={**counted.env, **borrowed}, unset=counted.unset - frozenset(borrowed)
    )
    ahead, behind = command.capture(counted).stdout.split()
    return Distance(int(ahead), int(behind))


def remote_url(directory: Path, name: str) -> str:
    """Where `git push NAME` goes; empty when there is no such remote."""
    asked = _reading(directory, "remote", "get-url", "--push", name)
    return command.capture(asked, check=False).stdout.removesuffix("\n")


def legal(text: str) -> str:
    """A text as a part of a branch name: all but ASCII letters, digits and . _ - becomes a dash.

    So does a dot after a dot. git forbids more at the beginning and the end of a name
    (git-check-ref-format(1)): this is for what stands between.
    """
    return _NOT_IN_A_BRANCH.sub("-", text)


def _reading(directory: Path, *argv: str) -> Command:
    # An official checkout belongs to somebody else than its nightly builder; we only read it. Without
    # the locks, a reader of somebody's checkout would rewrite its index.
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
        # Its words are looked at, and it must not ask for anything.
        env={"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"},
        unset=_PLACES & os.environ.keys(),
    )
