"""`doit remote NAME`: a branch for the user's work, and a shell in the official image."""

import getpass
import os
import re
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from rc_tasks.commands import new
from rc_tasks.commands.cli.confirm import ask, at_terminal
from rc_tasks.commands.cli.interactive import (
    add_job_arguments,
    find_project,
    prepare,
    resolve_edf,
    tell,
)
from rc_tasks.commands.cli.parser import add_flag, one_name
from rc_tasks.engine.session import session
from rc_tasks.errors import ArtifactError, CommandError, ProjectError, RcError
from rc_tasks.model.graph.project import Project
from rc_tasks.model.reference import near
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.tools import git

# The time in the name of a branch: when it was created, in UTC.
TIME_FORMAT = "%y-%m-%dT%H-%M-%SZ"
_TIME = r"\d\d-\d\d-\d\dT\d\d-\d\d-\d\dZ"


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Creates the branch NAME_USER_TIME (time in UTC; a dash replaces characters that git forbids),"
        " or stays on such a branch. Creates a project that does not exist from the templates. Writes"
        " ~/.edf/NAME.toml, which extends the project's env.toml, and starts an interactive job with it."
        " The job uses the settings of [debug]."
    )
    add_flag(parser, "--yes", help="create the project without asking if it does not exist")
    add_job_arguments(parser)


def run(args: Namespace) -> int:
    """Create a branch, and start an interactive job from the official image."""
    checkout = session().checkout
    name = one_name(args, "remote NAME [-- CMD ...]")
    existing = find_project(checkout, name)
    project = existing or new.unused(checkout, name)
    if existing is None and (args.print or not (args.yes or at_terminal())):
        raise _no_project(checkout, project.name)
    if existing is None and not args.yes:
        tell(f"there is no project {project.name}{_suggestion(checkout, project.name)}")
    base = None if existing else new.find_base(checkout)
    _require_clone(checkout)
    work = _user_work(checkout, project.name)
    job = prepare(checkout, project.name, args, "remote")
    _require_image(project.edf if existing else (base.project.edf if base and base.project else None))
    if existing is None and not args.yes:
        _confirm_creation(project)
    if not args.print:
        _switch_to_branch(checkout.root, work, project.name)
        _print_distance(checkout)
    first_edf = ""
    if existing is None:
        new.create(checkout, project.name)
        tell(f"{project.path}/ created from {new.TEMPLATES}")
    elif not project.edf.exists():
        first_edf = _first_edf(checkout, project)
    edf = job.write(project, None, first_edf)
    _require_official(edf.image)
    status = job.start(edf)
    if not args.print:
        job.tell_next(status, f": edit {project.shown_dockerfile}, then `doit build:{project.name}`")
    return status


def branch_name(name: str, user: str, now: datetime) -> str:
    """Return the branch of a user's work on a project that was begun at `now`, in UTC."""
    return f"{_branch_prefix(name, user)}{now.strftime(TIME_FORMAT)}"


def _branch_prefix(name: str, user: str) -> str:
    return f"{git.legal(name)}_{git.legal(user)}_"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # A user may have no name on this host.


def _require_clone(checkout: Checkout) -> None:
    """Raise ProjectError in the official checkout."""
    official = checkout.settings.images_root
    if official and official_of(checkout) is None:
        source = checkout.settings.source or official
        raise ProjectError(
            "this is the official checkout; a branch here would change the images of all users",
            where=checkout.root,
            hint=f'work in a clone of your own: cd "$SCRATCH" && git clone {source} imgs',
        )


class UserWork(Struct, frozen=True):
    """A user's work on a project: HEAD of the checkout, and the existing branches."""

    head: git.Head
    branches: tuple[str, ...]

    @property
    def is_checked_out(self) -> bool:
        """Whether HEAD is a branch of this work."""
        return self.head.branch in self.branches


def _user_work(checkout: Checkout, name: str) -> UserWork:
    """Return the user's work on a project. Raise CommandError when no branch can be created now."""
    prefix = _branch_prefix(name, _user())
    head = git.head(checkout.root)
    pattern = re.compile(re.escape(prefix) + _TIME)
    # Before the first commit, git does not list the current branch.
    listed = (*git.branches(checkout.root, prefix), head.branch)
    branches = tuple(branch for branch in dict.fromkeys(listed) if pattern.fullmatch(branch))
    work = UserWork(head, branches)
    if head.operation and not work.is_checked_out:
        abort = "reset" if head.operation == "bisect" else "--abort"
        raise CommandError(
            f"a {head.operation} is in progress here",
            where=checkout.root,
            hint=f"finish it, or abort it: git {head.operation} {abort}",
        )
    return work


def _switch_to_branch(root: Path, work: UserWork, name: str) -> None:
    head = work.head
    if work.is_checked_out:
        tell(f"branch {head.branch}: already your branch for {name}")
        return
    branch = branch_name(name, _user(), datetime.now(UTC))
    git.switch(root, branch, create=branch not in work.branches)
    origin = head.branch or f"commit {head.commit[:12]}, on no branch"
    count = len(git.changes(root))
    changes = f", with {count} changed file{'s' if count > 1 else ''}" if count else ""
    tell(f"branch {branch}: created from {origin}{changes}")
    if work.branches:
        tell(f"  your previous branch for {name}: git switch {work.branches[0]}")


def _print_distance(checkout: Checkout) -> None:
    official = checkout.images_root
    if official_of(checkout) is None:
        return
    try:
        distance = git.distance(checkout.root, official)
    except RcError as error:
        why = error.quote[-1] if error.quote else error.what
        tell(f"warning: cannot compare with the official checkout {official}: {why}")
        return
    tell(f"  {distance.ahead} commit(s) ahead of {official}, {distance.behind} behind")
    if distance.behind:
        tell("  `git pull origin HEAD` gets them")


def _no_project(checkout: Checkout, name: str) -> ProjectError:
    return ProjectError(
        f"there is no project {name}{_suggestion(checkout, name)}",
        hint=f"to create it: doit remote --yes {name}, or doit new {name}",
    )


def _confirm_creation(project: Project) -> None:
    """Ask whether to create a project. Raise ProjectError when the answer is no."""
    if not ask(f"create {project.path}/ from the templates?"):
        raise ProjectError("no project was created", hint="`doit list` shows all projects")


def _suggestion(checkout: Checkout, name: str) -> str:
    close = near(name, checkout.graph.names())
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _first_edf(checkout: Checkout, project: Project) -> str:
    """Return an env.toml for a project that was created by hand. Raise ArtifactError without a base."""
    node = checkout.graph.resolve(project.name)
    final = node.dockerfile.final_base
    text = new.first_edf(checkout, project, new.find_base(checkout, final.name)) if final else ""
    if not text:
        raise ArtifactError(
            f"{project.name} has no env.toml, and no base to copy one from",
            where=project.path,
            hint=f"build it: doit build:{project.name}",
        )
    return text


def _require_image(edf: Path | None) -> None:
    """Raise ArtifactError when an EDF names an image that does not exist."""
    if edf is not None and edf.exists():
        _require_official(resolve_edf(edf).image)


def _require_official(image: str) -> None:
    if image.startswith("/") and not os.path.exists(image):
        raise ArtifactError(
            "the official image does not exist, or cannot be reached from here",
            where=image,
            hint="see `images_root` in `doit settings`; for an image of your own:\n"
            "doit build:NAME && doit local NAME",
        )
