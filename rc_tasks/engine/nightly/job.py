"""Batch job of `doit nightly`: its checks, its script, its submission and its start."""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from rc_tasks.engine.nightly.summary import JobStart, load_begun
from rc_tasks.engine.runner import runner
from rc_tasks.errors import CommandError, ProjectError, RcError, SettingsError, SlurmError
from rc_tasks.model.config.settings import Runner
from rc_tasks.state import history, logs
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import locks
from rc_tasks.state.disk.files import umask, write_atomically
from rc_tasks.tools import command, git, sbatch, slurm
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.util import template
from rc_tasks.util.json_decode import encode

TEMPLATE = "templates/nightly.sbatch.j2"
_MOST_FILES = 10
# The states of a nightly run that is not over.
_ALIVE = ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING")


class Submitted(Struct, frozen=True):
    """A submitted job, and the path of its log."""

    job_id: str
    log: Path


def job_name(root: Path) -> str:
    """Return the name of the jobs of a checkout, by which Slurm knows them apart from others'."""
    return f"nightly.{git.legal(root.name)}.{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def program() -> str:
    """Return the `doit` that runs now."""
    return str(Path(sys.executable).with_name("doit"))


def submit(checkout: Checkout) -> Submitted:
    """Submit the nightly job. Raise RcError when it must not run, or Slurm refuses it."""
    if runner(checkout.settings.runner) is Runner.LOCAL:
        raise SlurmError(
            "nothing runs through Slurm here, and `doit nightly` is a batch job",
            hint="without Slurm, `doit --continue` in cron does the same",
        )
    if checkout.settings.nightly.pull:
        # The job pulls when it begins, perhaps on a node that reaches no remote.
        git.fetch(checkout.root)
    require_ready(checkout)
    # Another user may submit on another login node at the same time.
    with locks.held(checkout.nightly_records / "submission.lock", "nightly", wait=True):
        slurm.patiently(lambda: _require_alone(checkout, *_ALIVE), _say)
        return _submit(checkout)


def resubmit(checkout: Checkout, after: str) -> Submitted:
    """Submit the job that continues after job `after`, from within that job, which is about to end."""
    # The summary needs a part of the remaining time.
    return _submit(checkout, after, patience_s=checkout.settings.nightly.signal_s / 4)


def _submit(checkout: Checkout, after: str = "", *, patience_s: float = slurm.PATIENCE_S) -> Submitted:
    stem = _new_log(checkout)
    text = script(checkout, stem, after)
    stem.parent.mkdir(parents=True, exist_ok=True)
    nightly, default = checkout.settings.nightly, checkout.settings.slurm
    request = StepRequest(
        "the nightly job",
        account=nightly.account or default.account,
        partition=nightly.partition or default.partition,
        time_limit_min=time_limit_min(checkout),
        cpus=default.cpus,
        nodes=nodes(checkout),
        extra=nightly.extra,
        settings_table="nightly",
    )
    attempted = False

    def ask() -> str:
        nonlocal attempted
        if attempted:
            # A request without an answer may have been accepted all the same.
            for job in sbatch.jobs(job_name(checkout.root)):
                if job.state in _ALIVE and job.id != slurm.job_id():
                    return job.id
        attempted = True
        return sbatch.submit(text, checkout.root, request)

    job_id = slurm.patiently(ask, _say, patience_s)
    return Submitted(job_id, stem.with_name(f"{stem.name}.{job_id}.log"))


def time_limit_min(checkout: Checkout) -> int:
    """Return the time limit of the job; 0: the partition's default."""
    settings = checkout.settings
    return settings.nightly.time_limit_min or settings.slurm.time_limit_min


def nodes(checkout: Checkout) -> int:
    """Return how many nodes the job has."""
    return checkout.settings.nightly.nodes or checkout.settings.slurm.nodes


