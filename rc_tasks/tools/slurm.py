"""Slurm: allocations, srun and squeue; `slurm_words` parses the error messages."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import CommandError, SlurmError, ToolNotFoundError, UnreachableError
from rc_tasks.tools import command, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest

INSTALL_HINT = "install Slurm's clients (Debian: apt-get install slurm-client), or ask the site for them"

# Slurm's programs read these before they ask DNS: packagers' paths, and the copy that slurmd keeps on
# nodes without files of their own (slurm.conf(5), "configless").
_CONFIGURATIONS = (
    Path("/etc/slurm/slurm.conf"),
    Path("/etc/slurm-llnl/slurm.conf"),
    Path("/run/slurm/conf/slurm.conf"),
)
# A DNS server answers sooner than this; the time-out for a missing server is longer.
_PROBE_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 30.0
# How often an absent controller is polled, and how long we wait for it without an allocation that would
# end.
POLL_S = 2.0
PATIENCE_S = 600.0
ABSENT = "the controller does not answer: waiting for it"
BACK = "the controller answers again"
# salloc itself gives up after ten seconds on a controller that does not answer.
_RELEASE_S = 15.0

# These variables name the cluster and the job for Slurm's programs. All other SLURM_ variables of a job
# hold the options of its own srun or sbatch, and our srun would take them as options: SLURM_CPU_BIND,
# SLURM_DISTRIBUTION, SLURM_NTASKS_PER_NODE, SLURM_MEM_PER_CPU, and more with each release (srun(1),
# "INPUT ENVIRONMENT VARIABLES").
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


# The line that ends the description of a granted allocation.
GRANTED = "== granted"

# The shell that runs as the task. Standard output and error share one pipe, as through two pipes their
# lines arrive in another order. The shell outlives a command that a signal ends: when a signal ends the
# task itself, srun drops the output that it has not read yet (in 31 of 100 runs, Slurm 22.05). The shell
# also lives on while the command cleans up after the signals that Slurm sends to both.
_TASK = 'exec 2>&1; trap : TERM INT HUP; "$@"; exit $?'


def configured() -> bool:
    """Return whether this host belongs to a Slurm cluster, within a few seconds at most."""
    if command.which("srun") is None:
        return False
    # SLURM_CONF says that this is a Slurm host, even if the file is missing. srun then waits a minute
    # for the file and fails, which is better than a build on a login node.
    if os.environ.get("SLURM_CONF") or job_id() is not None:
        return True
    if any(path.is_file() for path in _CONFIGURATIONS):
        return True
    # srun knows the site's own path and asks DNS; without any configuration even --version fails.
    try:
        probe = Command(("srun", "--version"))
        return command.capture(probe, timeout_s=_PROBE_TIMEOUT_S, check=False).returncode == 0
    except CommandError:
        return False


def job_id() -> str | None:
    """Return the ID of the job in whose allocation this process runs, or None."""
    return os.environ.get("SLURM_JOB_ID") or None


def was_requeued() -> bool:
    """Return whether the job that we run in was requeued, as when its node failed (sbatch(1))."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


# SLURM_MAX_NORMAL_STEP_ID in slurm_protocol_common.h. The numbers above it are the interactive step, the
# batch script, the external container and the pending step: -6 to -3 as numbers of 32 bits.
_LAST_STEP = 0xFFFFFFF0


