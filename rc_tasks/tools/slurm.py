"""Slurm: sending a command to a compute node, and reading what Slurm says when that fails."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

from rc_tasks.errors import CommandError, SlurmError, ToolNotFoundError, UnreachableError
from rc_tasks.tools import command, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest

INSTALL_HINT = "install Slurm's clients (Debian: apt-get install slurm-client), or ask the site for them"

# Where Slurm's programs look before they ask DNS: packagers' paths, and the copy that slurmd keeps
# on nodes without files of their own (slurm.conf(5), "configless").
_CONFIGURATIONS = (
    Path("/etc/slurm/slurm.conf"),
    Path("/etc/slurm-llnl/slurm.conf"),
    Path("/run/slurm/conf/slurm.conf"),
)
# Longer than a DNS server needs to answer, shorter than a missing one takes to be given up.
_PROBE_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 30.0
# How often an absent controller is asked whether it is back, and how long those wait for it who have no
# allocation that would end.
POLL_S = 2.0
PATIENCE_S = 600.0
ABSENT = "the controller does not answer: waiting for it"
BACK = "the controller answers again"
# salloc gives a controller that does not answer up on its own after ten seconds.
_RELEASE_S = 15.0

# What tells Slurm's programs which cluster and which job they talk to. All other SLURM_ variables of
# a job are what its own srun or sbatch was asked for, and srun takes them as its own options:
# SLURM_CPU_BIND, SLURM_DISTRIBUTION, SLURM_NTASKS_PER_NODE, SLURM_MEM_PER_CPU, and so on with each
# release (srun(1), "INPUT ENVIRONMENT VARIABLES").
_KEPT = frozenset(
    {
        "SLURM_CONF",
        "SLURM_CONF_SERVER",
        "SLURM_CLUSTERS",
        "SLURM_CLUSTER_NAME",
        "SLURM_WORKING_CLUSTER",
        "SLURM_JOB_ID",
        "SLURM_JOBID",
    }
)


# The line after which an allocation is ours.
GRANTED = "== granted"

# What runs as the task. Standard output and error share one pipe, as through two their lines arrive in
# another order. The shell outlives a command that is ended by a signal: when the task itself is, srun
# drops what it has not read yet (in 31 of 100 runs, Slurm 22.05). It also lives on while the command
# cleans up after the signals that Slurm sends to both.
_TASK = 'exec 2>&1; trap : TERM INT HUP; "$@"; exit $?'


def configured() -> bool:
    """Whether this host belongs to a Slurm cluster; answers within a few seconds at the worst."""
    if command.which("srun") is None:
        return False
    # Somebody means this host to be one, even if the file is not there: better srun's complaint, after
    # its minute of waiting for the file, than a build on a login node.
    if os.environ.get("SLURM_CONF") or job_id() is not None:
        return True
    if any(path.is_file() for path in _CONFIGURATIONS):
        return True
    # srun knows its site's own path, and asks DNS; without any configuration even this fails.
    try:
        probe = Command(("srun", "--version"))
        return command.capture(probe, timeout_s=_PROBE_TIMEOUT_S, check=False).returncode == 0
    except CommandError:
        return False


def job_id() -> str | None:
    """The job whose allocation this process runs in."""
    return os.environ.get("SLURM_JOB_ID") or None


def began_anew() -> bool:
    """Whether the job that we run in was requeued, as when its node failed (sbatch(1))."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


# SLURM_MAX_NORMAL_STEP_ID in slurm_protocol_common.h. Above it are the interactive step, the batch
# script, the external container and the pending step: -6 to -3 as numbers of 32 bits.
_LAST_STEP = 0xFFFFFFF0