def script(checkout: Checkout, stem: Path | None = None, after: str = "") -> str:
    """Return the batch script. `stem` is the log's path without the job ID. Raise RcError."""
    root, nightly = str(checkout.root), checkout.settings.nightly
    _require_path(root)
    options = _options(checkout, stem or _new_log(checkout))
    for option in options:
        if "\n" in option:
            raise SettingsError(
                f"a batch script cannot hold this option: {option!r}",
                where="[nightly]",
                hint="take out the line break; `doit settings` shows where it comes from",
            )
    limit_s = 60 * time_limit_min(checkout)
    if limit_s and nightly.signal_s >= limit_s:
        raise SettingsError(
            f"nightly.signal_s is {nightly.signal_s} s, and the time limit of the job is {limit_s} s",
            hint="make nightly.signal_s much less than that, or raise nightly.time_limit_min",
        )
    try:
        text = (checkout.root / TEMPLATE).read_text(encoding="utf-8")
    except OSError as error:
        raise ProjectError(
            f"the template of the nightly job cannot be read: {error.strerror}",
            where=TEMPLATE,
            hint=f"`git checkout -- {TEMPLATE}` brings it back",
        ) from None
    except UnicodeDecodeError:
        raise ProjectError(
            "the template is not UTF-8", where=TEMPLATE, hint="save it as UTF-8"
        ) from None
    values = {
        "directives": sbatch.directives(options).removesuffix("\n"),
        "root": root,
        "doit": program(),
        "umask": f"{umask():04o}",
        "signal_s": nightly.signal_s,
        "after": after,
    }
    return template.fill(text, TEMPLATE, values, ProjectError)


def _options(checkout: Checkout, stem: Path) -> list[str]:
    nightly, default = checkout.settings.nightly, checkout.settings.slurm
    chosen = (
        ("--account", nightly.account or default.account),
        ("--partition", nightly.partition or default.partition),
        ("--time", str(time_limit_min(checkout) or "")),
        ("--mail-type", nightly.mail_type),
        ("--mail-user", nightly.mail_user),
    )
    return [
        f"--job-name={job_name(checkout.root)}",
        *(f"{flag}={value}" for flag, value in chosen if value),
        # As the allocation of a run from a login node, see `slurm.Allocation`.
        f"--nodes={nodes(checkout)}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={default.cpus}" if default.cpus else "--exclusive",
        "--no-kill",
        # The shell alone gets it, and passes it on.
        f"--signal=B:USR1@{nightly.signal_s}",
        "--requeue",
        # A job that is requeued appends to its log.
        "--open-mode=append",
        # If two are submitted all the same, one waits for the end of the other.
        "--dependency=singleton",
        "--export=ALL",
        f"--chdir={checkout.root}",
        f"--output={sbatch.file_pattern(stem, '.%j.log')}",
        *nightly.extra,
    ]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _new_log(checkout: Checkout) -> Path:
    return checkout.nightly_logs / history.stamp(datetime.now(UTC))


def _require_path(root: str) -> None:
    """Raise ProjectError for a path that cannot stand in a batch script."""
    # With a backslash in its path, Slurm 22.05 does not put the job ID into the name of a log.
    if match := re.search(r"[\n\\\udc80-\udcff]", root):
        raise ProjectError(
            f"there is a {match[0]!r} in the path of this checkout, and Slurm cannot write logs there",
            where=repr(root),
            hint="move the checkout to a plainer path",
        )


def require_ready(checkout: Checkout) -> None:
    """Raise CommandError when the checkout is not what is to be built for everybody."""
    root, nightly = checkout.root, checkout.settings.nightly
    if nightly.allow_dirty:
        return
    head = git.head(root)
    if head.operation:
        raise _not_ready(
            checkout, f"a {head.operation} is half done here", hint="finish it or give it up"
        )
    if changed := git.changes(root):
        more = len(changed) - _MOST_FILES
        lines = [*changed[:_MOST_FILES], *([f"and {more} more"] if more > 0 else [])]
        count = "1 file differs" if len(changed) == 1 else f"{len(changed)} files differ"
        raise _not_ready(
            checkout,
            f"{count} from what is committed",
            quote=tuple(lines),
            hint="commit them, or put them aside with `git stash --include-untracked`",
        )
    if not git.upstream(root):
        if nightly.pull:
            raise _not_ready(
                checkout,
                "this checkout follows no branch that could be pulled",
                hint="git switch BRANCH, or `nightly.pull = false`",
            )
        return
    distance = git.distance_from_upstream(root)
    if distance.ahead and distance.behind:
        raise _not_ready(
            checkout,
            f"this checkout and {git.upstream(root)} have diverged: {distance.ahead} commit(s) here"
            f" alone, {distance.behind} there alone",
            hint="bring them together: git pull --rebase, or git merge",
        )


