"""`doit doctor`: what is missing or wrong on this host and on a compute node, and how to fix it."""

import contextlib
import os
import secrets
import shlex
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rc_tasks.engine.run.step_command import runner, step_process
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError, SettingsError
from rc_tasks.model.config.settings import Runner, Settings
from rc_tasks.state import rights
from rc_tasks.state.adoption.official import Official
from rc_tasks.state.disk.trust import Trust
from rc_tasks.steps.container import launch
from rc_tasks.steps.doctor import check, credentials
from rc_tasks.steps.doctor.finding import Finding, Level
from rc_tasks.tools import command, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.views import tables

_MOST_REFUSALS = 3


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = "Exits with 1 when something would keep images from being built."


def run(_args: Namespace) -> int:
    """Check the host, then a node as a step would find it."""
    try:
        opened = session()
    except SettingsError as error:
        if error.where is not None:
            raise  # one problem, which names its file
        raise RcError(f"the settings cannot be used\n{error}") from None
    rights.require_readable(opened.checkout)
    problems = _tell("this host", host_findings(opened))
    where = runner(opened.checkout.settings.runner)
    through = "srun" if slurm.job_id() is not None else "salloc, as a run"
    heading = (
        f"a compute node (through {through})" if where is Runner.SLURM else "steps run on this host"
    )
    problems += _tell(heading, _node(opened))
    if problems:
        print(f"\n{problems} problem{'s' if problems > 1 else ''} to fix before images can be built")
    else:
        print("\nready to build")
    return 1 if problems else 0


def _tell(heading: str, findings: Iterator[Finding]) -> int:
    print(heading)
    problems = 0
    for finding in findings:
        print(f"  {finding.level:8} {tables.printable(finding.what)}")
        for line in finding.hint.splitlines():
            print(f"           {tables.printable(line)}")
        problems += finding.level is Level.PROBLEM
        sys.stdout.flush()
    return problems


def host_findings(opened: Session) -> Iterator[Finding]:
    """What there is to say of this host and checkout, without a step."""
    checkout = opened.checkout
    yield Finding(Level.OK, f"python {sys.version.split()[0]}")
    if command.which("git") is None:
        yield Finding(Level.PROBLEM, "git was not found", "install git")
    for name, error in checkout.graph.broken.items():
        yield Finding(Level.PROBLEM, f"{name} cannot be built", str(error))
    for error in checkout.graph.problems:
        yield Finding(Level.PROBLEM, f"{error.where}: {error.what}", error.hint or "")
    for note in checkout.graph.notes(checkout.graph.images.values()):
        yield Finding(Level.WARNING, note)
    yield Finding(
        Level.OK, f"images: {len(checkout.graph.images)}, aliases: {len(checkout.graph.aliases)}"
    )
    if not checkout.template.is_file():
        yield Finding(
            Level.PROBLEM,
            f"{checkout.shown(checkout.template)} is missing",
            "git checkout -- templates",
        )
    if not checkout.images_root.is_dir():
        yield Finding(
            Level.WARNING,
            f"images_root {checkout.images_root} does not exist here",
            "env.toml files will name images there: set images_root if that is not meant",
        )
    yield from _official(opened)
    yield from _closed(opened)
    yield from _slurm(opened)
    yield from _bases(opened)
    yield _launcher(opened)


def _official(opened: Session) -> Iterator[Finding]:
    """Whether clones, this one or others, can believe what lies in the official checkout."""
    checkout = opened.checkout
    root = os.path.realpath(checkout.images_root)
    if not checkout.settings.images_root or not os.path.isdir(root):
        return
    official = Official(root, Trust(checkout.settings.images_owners))
    refused = list(official.refusals(node.project for node in checkout.graph.images.values()))
    for error in refused[:_MOST_REFUSALS]:
        yield Finding(
            Level.WARNING, f"clones adopt nothing from {error.where}: {error.what}", error.hint or ""
        )
    if len(refused) > _MOST_REFUSALS:
        yield Finding(Level.WARNING, f"and {len(refused) - _MOST_REFUSALS} more paths of {root}")
    if not refused:
        yield Finding(Level.OK, f"clones can adopt what {root} has built")


def _closed(opened: Session) -> Iterator[Finding]:
    """What in the official checkout its owner alone may read."""
    checkout = opened.checkout
    paths = rights.closed(checkout) if rights.is_official(checkout) else []
    if paths:
        named = [rights.shown(path, checkout.shown(path)) for path in paths[:_MOST_REFUSALS]]
        more = f" and {len(paths) - len(named)} more" if len(paths) > len(named) else ""
        yield Finding(
            Level.WARNING,
            f"nobody but the owner may read {', '.join(named)}{more}: jobs and clones of others fail",
            f"chmod -R go+rX {shlex.quote(str(checkout.root))}, and `umask 022` before the next build"
            " (002 where a group shares it)",
        )