def in_step() -> bool:
    """Return whether this process runs in a job step, and not in a batch script or under salloc.

    Batch scripts and salloc have special step numbers, if any: since Slurm 26.05 a batch script has -5.
    Slurm prints these with or without a sign (slurm_protocol_common.h, env.c).
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    return job_id() is not None and step.isdecimal() and int(step) <= _LAST_STEP


# The command of our salloc: it prints what was granted, then waits for the end of its standard input.
# That ends when we end, however we end, and salloc then releases the nodes.
_HOLDER = f'env | grep "^SLURM_"; scontrol show hostnames; echo "{GRANTED}"; exec cat'


class Granted(Struct, frozen=True):
    """An allocation: its job ID, and the number of CPUs on each of its nodes."""

    job_id: str
    cpus: Mapping[str, int]


class Allocation:
    """An allocation of our own: requested at once, released by `release` or when we end.

    If all else fails, `cancel` finds the job by `job_name`.
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
            # Without --cpus-per-task, take whole nodes: Slurm's default is one CPU of each.
            *([] if request.cpus else ["--exclusive"]),
            *_job_options(request),
            *_step_options(request),
            f"--job-name={job_name}",
        ]
        unset = frozenset(name for name in os.environ if _inherited(name))
        self._process = command.Companion(Command((*argv, "sh", "-c", _HOLDER), unset=unset))

    def wait(self, queued: Callable[[str], None]) -> Granted:
        """Wait for the allocation and return it; call `queued` with the job ID if Slurm queues the job.

        Raise SlurmError when Slurm refuses the request.
        """
        # If another thread closes the process, reading its output raises ValueError.
        with contextlib.suppress(ValueError):
            for line in self._process.lines():
                if line == GRANTED:
                    self._granted = True
                    return granted(self._lines)
                self._lines.append(line)
                if pending := re.search(r"Pending job allocation (\d+)", line):
                    queued(pending[1])
        # Signals such as Ctrl-C end us too, and are reported elsewhere.
        returncode = self._process.close() or 1
        error = slurm_words.explain(returncode, self._lines, self._request)
        raise error or SlurmError(
            f"Slurm gave no allocation for {self._request}",
            quote=tuple(self._lines[-command.TAIL_LINES :]),
            hint="`squeue --me` and `scontrol ping` tell how Slurm is",
        )

    @property
    def ended(self) -> bool:
        """Whether it has ended: released, timed out, cancelled or preempted."""
        return self._process.ended

    def release(self) -> bool:
        """Release the allocation and end all that runs in it; it may have ended already.

        Return whether the release is certain: when the controller does not answer, the job runs on.
        """
        # While salloc waits in the queue, its command does not run and cannot read its standard input.
        returncode = self._process.close(_RELEASE_S if self._granted else 0)
        lines = [*self._lines, *self._process.last_lines]
        if any(map(slurm_words.unreachable, lines)):
            return False
        # salloc's exit status is that of its command, even if salloc could not release the nodes.
        complaints = [line for line in lines if "Unable to clean up" in line and not _is_over(line)]
        # Without a grant that we have read, salloc may have left its job behind (--no-shell).
        if self._granted and returncode == 0 and not complaints:
            return True
        # Without its salloc, a job runs on until its time limit.
        return cancel(self._job_name) is not None


def _is_over(line: str) -> bool:
    return re.search(r"Invalid job id|already comple", line) is not None


def current_allocation() -> Granted:
    """Return the allocation that this process runs in.

    Raise UnreachableError when the controller does not answer, SlurmError when the job has no nodes.
    """
    variables = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("SLURM_")]
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    # The job ID stands alone after ssh to a node (pam_slurm_adopt) and after `salloc --no-shell`. The
    # other variables of a heterogeneous job have a suffix for each component; srun takes the first one.
    if not nodes:
        count, nodes = _running_on(job_id() or "")
        variables.append(f"SLURM_JOB_CPUS_PER_NODE={count}")
    hosts = command.capture(Command(("scontrol", "show", "hostnames", nodes))).stdout
    return granted([*variables, *hosts.splitlines()])


def _running_on(job_id: str) -> tuple[str, str]:
    """Return how many CPUs a running job has on its nodes, as `2(x3)`, and its nodes."""
    query = queue(f"--jobs={job_id}", "--states=running", "--noconvert", "--format=%A %C %D %N")
    done = command.capture(query, check=False)
    quote = tuple(done.stderr.splitlines())
    if slurm_words.unreachable(done.stderr):
        raise UnreachableError(f"Slurm cannot be asked for job {job_id}", quote=quote)
    for line in done.stdout.splitlines():
        component, cpus, count, nodes = (*line.split(), "", "", "", "")[:4]
        if component == job_id and nodes:
            return f"{max(1, int(cpus) // int(count))}(x{count})", nodes
    raise SlurmError(
        f"job {job_id} has no nodes: it does not run, or has ended",
        quote=quote,
        hint=slurm_words.LEAVE_JOB,
    )