def _not_ready(checkout: Checkout, what: str, *, hint: str, quote: tuple[str, ...] = ()) -> CommandError:
    hint += "\n`nightly.allow_dirty = true` starts the nightly run all the same" * (
        not checkout.settings.nightly.pull
    )
    return CommandError(what, where=checkout.root, quote=quote, hint=hint)


def _require_alone(checkout: Checkout, *states: str) -> None:
    """Raise SlurmError when another nightly run of this checkout is in one of these states."""
    for job in sbatch.jobs(job_name(checkout.root)):
        if job.state in states and job.id != slurm.job_id():
            raise SlurmError(
                f"a nightly run of this checkout is {job.state.lower()}: job {job.id} of {job.user}",
                where=checkout.root,
                hint=f"wait for it, or end it: scancel {job.id}",
            )


def begun_path(checkout: Checkout, job_id: str) -> Path:
    """Return the file with what a job began with, and later its summary."""
    return checkout.nightly_records / f"{job_id}.json"


def begin(checkout: Checkout, job_id: str, after: str, warn: Callable[[str], None]) -> JobStart:
    """Begin the job that we run in: check and pull, and write down what it begins with.

    Raise RcError when it must not run. A job that continues another one, or was requeued, is not checked
    again: the files that differ by now were written by the nightly run itself.
    """
    path = begun_path(checkout, job_id)
    # Without that, the file is of another job: their IDs are given out again one day.
    again = load_begun(path) if slurm.was_requeued() else None
    if again is not None and not again.error:
        return again
    before = _commit(checkout)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    error: RcError | None = None
    if not after:
        try:
            slurm.patiently(lambda: _require_alone(checkout, "RUNNING"), warn)
            _update(checkout, warn)
        except RcError as refused:
            error = refused
    begun = JobStart(job_id, started_at, after, before, _commit(checkout), str(error) if error else "")
    write_atomically(path, encode(begun))
    if error is not None:
        raise error
    return begun


def _update(checkout: Checkout, warn: Callable[[str], None]) -> None:
    pull = checkout.settings.nightly.pull
    if pull:
        try:
            git.fetch(checkout.root)
        except CommandError as error:
            # It was fetched when the job was submitted.
            warn(f"nothing newer can be fetched from here\n{error}")
    require_ready(checkout)
    if pull:
        git.fast_forward(checkout.root)


def _commit(checkout: Checkout) -> str:
    try:
        return git.head(checkout.root).commit
    except RcError:
        return ""


def log_of(checkout: Checkout, job_id: str) -> Path | None:
    """Return the log of a job, if there is one."""
    return next(iter(sorted(checkout.nightly_logs.glob(f"*.{job_id}.log"), reverse=True)), None)


def tidy(checkout: Checkout) -> None:
    """Remove what is too old of logs and of what is known of jobs."""
    logs.settle(checkout.nightly_logs, checkout.settings.logs)
    history.trim(checkout.nightly_records, checkout.settings.history.days, ".json")


def our_nodes() -> list[str]:
    """Return the nodes of the job that we run in, as far as Slurm tells."""
    try:
        return list(slurm.current_allocation().cpus)
    except RcError:
        return []


def scrontab_directives(checkout: Checkout) -> str:
    """Return the options of the small job that submits the nightly job, as `#SBATCH` lines."""
    nightly, default = checkout.settings.nightly, checkout.settings.slurm
    chosen = (
        ("--account", nightly.account or default.account),
        ("--partition", nightly.partition or default.partition),
        ("--mail-user", nightly.mail_user),
    )
    return sbatch.directives(
        [
            f"--job-name={job_name(checkout.root)}.submit",
            *(f"{flag}={value}" for flag, value in chosen if value),
            "--ntasks=1",
            "--time=10",
            "--mail-type=FAIL",
            "--open-mode=append",
            f"--output={sbatch.file_pattern(checkout.nightly_logs, '/scrontab.log')}",
        ]
    )


def has_scrontab() -> bool:
    """Return whether this site has a crontab of Slurm's."""
    return sbatch.has_scrontab()


def tool_directories() -> list[str]:
    """Return where the programs that the submission needs are found."""
    paths = (command.which(tool) for tool in ("sbatch", "git"))
    return list(dict.fromkeys(str(Path(path).parent) for path in paths if path))
