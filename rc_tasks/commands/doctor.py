"""`doit doctor`: what is missing or wrong on this host and on a compute node, and how to fix it."""

import contextlib
import json
import os
import secrets
import shlex
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from msgspec import to_builtins
from msgspec.structs import replace

from rc_tasks.commands.cli.parser import add_json
from rc_tasks.engine.run.step_command import step_process
from rc_tasks.engine.runner import runner
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
    parser.description = "The exit status is 1 when a problem keeps images from being built."
    add_json(parser)


def run(args: Namespace) -> int:
    """Check this host, then a node under the conditions of a step."""
    try:
        current = session()
    except SettingsError as error:
        if error.where is not None:
            raise  # A single problem names its file.
        raise RcError(f"the settings cannot be used\n{error}") from None
    rights.require_readable(current.checkout)
    if args.json:
        places = {"host": host_findings(current), "node": _node(current)}
        findings = [
            {"place": place, **to_builtins(finding)}
            for place, of_place in places.items()
            for finding in of_place
        ]
        print(json.dumps(findings, indent=2))
        return 1 if any(finding["level"] is Level.PROBLEM for finding in findings) else 0
    problems = _print_findings("this host", host_findings(current))
    where = runner(current.checkout.settings.runner)
    through = "srun" if slurm.job_id() is not None else "salloc, as a run"
    heading = (
        f"a compute node (through {through})" if where is Runner.SLURM else "steps run on this host"
    )
    problems += _print_findings(heading, _node(current))
    if problems:
        print(f"\n{problems} problem{'s' if problems > 1 else ''} to fix before images can be built")
    else:
        print("\nready to build")
    return 1 if problems else 0


def _print_findings(heading: str, findings: Iterator[Finding]) -> int:
    print(heading)
    problems = 0
    for finding in findings:
        print(f"  {finding.level:8} {tables.printable(finding.what)}")
        for line in finding.hint.splitlines():
            print(f"           {tables.printable(line)}")
        problems += finding.level is Level.PROBLEM
        sys.stdout.flush()
    return problems


def host_findings(current: Session) -> Iterator[Finding]:
    """Yield the findings on this host and checkout that need no step."""
    checkout = current.checkout
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
            "set images_root if env.toml files must not name images there",
        )
    yield from _official(current)
    yield from _owner_only(current)
    yield from _slurm(current)
    yield from _bases(current)
    yield _launcher(current)


def _official(current: Session) -> Iterator[Finding]:
    """Yield what keeps clones from adopting images of the official checkout, or that nothing does."""
    checkout = current.checkout
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


def _owner_only(current: Session) -> Iterator[Finding]:
    """Yield the paths of the official checkout that only its owner may read."""
    checkout = current.checkout
    paths = rights.closed(checkout) if rights.is_official(checkout) else []
    if paths:
        named = [rights.shown(path, checkout.shown(path)) for path in paths[:_MOST_REFUSALS]]
        more = f" and {len(paths) - len(named)} more" if len(paths) > len(named) else ""
        yield Finding(
            Level.WARNING,
            f"only the owner may read {', '.join(named)}{more}: jobs and clones of other users fail",
            f"chmod -R go+rX {shlex.quote(str(checkout.root))}, and `umask 022` before the next build"
            " (002 where a group shares it)",
        )


def _bases(current: Session) -> Iterator[Finding]:
    """Yield whether bases.lock can be read, and findings on this host's credentials for registries."""
    checkout = current.checkout
    try:
        checkout.pins.read()
    except RcError as error:
        what, _, hint = str(error).partition("\n")
        yield Finding(Level.PROBLEM, what, hint)
    if runner(checkout.settings.runner) is Runner.SLURM:
        # Without Slurm, the check of the node reports them.
        yield from credentials.findings(checkout)


def _launcher(current: Session) -> Finding:
    settings = current.checkout.settings
    through_slurm = runner(settings.runner) is Runner.SLURM
    try:
        launcher, why = launch.choose(settings.launcher, through_slurm=through_slurm)
    except RcError as error:
        return Finding(Level.WARNING, f"no launcher: {error.what}", error.hint or "")
    return Finding(Level.OK, f"launcher {launcher}: {why}")


def _slurm(current: Session) -> Iterator[Finding]:
    settings = current.checkout.settings
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


def _node(current: Session) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="rc_tasks.") as scratch:
        log = Path(scratch) / "log"
        try:
            with _check(current) as (check_command, request), log.open("wb") as output:
                returncode = command.stream(check_command, output)
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
def _check(current: Session) -> Iterator[tuple[Command, StepRequest | None]]:
    """Provide the check where a step would run; outside a job in an allocation such as a run takes.

    Raise SlurmError when Slurm refuses the allocation.
    """
    checkout = current.checkout
    check_command = step_process(checkout.root, "check")
    if runner(checkout.settings.runner) is Runner.LOCAL:
        yield check_command, None
        return
    settings = checkout.settings.slurm
    step = StepRequest("check", cpus=settings.cpus)
    if slurm.job_id() is not None:
        step = replace(step, extra=settings.extra)
        yield slurm.srun(check_command, step), step
        return
    request = StepRequest(
        "this check",
        account=settings.account,
        partition=settings.partition,
        time_limit_min=settings.time_limit_min,
        cpus=settings.cpus,
        nodes=settings.nodes,
        extra=settings.extra,
    )
    allocation = slurm.Allocation(request, settings.nodes, f"rc_tasks.{secrets.token_hex(4)}")
    try:
        granted = allocation.wait(
            # Standard output may be JSON.
            lambda job_id: print(f"  job {job_id} waits for its nodes", file=sys.stderr, flush=True)
        )
        step = replace(step, node=next(iter(granted.cpus), ""))
        yield slurm.srun(check_command, step, allocation=granted.job_id), step
        # Else podman's files of this job stay in the node's memory until the next step there.
        clear = slurm.srun(step_process(checkout.root, "clear"), step, allocation=granted.job_id)
        command.capture(clear, check=False)
    finally:
        allocation.release()