def in_step() -> bool:
    """Whether this process runs in a job step, and not in a batch script or under salloc.

    Those have special numbers where they have one: from Slurm 26.05 a batch script's is -5. Slurm prints
    them with or without a sign (slurm_protocol_common.h, env.c).
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    return job_id() is not None and step.isdecimal() and int(step) <= _LAST_STEP


# What an allocation of ours runs beside us: it tells what was granted, then waits for the end of its
# standard input. That comes with our own end, however we end, and salloc gives the nodes back.
_HOLDER = f'env | grep "^SLURM_"; scontrol show hostnames; echo "{GRANTED}"; exec cat'


@dataclass(frozen=True, slots=True)
class Granted:
    """An allocation: its job ID, and the CPUs that it has on each of its nodes."""

    job_id: str
    cpus: Mapping[str, int]


class Allocation:
    """An allocation of our own: asked for at once, given back by `release` or with our own end.

    `job_name` is one by which `cancel` can find the job again if all else fails.
    """

    def __init__(self, request: StepRequest, nodes: int, job_name: str) -> None:
        command.require("salloc", INSTALL_HINT)
        self._request = request
        self._job_name = job_name
        self._lines: list[str] = []
        self._granted = False
        argv = [
            "salloc",
            f"--nodes={nodes}",
            # One task a node, so that --cpus-per-task is what each node gives.
            "--ntasks-per-node=1",
            # Without it, all steps end when one of several nodes fails.
            "--no-kill",
            # Whose CPUs are not counted gets whole nodes: with Slurm's default, one CPU of each.
            *([] if request.cpus else ["--exclusive"]),
            *_job_options(request),
            *_step_options(request),
            f"--job-name={job_name}",
        ]
        unset = frozenset(name for name in os.environ if _inherited(name))
        self._process = command.Companion(Command((*argv, "sh", "-c", _HOLDER), unset=unset))

    def wait(self, queued: Callable[[str], None]) -> Granted:
        """What was granted, once it is; `queued` is told the job ID if Slurm makes us wait.

        Raises SlurmError when it is refused.
        """
        # Closed from another thread, its output ends with an error.
        with contextlib.suppress(ValueError):
            for line in self._process.lines():
                if line == GRANTED:
                    self._granted = True
                    return granted(self._lines)
                self._lines.append(line)
                if found := re.search(r"Pending job allocation (\d+)", line):
                    queued(found[1])
        # Its end by Ctrl-C and the like is ours, and told elsewhere.
        returncode = self._process.close() or 1
        error = slurm_words.explain(returncode, self._lines, self._request)
        raise error or SlurmError(
            f"Slurm gave no allocation for {self._request}",
            quote=tuple(self._lines[-command.TAIL_LINES :]),
            hint="`squeue --me` and `scontrol ping` tell how Slurm is",
        )

    @property
    def ended(self) -> bool:
        """Whether it is over: given back, out of time, cancelled, preempted."""
        return self._process.ended

    def release(self) -> bool:
        """Give the allocation back, ending what still runs in it; one that has ended is fine.

        Returns whether that is certain: when the controller does not answer, the job runs on.
        """
        # While salloc waits in the queue, it does not look at its standard input.
        returncode = self._process.close(_RELEASE_S if self._granted else 0)
        said = [*self._lines, *self._process.last_lines]
        if any(map(slurm_words.unreachable, said)):
            return False
        # For its exit status only the command counts that it ran.
        failed = [line for line in said if "Unable to clean up" in line and not _is_over(line)]
        if returncode == 0 and not failed:
            return True
        # Without its salloc, a job goes on until its time is over.
        return cancel(self._job_name) is not None


def _is_over(line: str) -> bool:
    return re.search(r"Invalid job id|already comple", line) is not None


def around_us() -> Granted:
    """The allocation that this process runs in. Raises CommandError when Slurm does not tell."""
    variables = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("SLURM_")]
    hosts = command.capture(Command(("scontrol", "show", "hostnames"))).stdout
    return granted([*variables, *hosts.splitlines()])


def granted(lines: Iterable[str]) -> Granted:
    """An allocation from the `SLURM_` variables of a process in it and the names of its nodes."""
    variables, nodes = {}, []
    for line in lines:
        if line.startswith("SLURM_"):
            key, _, value = line.partition("=")
            variables[key] = value
        elif line and not slurm_words.said(line):
            nodes.append(line)
    # Such as `72(x2),36`, in the order of the nodes (salloc(1), SLURM_JOB_CPUS_PER_NODE).
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", variables.get("SLURM_JOB_CPUS_PER_NODE", ""))
    cpus = chain.from_iterable(repeat(int(count), int(times or 1)) for count, times in found)
    return Granted(
        variables.get("SLURM_JOB_ID", ""),
        dict(zip(nodes, chain(cpus, repeat(1)), strict=False)),
    )


def queue(*options: str) -> Command:
    """`squeue` of all partitions, hidden ones too, without a line of headings."""
    return _plain("squeue", "--noheader", "--all", *options)


def _plain(*argv: str) -> Command:
    # squeue and scancel take variables such as SQUEUE_PARTITION for filters, which people set for what
    # they type themselves.
    own = f"{argv[0].upper()}_"
    return Command(argv, unset=frozenset(name for name in os.environ if name.startswith(own)))


def time_left_s(job_id: str) -> float | None:
    """How long a job may still run; None when it has no limit, or Slurm does not tell."""
    told = command.capture(queue(f"--jobs={job_id}", "--format=%L"), check=False).stdout.strip()
    return _seconds(told)


def step_time_s(job_id: str, name: str) -> float:
    """How long the step of this name has run in a job; 0 when there is none, or Slurm does not tell."""
    asked = queue("--steps", f"--jobs={job_id}", "--format=%M %j")
    for line in command.capture(asked, check=False).stdout.splitlines():
        time_used, _, found = line.strip().partition(" ")
        if found.strip() == name:
            return _seconds(time_used) or 0.0
    return 0.0


def _seconds(told: str) -> float | None:
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", told)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def state(job_id: str) -> tuple[str, str]:
    """A job's state such as `PENDING` or `TIMEOUT`, and Slurm's reason; empty when it forgot the job.

    Raises UnreachableError when the controller does not answer.
    """
    done = command.capture(queue(f"--jobs={job_id}", "--states=all", "--format=%T %r"), check=False)
    if slurm_words.unreachable(done.stderr):
        raise UnreachableError(
            f"Slurm cannot be asked for job {job_id}", quote=tuple(done.stderr.splitlines())
        )
    found, _, reason = done.stdout.strip().partition(" ")
    return found, reason


def answers() -> bool:
    """Return whether Slurm's controller, or one of its backups, answers."""
    try:
        asked = Command(("scontrol", "ping"))
        return command.capture(asked, timeout_s=_ANSWER_TIMEOUT_S, check=False).returncode == 0
    except (CommandError, ToolNotFoundError):
        return False


