"""Slurm's error messages: patterns, their causes, and the errors that we raise for them."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from rc_tasks.errors import NodeError, SlurmError, UnreachableError
from rc_tasks.tools import command

if TYPE_CHECKING:
    from rc_tasks.tools.slurm_request import StepRequest


class _Cause(Struct, frozen=True):
    """One failure of Slurm: a pattern for its message, our message, and what to do next.

    `elsewhere`: the step may be retried on another node or in another allocation. `unreachable`: the
    controller did not answer, and may answer soon.
    """

    pattern: str
    what: str
    hint: str
    elsewhere: bool = False
    unreachable: bool = False


# What a client prints when the controller is gone, restarts, hands over to its backup, or is too busy to
# answer: the texts of slurm_errno.c and of errno, from Slurm 22.05 to 26.05.
_UNANSWERED = (
    r"Socket timed out on send/recv|Zero Bytes were transmitted or received"
    r"|Communication (connection|shutdown) failure|Message (send|receive) failure"
    r"|Unexpected missing socket|Connection (refused|reset by peer|timed out|forced closed|rejected)"
    r"|Broken pipe|Resource temporarily unavailable|Rate limit exceeded|in standby mode"
)
# Most of these can also concern a node or a socket of srun. The request before them tells the
# difference.
_REQUEST = (
    r"Unable to (confirm|clean up|allocate|create step)|Batch job submission failed"
    r"|Job submit/allocate failed|Kill job error|slurm_(load|get)_\w+|fetch remote configs"
)
_UNREACHABLE = (
    r"Unable to contact slurm controller|Slurm controller not responding|Slurm temporarily unable"
    rf"|({_REQUEST}).*({_UNANSWERED})"
)

# How Slurm ends a started step, whatever the exit status: srun 22.05 returns 0 when a node fails. The
# first match counts, as Slurm also reports an end by time or memory as a cancellation.
_ENDINGS = (
    _Cause(
        r"DUE TO TIME LIMIT",
        "{step} ran out of time",
        "raise `{table}.time_limit_min` (now {time_limit}), up to what the partition allows:\n"
        "`sinfo --format='%P %l'`",
    ),
    _Cause(
        r"exceeded (virtual )?memory limit|Exceeded job memory limit|oom[-_]kill|Out Of Memory",
        "{step} ran out of memory",
        'ask for more with `{table}.extra`, as in ["--mem=64G"];\n'
        "within a job of your own, with the --mem of that job",
    ),
    _Cause(
        r"DUE TO NODE FAILURE|Node failure on",
        "{node} failed",
        "{again}. If the same node fails again, leave it out with\n"
        '`{table}.extra`, as in ["--exclude=NODE"], and tell the site',
        elsewhere=True,
    ),
    _Cause(
        r"DUE TO PREEMPTION|DUE TO JOB REQUEUE",
        "{step} had to make room for another job",
        "{again}",
        elsewhere=True,
    ),
    _Cause(
        r"forcing job termination",
        "{step} was ended because its srun got a signal to end",
        "Ctrl-C, scancel of the job around this run, and that job's time limit do this;\n{again}",
    ),
    _Cause(
        r"CANCELLED AT|Job has been cancelled|srun: Job allocation \d+ has been revoked"
        r"|Force Terminated job",
        "{step} was cancelled, by somebody's scancel or by the site",
        "{again}",
    ),
    _Cause(
        # The end of an allocation also fails launches, and has a cause of its own below.
        r"Task launch for \S+ failed on node \S+: (?!.*(credential revoked|already completing|expired))"
        r"|timeout waiting for task launch|Nodes \S+ are still not ready|boot of the nodes",
        "Slurm could not start {step} on its node",
        "the node may have failed: `sinfo --list-reasons` tells;\n{again}",
        elsewhere=True,
    ),
    _Cause(
        r"Timed out waiting for job step to complete|STEPD TERMINATED|UNCORRECTABLE MEMORY ERROR"
        r"|FAILED \(non-zero exit code or other failure mode\)|Cannot communicate with node"
        r"|[Aa]borting, (step missing and io error|io error|can not test connection)",
        "Slurm lost sight of {step}",
        "its node may have failed: `sinfo --list-reasons` tells;\n{again}",
        elsewhere=True,
    ),
)

# What srun prints when the task was killed from outside: our shell, or the command in it. (If the
# command kills its own children, it reports that itself.) A controller that has lost its state does so:
# it kills one process after the other, and the shell may still report that the command is gone.
_KILLED = _Cause(
    r"Force Terminated (StepId|job ?step)|: tasks? [\d,-]+: Exited with exit code 137",
    "{step} was killed from outside",
    "Slurm may have forgotten its job, the memory of its node may have run out, or somebody killed it:\n"
    "`sinfo --list-reasons` tells of nodes;\n{again}",
    elsewhere=True,
)

# srun prints this of a command that ran and failed by itself; earlier complaints of srun did not stop
# it.
_RAN = re.compile(r"srun: error: \S+: tasks? [\d,-]+: ")

_NO_DIRECTORY = _Cause(
    r"couldn't chdir to",
    "{step} did not find its working directory on the compute node",
    "put the checkout on a file system that the compute nodes share; /tmp is not one",
)

_WHERE_TO_SET = "\n`doit help settings` names the files in which settings stand"
_REACH_HINT = (
    "see that SLURM_CONF, if it is set, names a file, and that `scontrol ping` finds the\n"
    "controller; then run the command again"
)

_TOO_SMALL = "the allocation is too small for {step}"
_TOO_SMALL_HINT = (
    "change `slurm.cpus` (now {cpus}) or `{table}.extra` (now {extra}),\n"
    "or run it in a job with more CPUs or memory"
)

# A controller that has restarted says so for some seconds, of memory that is free (seen with 22.05.8).
_MEMORY = _Cause(
    r"create step for job \d+: Memory required", _TOO_SMALL, _TOO_SMALL_HINT, unreachable=True
)

LEAVE_JOB = (
    "SLURM_JOB_ID names that job: `exit` this shell, or `unset SLURM_JOB_ID`, and run the command\n"
    "again; outside of a job, it asks Slurm for nodes itself"
)

_ENDED = _Cause(
    r"has expired|Invalid job id|Expired or invalid job|already completing|credential revoked",
    "the allocation of {step} has ended",
    "its time limit or somebody's scancel ended it: run the command again, perhaps with a\n"
    "longer `{table}.time_limit_min` (now {time_limit})",
    elsewhere=True,
)
# The same for a shell that has outlived its job, as in tmux: it finds no other allocation.
_ENDED_AROUND = _Cause(_ENDED.pattern, "job {job}, in which {step} was to run, has ended", LEAVE_JOB)

# How Slurm refuses to start something. The more special patterns come first.
_REFUSALS = (
    _Cause(
        _UNREACHABLE,
        "Slurm cannot be reached for {step}",
        _REACH_HINT,
        unreachable=True,
    ),
    _Cause(
        r"[Mm]unge|authentication|configuration source|process configuration file",
        "Slurm cannot be reached for {step}",
        _REACH_HINT,
    ),
    _ENDED,
    _Cause(
        r"QOS|qos",
        "a limit of Slurm refuses {request}",
        "a quality of service (QOS) limits the number, the size and the length of jobs: wait for your\n"
        "other jobs to end, change `{table}.account` or `{table}.partition`, or name a QOS in\n"
        "`{table}.extra`",
    ),
    _Cause(
        r"[Aa]ccount",
        "Slurm refused the account of {request}",
        "{unread}"
        "set `{table}.account` to one that may use this partition, or change `{table}.partition`;\n"
        "yours: `sacctmgr show associations user=$USER format=account,partition,qos`" + _WHERE_TO_SET,
    ),
    _Cause(
        r"time limit",
        "Slurm refused the time limit of {request}",
        "lower `{table}.time_limit_min` (now {time_limit}), or change `{table}.partition`; what each\n"
        "allows: `sinfo --format='%P %l'`" + _WHERE_TO_SET,
    ),
    _Cause(
        r"[Pp]artition",
        "Slurm refused the partition of {request}",
        "set `{table}.partition` to one that is up and open to you: `sinfo --summarize`" + _WHERE_TO_SET,
    ),
    # A step never asks for more of a node than its allocation has, so the node is at fault.
    _Cause(
        r"create step for job \d+: Requested node configuration is not available",
        "{node} takes no steps any more",
        "it may be down: `sinfo --list-reasons` tells;\n{again}.\n"
        "If the node is well, change `slurm.cpus` (now {cpus}) or `{table}.extra` (now {extra})",
        elsewhere=True,
    ),
    _Cause(
        r"create step for job \d+: More processors",
        _TOO_SMALL,
        _TOO_SMALL_HINT,
    ),
    _MEMORY,
    _Cause(
        r"More processors|Memory specification|node configuration|feature spec|node name|[Nn]ode count",
        "no node can give what {request} asks for",
        "change `slurm.cpus` (now {cpus}){size} or `{table}.extra` (now {extra});\n"
        "what the nodes have: `sinfo --Node --format='%N %P %c %m %f'`",
    ),
    _Cause(
        r"(unrecognized|unknown|invalid|ambiguous) option|option .* (requires|doesn't allow) an argument"
        r"|error: Invalid ",
        "Slurm does not understand an option of {step}",
        "change `{table}.extra` (now {extra}); `srun --help` lists the options",
    ),
    _NO_DIRECTORY,
    _Cause(
        r"^(srun|salloc): (error|fatal): ",
        "Slurm could not run {step}",
        "if an option is at fault, `{table}.extra` (now {extra}) is the place; else ask the site",
    ),
)

# The daemon of a step prints `slurmstepd`, or `slurmstepd-NODE` where several share one host. Since
# Slurm 26.05 (seen with 26.05.5) it prints the time in place of its name; a command may log like that
# too, so the following text counts as well. A wrong option is reported with only the name of the
# program.
_SLURMS_WORDS = re.compile(
    r"(srun|salloc|sbatch|slurmstepd\S*): "
    r"|\[\d{4}-\d\d-\d\dT[\d:.]+\] error: "
    r"(\*\*\* (STEP|JOB) \d|StepId=\d|Detected \d+ oom[-_]kill|couldn't chdir to )"
)
# Messages of Slurm that explain nothing. `Force Terminated StepId` also follows a command that ended by
# a signal of its own, and Slurm sometimes revokes a refused allocation as well.
_CHATTER = re.compile(
    r"salloc: Job allocation \d+ has been revoked"
    r"|(srun|salloc): (job \d+ |Job \d+ step creation |Step created |Job step aborted: "
    r"|Force Terminated StepId|Granted |Pending |Waiting |Relinquishing |Nodes )"
)


def is_slurm_line(line: str) -> bool:
    """Return whether Slurm itself wrote this line of a log, which it may mix with the command's."""
    return _SLURMS_WORDS.match(line) is not None


