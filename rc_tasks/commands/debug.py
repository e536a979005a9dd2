"""`doit debug NAME`: a shell in the image in which an instruction of a failed build ran."""

import sys
from argparse import ArgumentParser, Namespace

from rc_tasks.commands.cli.confirm import at_terminal
from rc_tasks.commands.cli.interactive import (
    add_print,
    find_project,
    job_request,
    require_terminal,
    run_job,
    tell,
)
from rc_tasks.commands.cli.parser import add_flag, add_names, one_name
from rc_tasks.engine.runner import runner
from rc_tasks.engine.session import session
from rc_tasks.errors import ArtifactError, RcError
from rc_tasks.model.config.settings import Runner
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.records.records import Step
from rc_tasks.tools import podman, slurm
from rc_tasks.tools.command import Command

_MODULE = "rc_tasks.steps.podman.debug"


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Starts podman on a compute node, in the layers that the failed build finished: with the"
        " variables, directory and user of the failed instruction, the build context in /context, and"
        " the command in the shell's history. The settings of the job are those of [debug]. Nothing"
        " that is changed there is kept."
    )
    parser.set_defaults(command=())
    add_names(parser, "NAME [-- CMD ...]")
    add_flag(parser, "--secrets", help="also mount the build secrets that the failed RUN mounts")
    add_print(parser)


def run(args: Namespace) -> int:
    """Start an interactive job in what a failed build has left."""
    checkout = session().checkout
    argument = one_name(args, "debug NAME [-- CMD ...]")
    project = find_project(checkout, argument)
    project = checkout.graph.resolve(project.name if project is not None else argument).project
    name = project.name
    _require_start(checkout, name)
    require_terminal(name, args, "debug")
    through_slurm = runner(checkout.settings.runner) is Runner.SLURM
    request = job_request(checkout, name, "debug") if through_slurm else None
    # The job is ours alone if srun makes it.
    alone = request is not None and slurm.job_id() is None
    options = (("--secrets",) if args.secrets else ()) + (("--alone",) if alone else ())
    argv = (sys.executable, "-m", _MODULE, *options, str(checkout.root), name, *args.command)
    job = Command(argv)
    if request is not None:
        terminal = at_terminal() or (args.print and not args.command)
        job = slurm.attached(job, request, terminal=terminal)
    status = run_job(job, request, printed=args.print)
    if not args.print and status not in podman.NOT_STARTED:
        tell(f"next: correct {project.shown_dockerfile}, then `doit build:{name}`")
    return status


def _require_start(checkout: Checkout, name: str) -> None:
    """Raise RcError when no failed instruction of an image can be run again, with what helps instead."""
    failed = checkout.store.catalogue.failed_instruction(name)
    if failed is not None and failed.image_id:
        return
    project = checkout.graph.images[name].project
    if failed is not None:
        raise ArtifactError(
            "nothing can be started here: the stage of this instruction had no files yet",
            where=f"{project.shown_dockerfile}:{failed.line}",
            hint=f"`doit log {name} podman --failed` shows why it failed",
        )
    failures = {step: checkout.records.failure(step, name) for step in Step}
    step, failure = next(
        ((step, failure) for step, failure in failures.items() if failure is not None), (None, None)
    )
    if step is None or failure is None:
        raise RcError(
            f"{name} did not fail",
            hint=f"`doit local {name}` starts a shell in the image",
        )
    log = f"`doit log {name} {step} --failed` shows the whole output"
    if step is not Step.PODMAN:
        published = f";\n`doit local {name}` starts the image that was published last"
        raise RcError(
            f"no instruction of {name} failed: its image is built, and {step}:{name} failed",
            quote=(failure.message,),
            hint=log + (published if project.artifact.exists() else ""),
        )
    if not checkout.settings.store.enabled:
        raise RcError(
            f"the layers of the failed build of {name} were not kept, as the store is turned off",
            hint=f"{log};\nset `store.enabled` to true, then `doit build:{name}` keeps them",
        )
    raise RcError(
        f"podman:{name} failed, but at no instruction of the Dockerfile",
        quote=(failure.message,),
        hint=log,
    )