def granted(lines: Iterable[str]) -> Granted:
    """Parse an allocation from the `SLURM_` variables of a process in it and the names of its nodes."""
    variables, nodes = {}, []
    for line in lines:
        if line.startswith("SLURM_"):
            key, _, value = line.partition("=")
            variables[key] = value
        elif line and not slurm_words.is_slurm_line(line):
            nodes.append(line)
    # The format is `72(x2),36`, in the order of the nodes (salloc(1), SLURM_JOB_CPUS_PER_NODE).
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", variables.get("SLURM_JOB_CPUS_PER_NODE", ""))
    cpus = chain.from_iterable(repeat(int(count), int(times or 1)) for count, times in counts)
    return Granted(
        variables.get("SLURM_JOB_ID", ""),
        dict(zip(nodes, chain(cpus, repeat(1)), strict=False)),
    )


def queue(*options: str) -> Command:
    """Return `squeue` of all partitions, hidden ones too, without a header."""
    return _plain("squeue", "--noheader", "--all", *options)


def _plain(*argv: str) -> Command:
    # squeue and scancel take variables such as SQUEUE_PARTITION, which users set for their own commands,
    # as filters.
    own = f"{argv[0].upper()}_"
    return Command(argv, unset=frozenset(name for name in os.environ if name.startswith(own)))


def time_left_s(job_id: str) -> float | None:
    """Return the seconds that a job may still run; None without a limit or an answer from Slurm."""
    printed = command.capture(queue(f"--jobs={job_id}", "--format=%L"), check=False).stdout.strip()
    return _seconds(printed)


def step_time_s(job_id: str, name: str) -> float:
    """Return the seconds that a job's step has run; 0 without such a step or an answer from Slurm."""
    query = queue("--steps", f"--jobs={job_id}", "--format=%M %j")
    for line in command.capture(query, check=False).stdout.splitlines():
        time_used, _, step = line.strip().partition(" ")
        if step.strip() == name:
            return _seconds(time_used) or 0.0
    return 0.0


def _seconds(text: str) -> float | None:
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def state(job_id: str) -> tuple[str, str]:
    """Return a job's state, such as `PENDING`, and Slurm's reason; empty when Slurm forgot the job.

    Raise UnreachableError when the controller does not answer.
    """
    done = command.capture(queue(f"--jobs={job_id}", "--states=all", "--format=%T %r"), check=False)
    if slurm_words.unreachable(done.stderr):
        raise UnreachableError(
            f"Slurm cannot be asked for job {job_id}", quote=tuple(done.stderr.splitlines())
        )
    job_state, _, reason = done.stdout.strip().partition(" ")
    return job_state, reason


def answers() -> bool:
    """Return whether Slurm's controller, or one of its backups, answers."""
    try:
        ping = Command(("scontrol", "ping"))
        return command.capture(ping, timeout_s=_ANSWER_TIMEOUT_S, check=False).returncode == 0
    except (CommandError, ToolNotFoundError):
        return False


_T = TypeVar("_T")


def patiently(ask: Callable[[], _T], say: Callable[[str], None], patience_s: float = PATIENCE_S) -> _T:
    """Return what `ask` returns. While the controller does not answer, wait for it and ask again.

    Call `say` with a line when the wait begins and when it ends. Raise what `ask` raises, but
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
    query = _plain("sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%T")
    states = command.capture(query, check=False).stdout.split()
    # sinfo(1), "NODE STATE CODES": a star follows the state of a node that does not respond.
    return not any(node_state.startswith("unk") or node_state.endswith("*") for node_state in states)


def running_jobs() -> frozenset[str] | None:
    """Return the IDs of this user's jobs that have not ended; None when Slurm does not answer."""
    query = queue(f"--user={os.getuid()}", "--format=%A")
    try:
        done = command.capture(query, timeout_s=_ANSWER_TIMEOUT_S, check=False)
    except (CommandError, ToolNotFoundError):
        return None
    return frozenset(done.stdout.split()) if done.returncode == 0 else None


