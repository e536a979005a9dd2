"""`doit remote NAME`: a branch of one's own, and a shell in the official image."""

import getpass
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.commands import new
from rc_tasks.commands.cli.interactive import (
    add_entry,
    at_terminal,
    find_project,
    prepare,
    resolved,
    tell,
    tell_next,
)
from rc_tasks.commands.cli.parser import add_flag, one_name
from rc_tasks.engine.session import session
from rc_tasks.errors import ArtifactError, CommandError, ProjectError, RcError
from rc_tasks.model.graph.project import Project
from rc_tasks.model.reference import near
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.tools import git

# When a branch was made, in UTC.
TIME_FORMAT = "%y-%m-%dT%H-%M-%SZ"
_TIME = r"\d\d-\d\d-\d\dT\d\d-\d\d-\d\dZ"


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Makes the branch NAME_USER_TIME (UTC; what git does not allow in it becomes a dash), or stays"
        " on such a branch. A project that does not exist is made from the templates. Writes"
        " ~/.edf/NAME.toml, which extends the project's env.toml, and starts an interactive job with it."
        " The settings of the job are those of [debug]."
    )
    add_flag(parser, "--yes", help="make the project if there is none of this name, without asking")
    add_entry(parser)


def run(args: Namespace) -> int:
    """Make a branch, and start an interactive job from the official image."""
    opened = session()
    checkout = opened.checkout
    name = one_name(args, "remote NAME [-- CMD ...]")
    found = find_project(checkout, name)
    project = found or new.unused(checkout, name)
    if found is None and (args.print or not (args.yes or at_terminal())):
        raise _unknown(checkout, project)
    base = None if found else new.find_base(checkout)
    _require_clone(checkout)
    work = _work(checkout, project.name)
    entry = prepare(checkout, project.name, args, "remote")
    _require_image(project.edf if found else (base.project.edf if base and base.project else None))
    if found is None and not args.yes:
        _ask(checkout, project)
    if not args.print:
        _go_to_branch(checkout.root, work, project.name)
        _tell_distance(checkout)
    first_edf = ""
    if found is None:
        new.create(checkout, project.name)
        tell(f"{project.path}/ made from {new.TEMPLATES}")
    elif not project.edf.exists():
        first_edf = _first_edf(checkout, project)
    official = entry.write(project, None, first_edf)
    _require_official(official.image)
    status = entry.start(official)
    if not args.print:
        tell_next(status, f": edit {project.shown_dockerfile}, then `doit build:{project.name}`")
    return status


def branch_name(name: str, user: str, now: datetime) -> str:
    """The branch of a user's work on a project, begun at a moment in UTC."""
    return f"{_stem(name, user)}{now.strftime(TIME_FORMAT)}"


def _stem(name: str, user: str) -> str:
    return f"{git.legal(name)}_{git.legal(user)}_"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a user that only has a number here


def _require_clone(checkout: Checkout) -> None:
    official = checkout.settings.images_root
    if official and official_of(checkout) is None:
        source = checkout.settings.source or official
        raise ProjectError(
            "this is the official checkout: a branch here would change what everybody's images are",
            where=checkout.root,
            hint=f'work in a clone of your own: cd "$SCRATCH" && git clone {source} imgs',
        )


@dataclass(frozen=True, slots=True)
class Work:
    """A user's work on a project: where the checkout is now, and the branches made for it earlier."""

    stem: str
    head: git.Head
    earlier: tuple[str, ...]

    @property
    def has_begun(self) -> bool:
        """Whether the checkout is on a branch of this work."""
        return self.head.branch in self.earlier


def _work(checkout: Checkout, name: str) -> Work:
    """Raises CommandError when no branch can be made now."""
    stem = _stem(name, _user())
    head = git.head(checkout.root)
    made = re.compile(re.escape(stem) + _TIME)
    # Before the first commit, no branch is listed.
    listed = (*git.branches(checkout.root, stem), head.branch)
    work = Work(stem, head, tuple(each for each in dict.fromkeys(listed) if made.fullmatch(each)))
    if head.operation and not work.has_begun:
        give_up = "reset" if head.operation == "bisect" else "--abort"
        raise CommandError(
            f"a {head.operation} is half done here",
            where=checkout.root,
            hint=f"finish it, or give it up: git {head.operation} {give_up}",
        )
    return work


def _go_to_branch(root: Path, work: Work, name: str) -> None:
    head = work.head
    if work.has_begun:
        tell(f"branch {head.branch}: yours for {name} already")
        return
    branch = branch_name(name, _user(), datetime.now(UTC))
    git.switch(root, branch, create=branch not in work.earlier)
    came = f"from {head.branch}" if head.branch else f"from commit {head.commit[:12]}, on no branch"
    carried = len(git.changes(root))
    more = f", with {carried} changed file{'s' if carried > 1 else ''}" if carried else ""
    tell(f"branch {branch}: made {came}{more}")
    if work.earlier:
        tell(f"  your last one for {name}: git switch {work.earlier[0]}")


def _tell_distance(checkout: Checkout) -> None:
    official = checkout.images_root
    if official_of(checkout) is None:
        return
    try:
        found = git.distance(checkout.root, official)
    except RcError as error:
        why = error.quote[-1] if error.quote else error.what
        tell(f"warning: cannot compare with the official checkout {official}: {why}")
        return
    tell(f"  {found.ahead} commit(s) ahead of {official}, {found.behind} behind")
    if found.behind:
        tell("  `git pull origin HEAD` brings them in")


def _unknown(checkout: Checkout, project: Project) -> ProjectError:
    name = project.name
    return ProjectError(
        f"there is no project {name}{_meant(checkout, name)}",
        hint=f"to make it: doit remote --yes {name}, or doit new {name}",
    )


def _ask(checkout: Checkout, project: Project) -> None:
    """Whether to make a project; raises ProjectError when the answer is no."""
    tell(f"there is no project {project.name}{_meant(checkout, project.name)}")
    sys.stderr.write(f"make {project.path}/ from the templates? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise ProjectError("nothing was made", hint="`doit list` shows all projects")


def _meant(checkout: Checkout, name: str) -> str:
    close = near(name, checkout.graph.names())
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _first_edf(checkout: Checkout, project: Project) -> str:
    """Return an env.toml for a project that was made by hand."""
    node = checkout.graph.resolve(project.name)
    final = node.dockerfile.final_base
    text = new.first_edf(checkout, project, new.find_base(checkout, final.name)) if final else ""
    if not text:
        raise ArtifactError(
            f"{project.name} has no env.toml and no base to take one from",
            where=project.path,
            hint=f"build it: doit build:{project.name}",
        )
    return text


def _require_image(edf: Path | None) -> None:
    """Raise ArtifactError when an EDF names an image that is not there."""
    if edf is not None and edf.exists():
        _require_official(resolved(edf).image)


def _require_official(image: str) -> None:
    if image.startswith("/") and not os.path.exists(image):
        raise ArtifactError(
            "the official image does not exist, or cannot be reached from here",
            where=image,
            hint="see `images_root` in `doit settings`; for an image of your own:\n"
            "doit build:NAME && doit local NAME",
        )
