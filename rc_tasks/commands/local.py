"""`doit local NAME`: a shell in the image that was built in this checkout."""

import os
import shlex
from argparse import ArgumentParser, Namespace

from rc_tasks.commands.cli.interactive import (
    add_job_arguments,
    find_project,
    prepare,
    tell,
)
from rc_tasks.commands.cli.parser import one_name
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import ArtifactError, RcError
from rc_tasks.model.graph.project import Project
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.records.status import State
from rc_tasks.tools import git


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Writes ~/.edf/NAME.toml, which extends the project's env.toml and names this checkout's image,"
        " and starts an interactive job with it. The settings of the job are those of [debug]."
    )
    add_job_arguments(parser)


def run(args: Namespace) -> int:
    """Start an interactive job from this checkout's image."""
    current = session()
    checkout = current.checkout
    name = one_name(args, "local NAME [-- CMD ...]")
    project = find_project(checkout, name) or checkout.graph.resolve(name).project
    _require_image(current, project)
    entry = prepare(checkout, project.name, args, "local")
    status = entry.start(entry.write(project, project.artifact))
    if not args.print:
        entry.tell_next(status, f", when it works: {_share_commands(checkout, project)}")
    return status


def _require_image(current: Session, project: Project) -> None:
    """Raise ArtifactError when the image is not built, and warn when it is not fresh."""
    build = f"doit build:{project.name}"
    if not os.path.exists(project.artifact) or not os.path.exists(project.edf):
        raise ArtifactError(
            f"{project.name} is not built here yet", where=project.path, hint=f"build it: {build}"
        )
    if project.name in current.checkout.graph.broken:
        return  # find_project has printed the error.
    status = current.judge.image(project.name)
    if status.state is not State.FRESH:
        reason = f": {status.reasons[0]}" if status.reasons else ""
        tell(f"warning: {project.name} is {status.state}{reason}; `{build}` brings it up to date")


def _share_commands(checkout: Checkout, project: Project) -> str:
    add = f"git add {shlex.quote(project.path)} && git commit && git push origin HEAD"
    try:
        origin = git.remote_url(checkout.root, "origin")
    except RcError:
        origin = ""
    if origin and os.path.realpath(origin.removeprefix("file://")) == os.path.realpath(
        checkout.images_root
    ):
        source = checkout.settings.source or "URL"
        # Old instructions had people clone the official checkout, not the repository.
        return f"git remote set-url --push origin {source} && {add}, then open a pull request"
    return f"{add}, then open a pull request"