def cancel(job_name: str) -> list[str] | None:
    """Cancel our own jobs of a name, pending or running. Return their IDs, or None without an answer."""
    filters = (f"--user={os.getuid()}", f"--name={job_name}")
    listing = command.capture(queue("--format=%A", "--states=pending,running", *filters), check=False)
    if listing.returncode != 0:
        return None
    job_ids = listing.stdout.split()
    if job_ids:
        done = command.capture(_plain("scancel", "--quiet", *filters), check=False)
        if slurm_words.unreachable(done.stderr):
            return None
    return job_ids


def srun(inner: Command, request: StepRequest, *, allocation: str | None = None) -> Command:
    """Return `inner` as one task on one compute node; srun has its output and exit status.

    It is a step of `allocation` (a job ID), else of the job that we run in, else of a job of its own.
    Standard error joins standard output. Signal N becomes exit status 128+N.
    """
    argv = [
        "srun",
        "--nodes=1",
        "--ntasks=1",
        # Without it, a step reads the standard input of our caller, and others miss it.
        "--input=none",
        # If a site or a user has set SLURM_EXPORT_ENV=NONE, HOME and PATH would be missing.
        "--export=ALL",
        *_step_options(request),
    ]
    unset = _empty()
    if allocation is None and job_id() is None:
        argv += _job_options(request)
    else:
        if allocation is not None:
            argv.append(f"--jobid={allocation}")
        # Without --exact a step takes all CPUs of its node and the next step waits for its end. The step
        # in which we run may have all CPUs, so an inner step would wait for ever without --overlap.
        argv.append("--overlap" if in_step() else "--exact")
        if request.node:
            argv.append(f"--nodelist={request.node}")
        argv += _component()
        unset = frozenset(name for name in os.environ if _inherited(name))
    argv += ("sh", "-c", _TASK, "sh")
    return replace(inner.wrapped(*argv), unset=inner.unset | unset)


def attached(
    inner: Command, request: StepRequest, *, terminal: bool, options: tuple[str, ...] = ()
) -> Command:
    """Return `inner` as one interactive task, with our standard input and, if wanted, a terminal.

    It is a step of the job that we run in, else a job of its own. `options` are further ones of srun.
    """
    argv = ["srun", "--nodes=1", "--ntasks=1", "--export=ALL", *_step_options(request)]
    unset = _empty()
    if job_id() is None:
        argv += _job_options(request)
    else:
        # A user in an allocation may have a step open already; without --overlap this one would wait for
        # it.
        argv += ("--overlap", *_component())
        unset = frozenset(name for name in os.environ if _inherited(name))
    if terminal:
        argv.append("--pty")
    return replace(inner.wrapped(*argv, *options), unset=inner.unset | unset)


def _component() -> list[str]:
    """Return the option for a step of the heterogeneous job that we run in; none in other jobs.

    Without it, and without the variables that we unset, srun finds no component for the step.
    """
    return ["--het-group=0"] if job_id() is not None and "SLURM_HET_SIZE" in os.environ else []


def _job_options(request: StepRequest) -> list[str]:
    options = (
        ("--account", request.account),
        ("--partition", request.partition),
        ("--time", str(request.time_limit_min or "")),
    )
    return [f"{flag}={value}" for flag, value in options if value]


def _step_options(request: StepRequest) -> list[str]:
    cpus = [f"--cpus-per-task={request.cpus * request.steps}"] if request.cpus else []
    return [f"--job-name={request.job_name}", *cpus, *request.extra]


def job_variables() -> frozenset[str]:
    """Return the variables that a job submitted from here would take as options."""
    inherited = {name for name in os.environ if _inherited(name)}
    return frozenset(inherited | {"SLURM_JOB_ID", "SLURM_JOBID"} & os.environ.keys())


def _empty() -> frozenset[str]:
    """Return the variables of a job that are set to nothing: srun refuses these."""
    return frozenset(name for name in _KEPT if os.environ.get(name) == "")


def _inherited(name: str) -> bool:
    return name.startswith(("SLURM_", "SRUN_")) and (name not in _KEPT or name in _empty())
