"""`doit nightly`: a batch job that builds what is stale, and says in the morning what it did."""

import json
import os
import shlex
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from dataclasses import replace
from datetime import UTC, datetime

from rc_tasks.commands.cli.parser import UsageError, add_flag
from rc_tasks.engine.nightly import job
from rc_tasks.engine.nightly.summary import Ending, JobStart, Summary, as_json, gather, load_begun
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import CommandError, RcError
from rc_tasks.model.config.settings import RESERVED
from rc_tasks.state import logs
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import umask, write_atomically
from rc_tasks.tools import command, slurm
from rc_tasks.tools.command import Command
from rc_tasks.views import nightly_text, tables

# The hook's: the job's time may be nearly over.
_HOOK_TIMEOUT_S = 60.0


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The job runs `doit --continue` on its own allocation and ends with a summary, the report and"
        " the hook. Before its time limit it ends in order, and is submitted once more if work is left."
        " A checkout that is dirty, or has diverged from its upstream, is refused, and so is a second"
        " night at once. The settings are those of [nightly]."
    )
    add_flag(parser, "--print", help="print the script that would be submitted, and submit nothing")
    add_flag(
        parser, "--cron", help="print the line that submits it every night, for crontab or scrontab"
    )
    # The script's own.
    parser.add_argument("--begin", action="store_true", help=SUPPRESS)
    parser.add_argument("--finish", type=int, default=-1, help=SUPPRESS)
    parser.add_argument("--ending", default="none", help=SUPPRESS)
    parser.add_argument("--after", default="", help=SUPPRESS)


def run(args: Namespace) -> int:
    """Submit the night's job; its script calls this as well."""
    opened = session()
    checkout = opened.checkout
    if args.print:
        sys.stdout.write(job.script(checkout))
    elif args.cron:
        _print_cron(checkout)
    elif args.begin:
        _begin(checkout, args.after)
    elif args.finish >= 0:
        return _finish(opened, args.finish, args.ending, args.after)
    else:
        _submit(checkout)
    return 0


def _submit(checkout: Checkout) -> None:
    require_own(checkout)
    submitted = job.submit(checkout)
    count = job.nodes(checkout)
    limit_min = job.time_limit_min(checkout)
    limit = tables.duration(60 * limit_min) if limit_min else "the partition's default time"
    latest = shlex.quote(str(checkout.night_logs / logs.LATEST))
    print(f"submitted job {submitted.job_id}: {count} node{'s' * (count > 1)} for {limit}")
    print(f"  log:   {checkout.shown(submitted.log)}")
    print(f"  watch: squeue --job={submitted.job_id}, and when it runs: tail -F {latest}")


def _print_cron(checkout: Checkout) -> None:
    root, at = checkout.root, checkout.settings.nightly.at
    # Refuses what cannot be submitted.
    job.script(checkout)
    slurm_conf = os.environ.get("SLURM_CONF", "")
    line = nightly_text.command_line(root, job.program(), umask(), job.tool_directories(), slurm_conf)
    print("# crontab -e, on a login node")
    print(nightly_text.crontab(at, line))
    if job.has_scrontab():
        print("# or scrontab -e, for a site that has it in place of cron")
        print(nightly_text.scrontab(at, line, job.scrontab_directives(checkout)))
    ours = sorted(key for key in os.environ if key.startswith("RC_") and key not in RESERVED)
    if ours:
        told = f"cron does not know {', '.join(ours)}: what they set belongs into pyproject.toml"
        sys.stderr.write(f"warning: {told}\n")


def _begin(checkout: Checkout, after: str) -> None:
    job_id = _job()
    log = job.log_of(checkout, job_id)
    if log is not None:
        logs.point(log.with_name(logs.LATEST), log)
    begun = job.begin(checkout, job_id, after, _warn)
    told = f", after job {after}" if after else ""
    print(f"night of {checkout.root}, job {job_id}{told}")
    if begun.commit_before != begun.commit:
        print(f"pulled from {begun.commit_before} to {begun.commit}")


def _finish(opened: Session, status: int, ending: str, after: str) -> int:
    checkout, job_id = opened.checkout, _job()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    begun = load_begun(job.begun_path(checkout, job_id)) or JobStart(job_id, now, after)
    first = (load_begun(job.begun_path(checkout, after)) if after else None) or begun
    summary = gather(
        opened, begun, first, ending=ending, status=status, ended_at=now, nodes=job.our_nodes()
    )
    summary = _resubmitted(checkout, summary)
    log = job.log_of(checkout, job_id)
    summary = replace(
        summary, log=checkout.shown(log) if log is not None else "", report=_report(opened)
    )
    subject, text = nightly_text.subject(summary), nightly_text.text(summary)
    told = json.dumps(as_json(summary, subject, text), indent=1) + "\n"
    print(f"\n{text}", end="", flush=True)
    try:
        write_atomically(job.begun_path(checkout, job_id), told)
    except RcError as error:
        _warn(str(error))
    _call_hook(checkout, told)
    job.tidy(checkout)
    return 0 if summary.is_good else 1


def _resubmitted(checkout: Checkout, summary: Summary) -> Summary:
    wanted = checkout.settings.nightly.resubmit and not summary.begun.after
    if summary.ending is not Ending.TIME or not wanted:
        return summary
    try:
        submitted = job.resubmit(checkout, summary.begun.job_id)
    except RcError as error:
        _warn(f"time ran out, and no other job can follow\n{error}")
        return summary
    return replace(summary, resubmitted_as=submitted.job_id)


def _report(opened: Session) -> str:
    """Write the report; returns its path, empty without one."""
    from rc_tasks.commands import report

    wanted = opened.checkout.settings.nightly.report
    if not wanted:
        return ""
    path = opened.checkout.root / wanted
    try:
        report.write(opened, path)
    except Exception as error:  # whatever it is, the summary must still be told
        _warn(f"the report cannot be written: {error}")
        return ""
    return str(path) if os.path.isabs(wanted) else wanted


def _call_hook(checkout: Checkout, told: str) -> None:
    hook = checkout.settings.nightly.hook
    if not hook:
        return
    wanted = Command(hook, cwd=checkout.root)
    try:
        done = command.capture(wanted, stdin=told, timeout_s=_HOOK_TIMEOUT_S, check=False)
    except RcError as error:
        _warn(f"the hook failed: {error}")
        return
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode != 0:
        failed = CommandError(
            f"the hook {command.ending(done.returncode)}: {wanted}",
            quote=tuple(lines[-command.TAIL_LINES :]),
            hint=f"it can be tried again by hand with {shlex.quote(str(checkout.nights))}/JOB.json",
        )
        _warn(str(failed))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines[-command.TAIL_LINES :]))


def _job() -> str:
    job_id = slurm.job_id()
    if job_id is None:
        raise UsageError(
            "the script of a night calls this in its job", hint="doit nightly, or doit --continue"
        )
    return job_id


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")
