"""`doit rm NAME…`: removal of projects and aliases."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from rc_tasks.commands.cli.command import project_or_alias
from rc_tasks.commands.cli.confirm import confirm
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_names
from rc_tasks.engine.session import session
from rc_tasks.engine.upkeep import removal as removals
from rc_tasks.engine.upkeep.garbage import GONE_DAYS
from rc_tasks.engine.upkeep.removal import Removal
from rc_tasks.errors import ProjectError
from rc_tasks.model.graph.project import ARTIFACT, GENERATED, PROJECTS
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.edf import in_use
from rc_tasks.tools import git
from rc_tasks.views import tables

# How git status begins the line of a file that git ignores.
_IGNORED = "!! "


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The directory of a project goes, from git's index too, and so do the aliases that lead to it."
        " Of an alias only the symlink goes. It lists what goes, and asks first; nothing is committed."
        " Records, logs, manifests and images stay, in case the project comes back:"
        f" `doit gc` removes them after {GONE_DAYS} days."
        " A project that other images are built on is not removed. With a project that has a [matrix],"
        " all of its images go."
    )
    add_names(parser, "NAME ...", help="a project or an alias")
    add_flag(parser, "--discard-changes", help="remove files and changes that are in no commit, too")
    add_flag(parser, "-y", "--yes", help="do not ask")


def run(args: Namespace) -> int:
    """Remove projects and aliases."""
    if not args.names:
        raise UsageError("NAME is missing", hint="doit rm NAME; `doit list` shows all images")
    checkout = session().checkout
    require_own(checkout)
    named = [project_or_alias(checkout, word) for word in args.names]
    removal = removals.plan(checkout, named)
    for line in _changes(checkout, removal):
        print(line, flush=True)
    names = " ".join(named)
    lost = list(_lost(checkout, removal))
    if lost and not args.discard_changes:
        raise ProjectError(
            "nothing was removed: no commit has these files and changes",
            quote=tuple(lost),
            hint=f"commit them, or remove them as well: doit rm {names} --discard-changes",
        )
    for line in lost:
        print(f"in no commit: {line}")
    command = f"doit rm {names}{' --discard-changes' if args.discard_changes else ''}"
    if not confirm(f"remove {names}?", yes=args.yes, command=command):
        print("nothing was removed")
        return 1
    removals.remove(checkout, removal)
    print(f"removed {names}")
    return 0


def _changes(checkout: Checkout, removal: Removal) -> Iterator[str]:
    """Yield what goes, and what stays."""
    for path in removal.projects.values():
        directory = checkout.root / path
        if not directory.is_dir():
            continue
        artifact = directory / ARTIFACT
        size_bytes = artifact.lstat().st_size if artifact.exists() else None
        image = f" ({ARTIFACT}: {tables.size(size_bytes)})" if size_bytes is not None else ""
        yield f"removes {path}/: {', '.join(sorted(os.listdir(directory)))}{image}"
        for edf in in_use.that_name(checkout, f"/{path}/"):
            if not edf.is_relative_to(directory):
                yield f"  {edf} names it"
    for alias in removal.aliases:
        target = os.readlink(checkout.root / PROJECTS / alias)
        yield f"removes the alias {PROJECTS}/{alias}, which leads to {target}"
    if removal.projects:
        yield f"keeps records, logs and images until `doit gc` removes them, after {GONE_DAYS} days"


def _lost(checkout: Checkout, removal: Removal) -> Iterator[str]:
    """Yield what is removed and in no commit; files that git ignores and steps make do not count."""
    for path in removal.projects.values():
        lines = git.uncommitted(checkout.root, path)
        if lines is None and (checkout.root / path).is_dir():
            yield f"{path}/ (in no git repository)"
        for line in lines or ():
            if not (line.startswith(_IGNORED) and _is_generated(line, path)):
                yield line


def _is_generated(line: str, path: str) -> bool:
    below = line.removeprefix(_IGNORED).strip('"').partition(f"{path}/")[2]
    return below.partition("/")[0] in GENERATED or not below