def _bases(opened: Session) -> Iterator[Finding]:
    """Whether bases.lock can be read, and what a login node would show to a registry."""
    checkout = opened.checkout
    try:
        checkout.pins.read()
    except RcError as error:
        told = str(error).split("\n", 1)
        yield Finding(Level.PROBLEM, told[0], told[-1] if len(told) > 1 else "")
    if runner(checkout.settings.runner) is Runner.SLURM:
        # Else it is the node that is checked below.
        yield from credentials.findings(checkout)


def _launcher(opened: Session) -> Finding:
    settings = opened.checkout.settings
    through_slurm = runner(settings.runner) is Runner.SLURM
    try:
        launcher, why = launch.choose(settings.launcher, through_slurm=through_slurm)
    except RcError as error:
        return Finding(Level.WARNING, f"no launcher: {error.what}", error.hint or "")
    return Finding(Level.OK, f"launcher {launcher}: {why}")


def _slurm(opened: Session) -> Iterator[Finding]:
    settings = opened.checkout.settings
    where = runner(settings.runner)
    if where is Runner.LOCAL:
        why = "runner = local" if settings.runner is Runner.LOCAL else "no Slurm here"
        yield Finding(Level.OK, f"steps run on this host ({why})")
        return
    if not slurm.configured():
        yield Finding(
            Level.PROBLEM,
            "srun does not work here",
            "log in to a node of the cluster, or set runner = local",
        )
        return
    if slurm.job_id() is not None:
        yield Finding(Level.OK, f"Slurm: steps run in job {slurm.job_id()}")
        return
    keys = {"account": settings.slurm.account, "partition": settings.slurm.partition}
    chosen = [_chosen(settings, key, value) for key, value in keys.items()]
    yield Finding(Level.OK, f"Slurm: {', '.join(chosen)}")
    for key, value in keys.items():
        unread, read = os.environ.get(f"SLURM_{key.upper()}"), f"SALLOC_{key.upper()}"
        if unread and not (value or os.environ.get(read)):
            yield Finding(
                Level.WARNING,
                f"SLURM_{key.upper()} does not count: a run asks salloc, which reads {read}",
                f'write {key} = "{unread}" below [slurm] in ~/.config/rc_tasks.toml',
            )


def _chosen(settings: Settings, key: str, value: str) -> str:
    """Name the account or partition that salloc gets from us, and where it comes from."""
    variable = f"SALLOC_{key.upper()}"
    if value:
        origin = settings.origins.get(f"slurm.{key}", "")
        return f"{key} {value} (slurm.{key}, from {origin})"
    if named := os.environ.get(variable):
        return f"{key} {named} ({variable})"
    return f"Slurm's default {key}"


def _node(opened: Session) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="rc_tasks.") as scratch:
        log = Path(scratch) / "log"
        try:
            with _check(opened) as (wanted, request), log.open("wb") as output:
                returncode = command.stream(wanted, output)
        except RcError as error:
            yield Finding(Level.PROBLEM, error.what, "\n".join((*error.quote, error.hint or "")))
            return
        lines = log.read_text(errors="replace").splitlines()
    yield from check.parse_findings(lines)
    if returncode != 0:
        refused = None
        if request is not None:
            refused = slurm_words.explain(returncode, lines, request, guarded=True)
        if refused is not None:
            yield Finding(Level.PROBLEM, refused.what, "\n".join((*refused.quote, refused.hint or "")))
        else:
            tail = "\n".join(lines[-command.TAIL_LINES :])
            yield Finding(Level.PROBLEM, f"the check of a node {command.ending(returncode)}", tail)


@contextlib.contextmanager
def _check(opened: Session) -> Iterator[tuple[Command, StepRequest | None]]:
    """Provide the check where a step would run; outside a job in an allocation such as a run takes.

    Raise SlurmError when Slurm refuses the allocation.
    """
    checkout = opened.checkout
    wanted = step_process(checkout.root, "check")
    if runner(checkout.settings.runner) is Runner.LOCAL:
        yield wanted, None
        return
    settings = checkout.settings.slurm
    step = StepRequest("check", cpus=settings.cpus)
    if slurm.job_id() is not None:
        step = replace(step, extra=settings.extra)
        yield slurm.srun(wanted, step), step
        return
    request = StepRequest(
        "this check",
        account=settings.account,
        partition=settings.partition,
        time_limit_min=settings.time_limit_min,
        cpus=settings.cpus,
        extra=settings.extra,
    )
    allocation = slurm.Allocation(request, settings.nodes, f"rc_tasks.{secrets.token_hex(4)}")
    try:
        granted = allocation.wait(
            lambda job_id: print(f"  job {job_id} waits for its nodes", flush=True)
        )
        step = replace(step, node=next(iter(granted.cpus), ""))
        yield slurm.srun(wanted, step, allocation=granted.job_id), step
        # Else podman's files of this job stay in the node's memory until the next step there.
        clear = slurm.srun(step_process(checkout.root, "clear"), step, allocation=granted.job_id)
        command.capture(clear, check=False)
    finally:
        allocation.release()
