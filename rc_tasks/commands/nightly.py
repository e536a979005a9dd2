"""`doit nightly`: batch job that builds what is stale and reports what it did."""

import json
import os
import shlex
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from datetime import UTC, datetime

from msgspec.structs import replace

from rc_tasks.commands.cli.parser import UsageError, add_flag
from rc_tasks.engine.nightly import job
from rc_tasks.engine.nightly.summary import JobStart, NightlyEnding, Summary, as_json, gather, load_begun
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

# The hook gets little time because the job's time limit may be near.
_HOOK_TIMEOUT_S = 60.0


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The job runs `doit --continue` on its own allocation and ends with a summary, the report and"
        " the hook. Before its time limit it ends cleanly, and is submitted once more if work is left."
        " It refuses a checkout that is dirty or has diverged from its upstream, and a second nightly"
        " run at the same time. The settings are those of [nightly]."
    )
    add_flag(parser, "--print", help="print the script that would be submitted, and submit nothing")
    add_flag(
        parser, "--cron", help="print the line that submits it every night, for crontab or scrontab"
    )
    # Options that only the batch script uses.
    parser.add_argument("--begin", action="store_true", help=SUPPRESS)
    parser.add_argument("--finish", type=int, default=-1, help=SUPPRESS)
    parser.add_argument("--ending", default="none", help=SUPPRESS)
    parser.add_argument("--after", default="", help=SUPPRESS)


def run(args: Namespace) -> int:
    """Submit the nightly job, or do what its script asks for."""
    current = session()
    checkout = current.checkout
    if args.print:
        sys.stdout.write(job.script(checkout))
    elif args.cron:
        _print_cron(checkout)
    elif args.begin:
        _begin(checkout, args.after)
    elif args.finish >= 0:
        return _finish(current, args.finish, args.ending, args.after)
    else:
        _submit(checkout)
    return 0


def _submit(checkout: Checkout) -> None:
    require_own(checkout)
    submitted = job.submit(checkout)
    count = job.nodes(checkout)
    limit_min = job.time_limit_min(checkout)
    limit = tables.duration(60 * limit_min) if limit_min else "the partition's default time"
    latest = shlex.quote(str(checkout.nightly_logs / logs.LATEST))
    print(f"submitted job {submitted.job_id}: {count} node{'s' * (count > 1)} for {limit}")
    print(f"  log:   {checkout.shown(submitted.log)}")
    print(f"  watch: squeue --job={submitted.job_id}, and when it runs: tail -F {latest}")


def _print_cron(checkout: Checkout) -> None:
    root, at = checkout.root, checkout.settings.nightly.at
    # Raises for settings that cannot be submitted.
    job.script(checkout)
    slurm_conf = os.environ.get("SLURM_CONF", "")
    line = nightly_text.command_line(root, job.program(), umask(), job.tool_directories(), slurm_conf)
    print("# crontab -e, on a login node")
    print(nightly_text.crontab(at, line))
    if job.has_scrontab():
        print("# or scrontab -e, for a site that has it in place of cron")
        print(nightly_text.scrontab(at, line, job.scrontab_directives(checkout)))
    variables = sorted(key for key in os.environ if key.startswith("RC_") and key not in RESERVED)
    if variables:
        _warn(f"cron does not set {', '.join(variables)}: put these settings into pyproject.toml")


def _begin(checkout: Checkout, after: str) -> None:
    job_id = _require_job_id()
    log = job.log_of(checkout, job_id)
    if log is not None:
        logs.point(log.with_name(logs.LATEST), log)
    begun = job.begin(checkout, job_id, after, _warn)
    continues = f", after job {after}" if after else ""
    print(f"nightly run of {checkout.root}, job {job_id}{continues}")
    if begun.commit_before != begun.commit:
        print(f"pulled from {begun.commit_before} to {begun.commit}")


def _finish(current: Session, status: int, ending: str, after: str) -> int:
    checkout, job_id = current.checkout, _require_job_id()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    begun = load_begun(job.begun_path(checkout, job_id)) or JobStart(job_id, now, after)
    first = (load_begun(job.begun_path(checkout, after)) if after else None) or begun
    summary = gather(
        current, begun, first, ending=ending, status=status, ended_at=now, nodes=job.our_nodes()
    )
    summary = _resubmitted(checkout, summary)
    log = job.log_of(checkout, job_id)
    summary = replace(
        summary, log=checkout.shown(log) if log is not None else "", report=_report(current)
    )
    subject, text = nightly_text.subject(summary), nightly_text.text(summary)
    document = json.dumps(as_json(summary, subject, text), indent=1) + "\n"
    print(f"\n{text}", end="", flush=True)
    try:
        write_atomically(job.begun_path(checkout, job_id), document)
    except RcError as error:
        _warn(str(error))
    _call_hook(checkout, document)
    job.tidy(checkout)
    return 0 if summary.is_good else 1


def _resubmitted(checkout: Checkout, summary: Summary) -> Summary:
    may_resubmit = checkout.settings.nightly.resubmit and not summary.begun.after
    if summary.ending is not NightlyEnding.TIME or not may_resubmit:
        return summary
    try:
        submitted = job.resubmit(checkout, summary.begun.job_id)
    except RcError as error:
        _warn(f"the time limit was reached, and no second job can be submitted\n{error}")
        return summary
    return replace(summary, resubmitted_as=submitted.job_id)


def _report(current: Session) -> str:
    """Write the report. Return its path, empty without one."""
    from rc_tasks.commands import report

    setting = current.checkout.settings.nightly.report
    if not setting:
        return ""
    path = current.checkout.root / setting
    try:
        report.write(current, path)
    except Exception as error:  # The summary must follow whatever fails.
        _warn(f"the report cannot be written: {error}")
        return ""
    return str(path) if os.path.isabs(setting) else setting


def _call_hook(checkout: Checkout, document: str) -> None:
    hook = checkout.settings.nightly.hook
    if not hook:
        return
    hook_command = Command(hook, cwd=checkout.root)
    try:
        done = command.capture(hook_command, stdin=document, timeout_s=_HOOK_TIMEOUT_S, check=False)
    except RcError as error:
        _warn(f"the hook failed: {error}")
        return
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode != 0:
        failed = CommandError(
            f"the hook {command.ending(done.returncode)}: {hook_command}",
            quote=tuple(lines[-command.TAIL_LINES :]),
            hint=f"run it by hand, with {shlex.quote(str(checkout.nightly_records))}/JOB.json as input",
        )
        _warn(str(failed))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines[-command.TAIL_LINES :]))


def _require_job_id() -> str:
    job_id = slurm.job_id()
    if job_id is None:
        raise UsageError(
            "only the script of the nightly job may use this option",
            hint="doit nightly, or doit --continue",
        )
    return job_id


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")