def reports_cancellation(line: str) -> bool:
    """Return whether Slurm says in this line of a log that it ended the step or its job."""
    return (
        is_slurm_line(line)
        and re.search(r"\*\*\* (STEP|JOB) \S+ ON \S+ CANCELLED AT ", line) is not None
    )


def unreachable(text: str) -> bool:
    """Return whether a client of Slurm says in `text` that the controller did not answer."""
    return re.search(_UNREACHABLE, text) is not None


def explain(
    returncode: int, lines: Sequence[str], request: "StepRequest", *, guarded: bool = False
) -> SlurmError | None:
    """Return the error for a step whose log ends with `lines`; None when the command itself failed.

    Call this for exit status 0 as well: srun returns it when a node fails (Slurm 22.05). `guarded`: the
    command ran below the shell of `slurm.srun`, which a signal to the command never kills.
    """
    slurm_lines = list(dict.fromkeys(line.rstrip() for line in lines if is_slurm_line(line)))
    reasons = [line for line in slurm_lines if not _CHATTER.match(line)]
    cause = _first(_ENDINGS, reasons)
    if cause is None and guarded and returncode != 0 and _first((_KILLED,), slurm_lines):
        cause, reasons = _KILLED, slurm_lines
    if cause is None and returncode != 0:
        ran = any(_RAN.match(line) for line in reasons)
        cause = _first((_NO_DIRECTORY,) if ran else _REFUSALS, reasons)
    if cause is None:
        return None
    job = os.environ.get("SLURM_JOB_ID", "")
    # A step of ours ends with its job.
    if cause is _ENDED and job and "SLURM_STEP_ID" not in os.environ:
        cause = _ENDED_AROUND
    values = {
        "job": job,
        "step": request.job_name,
        "table": request.settings_table,
        "again": request.again,
        "node": f"{request.node}, the node of {request.job_name},"
        if request.node
        else f"the node of {request.job_name}",
        "request": str(request),
        "time_limit": request.time_limit_min or "the partition's default",
        "cpus": request.cpus or "Slurm's default",
        "extra": " ".join(request.extra) or "empty",
        "size": _size(request),
        "unread": _unread(reasons, request),
    }
    # A step gets a few more tries; an interactive job would wait for minutes.
    unreachable = cause.unreachable and (cause is not _MEMORY or guarded)
    kind = NodeError if cause.elsewhere else UnreachableError if unreachable else SlurmError
    return kind(
        cause.what.format(**values),
        quote=tuple(reasons[-command.TAIL_LINES :]),
        hint=cause.hint.format(**values),
    )


def _size(request: "StepRequest") -> str:
    """Return what makes an allocation large, beside the CPUs of a step."""
    steps = f", `-n` ({request.steps} steps a node)" if request.steps > 1 else ""
    # The nightly job has the nodes of `slurm.nodes` unless the site says otherwise.
    nodes = f", `{request.settings_table}.nodes` (now {request.nodes})" if request.nodes > 1 else ""
    return steps + nodes


def _unread(lines: Sequence[str], request: "StepRequest") -> str:
    """Return the advice for a user whose account is in a variable that only srun reads (salloc(1))."""
    account = os.environ.get("SLURM_ACCOUNT", "")
    programs = [line.partition(":")[0] for line in lines if re.match(r"(salloc|sbatch): ", line)]
    if not account or not programs or request.account:
        return ""
    return (
        f'SLURM_ACCOUNT does not count for {programs[0]}: write account = "{account}" below '
        f"[{request.settings_table}]\nin ~/.config/rc_tasks.toml, or\n"
    )


def _first(causes: Sequence[_Cause], lines: Sequence[str]) -> _Cause | None:
    return next(
        (cause for cause in causes if any(re.search(cause.pattern, line) for line in lines)), None
    )