_T = TypeVar("_T")


def patiently(ask: Callable[[], _T], say: Callable[[str], None], patience_s: float = PATIENCE_S) -> _T:
    """Return what `ask` returns. While the controller does not answer, wait for it and ask again.

    `say` is given a line at the beginning and the end of the waiting. What `ask` raises is raised, an
    UnreachableError only after `patience_s`.
    """
    until_s = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except UnreachableError:
            if time.monotonic() > until_s:
                raise
            say(f"Slurm: {ABSENT}")
            time.sleep(POLL_S)
            while not (back := answers()) and time.monotonic() < until_s:
                time.sleep(POLL_S)
            if back:
                say(f"Slurm: {BACK}")


def all_known(nodes: Iterable[str]) -> bool:
    """Return whether the controller has heard from each of these nodes since it started."""
    asked = _plain("sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%T")
    states = command.capture(asked, check=False).stdout.split()
    # sinfo(1), "NODE STATE CODES": a star stands behind the state of a node that does not respond.
    return not any(each.startswith("unk") or each.endswith("*") for each in states)


def running_jobs() -> frozenset[str] | None:
    """The IDs of this user's jobs that have not ended; None when Slurm cannot say."""
    asked = queue(f"--user={os.getuid()}", "--format=%A")
    try:
        done = command.capture(asked, timeout_s=_ANSWER_TIMEOUT_S, check=False)
    except (CommandError, ToolNotFoundError):
        return None
    return frozenset(done.stdout.split()) if done.returncode == 0 else None


def cancel(job_name: str) -> list[str] | None:
    """End our own jobs of a name, waiting or running; returns their IDs, None where Slurm cannot say."""
    ours = (f"--user={os.getuid()}", f"--name={job_name}")
    asked = command.capture(queue("--format=%A", "--states=pending,running", *ours), check=False)
    if asked.returncode != 0:
        return None
    found = asked.stdout.split()
    if found:
        done = command.capture(_plain("scancel", "--quiet", *ours), check=False)
        if slurm_words.unreachable(done.stderr):
            return None
    return found


def srun(inner: Command, request: StepRequest, *, allocation: str | None = None) -> Command:
    """`inner` as one task on one compute node, its output and exit status being srun's.

    A step of `allocation` (a job ID), else of the job that we run in, else of a job of its own.
    Standard error joins standard output; a signal N comes back as exit status 128+N.
    """
    argv = [
        "srun",
        "--nodes=1",
        "--ntasks=1",
        # A step must not read, and so take from others, what our own caller pipes into us.
        "--input=none",
        # A site or a user may have set SLURM_EXPORT_ENV=NONE, and then HOME and PATH are missing.
        "--export=ALL",
        *_step_options(request),
    ]
    unset = frozenset[str]()
    if allocation is None and job_id() is None:
        argv += _job_options(request)
    else:
        if allocation is not None:
            argv.append(f"--jobid={allocation}")
        # Without --exact a step takes all CPUs of its node and the next one waits for its end. Inside
        # a step all may be taken by that step itself, so that an inner one would wait for ever.
        argv.append("--overlap" if in_step() else "--exact")
        if request.node:
            argv.append(f"--nodelist={request.node}")
        unset = frozenset(name for name in os.environ if _inherited(name))
    argv += ("sh", "-c", _TASK, "sh")
    return replace(inner.wrapped(*argv), unset=inner.unset | unset)


def attached(
    inner: Command, request: StepRequest, *, terminal: bool, options: tuple[str, ...] = ()
) -> Command:
    """`inner` as one task for a person who waits: standard input is theirs, and so is the terminal.

    A step of the job that we run in, else a job of its own. `options` are further ones of srun.
    """
    argv = ["srun", "--nodes=1", "--ntasks=1", "--export=ALL", *_step_options(request)]
    unset = frozenset[str]()
    if job_id() is None:
        argv += _job_options(request)
    else:
        # Whoever works in an allocation may have a step open in it already, and waits for no other.
        argv.append("--overlap")
        unset = frozenset(name for name in os.environ if _inherited(name))
    if terminal:
        argv.append("--pty")
    return replace(inner.wrapped(*argv, *options), unset=inner.unset | unset)


def _job_options(request: StepRequest) -> list[str]:
    options = (
        ("--account", request.account),
        ("--partition", request.partition),
        ("--time", str(request.time_limit_min or "")),
    )
    return [f"{flag}={value}" for flag, value in options if value]


def _step_options(request: StepRequest) -> list[str]:
    cpus = [f"--cpus-per-task={request.cpus}"] if request.cpus else []
    return [f"--job-name={request.job_name}", *cpus, *request.extra]


def of_the_job_around_us() -> frozenset[str]:
    """The variables that would be taken for options of a job that is submitted from here."""
    inherited = {name for name in os.environ if _inherited(name)}
    return frozenset(inherited | {"SLURM_JOB_ID", "SLURM_JOBID"} & os.environ.keys())


def _inherited(name: str) -> bool:
    return name.startswith(("SLURM_", "SRUN_")) and name not in _KEPT
