"""Slurm's command lines, and what we make of its complaints (texts recorded from Slurm 22.05)."""
# ruff: noqa: E501 recorded texts are not folded

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from rc_tasks.engine.run.diagnosis import diagnose
from rc_tasks.errors import NodeError, SlurmError, UnreachableError
from rc_tasks.state import logs
from rc_tasks.steps.error_report import ErrorKind, ErrorReport
from rc_tasks.tools import sbatch, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm import Granted, granted, srun
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.tools.slurm_words import explain

INNER = Command(
    ("podman", "build", "--tag=a b"), cwd=Path("/images"), env={"A": "1"}, unset=frozenset({"B"})
)
REQUEST = StepRequest(
    "podman:reasoning:2025.1",
    account="a-demo",
    partition="debug",
    time_limit_min=90,
    cpus=8,
    extra=("--mem=64G",),
)
MERGED = (
    "sh",
    "-c",
    'exec 2>&1; trap : TERM INT HUP; "$@"; exit $?',
    "sh",
    "podman",
    "build",
    "--tag=a b",
)


@pytest.fixture(autouse=True)
def login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that is in no job, wherever the tests themselves run."""
    for name in os.environ:
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


def options(wanted: Command) -> set[str]:
    return set(wanted.argv[1 : wanted.argv.index("sh")])


def test_outside_an_allocation_the_step_is_a_job_of_its_own() -> None:
    wanted = srun(INNER, REQUEST)
    assert wanted.argv == (
        "srun",
        "--nodes=1",
        "--ntasks=1",
        "--input=none",
        "--export=ALL",
        "--job-name=podman:reasoning:2025.1",
        "--cpus-per-task=8",
        "--mem=64G",
        "--account=a-demo",
        "--partition=debug",
        "--time=90",
        *MERGED,
    )
    assert (wanted.cwd, wanted.env, wanted.unset) == (Path("/images"), {"A": "1"}, frozenset({"B"}))


def test_what_is_not_asked_for_is_left_to_slurm() -> None:
    assert options(srun(INNER, StepRequest("env:a"))) == {
        "--nodes=1",
        "--ntasks=1",
        "--input=none",
        "--export=ALL",
        "--job-name=env:a",
    }


def test_a_step_of_our_own_allocation_names_it() -> None:
    found = options(srun(INNER, REQUEST, allocation="17"))
    assert {"--jobid=17", "--exact", "--cpus-per-task=8"} <= found
    assert not found & {"--account=a-demo", "--partition=debug", "--time=90"}


def test_in_a_batch_script_the_step_shares_the_job_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert slurm.job_id() == "17"
    assert not slurm.in_step()
    found = options(srun(INNER, REQUEST))
    assert "--exact" in found
    assert not found & {"--overlap", "--account=a-demo", "--partition=debug", "--time=90", "--jobid=17"}


def test_inside_a_step_the_inner_one_overlaps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert slurm.in_step()
    assert "--overlap" in options(srun(INNER, REQUEST))


@pytest.mark.parametrize(
    "special",
    [
        pytest.param("-6", id="interactive"),
        pytest.param("4294967290", id="interactive, as srun writes it"),
        pytest.param("-5", id="batch script from 26.05 on"),
        pytest.param("4294967291", id="batch script without a sign"),
        pytest.param("-4", id="external"),
        pytest.param("-3", id="pending"),
        pytest.param("-1", id="none"),
        pytest.param("", id="empty"),
    ],
)
def test_special_numbers_are_no_steps(monkeypatch: pytest.MonkeyPatch, special: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_STEP_ID", special)
    found = options(srun(INNER, REQUEST))
    assert "--exact" in found
    assert "--overlap" not in found


def test_the_options_of_the_outer_srun_do_not_reach_the_inner_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outer = {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_MEM_BIND": "local",
        "SLURM_DISTRIBUTION": "cyclic",
        "SLURM_NTASKS": "4",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": "2",
        "SRUN_CPUS_PER_TASK": "2",
        "SLURM_TRES_PER_TASK": "cpu=2",
        "SLURM_MEM_PER_CPU": "500",
    }
    identity = {"SLURM_JOB_ID": "17", "SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_CLUSTERS": "alps"}
    for name, value in (outer | identity).items():
        monkeypatch.setenv(name, value)
    assert srun(INNER, REQUEST).unset == outer.keys() | {"B"}


def test_on_a_login_node_what_people_set_for_srun_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ACCOUNT", "a-mine")
    assert "SLURM_ACCOUNT" not in srun(INNER, StepRequest("env:a")).unset


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's clients: each writes its arguments and its environment into a file, and says 42."""
    for tool in ("salloc", "sbatch", "squeue", "scancel"):
        program = tmp_path / "bin" / tool
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\n{{ echo "$*"; env; }} > "{tmp_path}/{tool}"\necho 42\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def test_what_people_set_for_allocations_and_batch_jobs_is_theirs(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("SALLOC", "SBATCH"):
        for choice in ("ACCOUNT", "PARTITION", "RESERVATION"):
            monkeypatch.setenv(f"{tool}_{choice}", "theirs")
    # sbatch believes them more than the lines of its script, by which the job is found again.
    monkeypatch.setenv("SBATCH_JOB_NAME", "theirs")
    monkeypatch.setenv("SBATCH_OUTPUT", "theirs")
    taken = slurm.Allocation(StepRequest("this run"), 1, "rc_tasks.test")
    with pytest.raises(SlurmError):
        taken.wait(lambda _job_id: None)
    assert {"SALLOC_ACCOUNT=theirs", "SALLOC_RESERVATION=theirs"} <= lines(tools / "salloc")
    script = '#!/bin/sh\n#SBATCH "--partition=ours #1"\ntrue --account=x\n'
    assert sbatch.submit(script, tools, StepRequest("night")) == "42"
    kept = {line for line in lines(tools / "sbatch") if line.startswith("SBATCH_")}
    assert kept == {"SBATCH_ACCOUNT=theirs", "SBATCH_RESERVATION=theirs"}


def lines(path: Path) -> set[str]:
    return set(path.read_text().splitlines())


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(slurm.running_jobs, id="running"),
        pytest.param(lambda: slurm.time_left_s("42"), id="time left"),
        pytest.param(lambda: slurm.state("42"), id="state"),
        pytest.param(lambda: slurm.cancel("rc_tasks.test"), id="cancel"),
        pytest.param(lambda: sbatch.jobs("night"), id="jobs"),
    ],
)
def test_what_people_leave_out_of_their_own_queue_is_a_job_all_the_same(
    ask: Callable[[], object], tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("SQUEUE", "SCANCEL"):
        monkeypatch.setenv(f"{tool}_PARTITION", "debug")
        monkeypatch.setenv(f"{tool}_STATE", "pending")
    with contextlib.suppress(TypeError):  # 42 is no line of every format
        ask()
    for tool in {"squeue", "scancel"} & set(os.listdir(tools)):
        assert f"\n{tool.upper()}_" not in (tools / tool).read_text()
    # Those in partitions that are hidden, too.
    assert " --all " in (tools / "squeue").read_text().partition("\n")[0]


@pytest.mark.parametrize(
    ("script", "conf", "expected"),
    [
        pytest.param(None, None, False, id="no srun"),
        pytest.param("sleep 60", "present", True, id="SLURM_CONF"),
        pytest.param("sleep 60", "missing", True, id="SLURM_CONF names a file that is not there"),
        pytest.param("echo slurm 22.05.8", None, True, id="srun finds its configuration"),
        pytest.param("exit 1", None, False, id="Debian's srun without any configuration"),
        pytest.param("sleep 60", None, False, id="DNS does not answer"),
    ],
)
@pytest.mark.timeout(10)
def test_configured(
    script: str | None, conf: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_CONFIGURATIONS", ())
    monkeypatch.setattr(slurm, "_PROBE_TIMEOUT_S", 0.5)
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin" if script else str(tools))
    if script is not None:
        (tools / "srun").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "srun").chmod(0o755)
    (tmp_path / "present").touch()
    if conf is not None:
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / conf))
    assert slurm.configured() is expected


RETRY = "run `doit` again: finished steps are kept"
EXPLAINED = {
    "no account": (
        1,
        """
        srun: error: Please name the account of your project: --account=...
        srun: error: Unable to allocate resources: Invalid account or account/partition combination specified
        """,
        StepRequest("podman:reasoning:2025.1"),
        """
        Slurm refused the account of podman:reasoning:2025.1 (no account, the default partition)
          | srun: error: Please name the account of your project: --account=...
          | srun: error: Unable to allocate resources: Invalid account or account/partition combination specified
          next: set `slurm.account` to one that may use this partition, or change `slurm.partition`;
                yours: `sacctmgr show associations user=$USER format=account,partition,qos`
                `doit help settings` names the files in which settings stand
        """,
    ),
    "wrong partition": (
        1,
        """
        srun: error: invalid partition specified: nope
        srun: error: Unable to allocate resources: Invalid partition name specified
        """,
        StepRequest("enroot:a", account="a-demo", partition="nope"),
        """
        Slurm refused the partition of enroot:a (account a-demo, partition nope)
          | srun: error: invalid partition specified: nope
          | srun: error: Unable to allocate resources: Invalid partition name specified
          next: set `slurm.partition` to one that is up and open to you: `sinfo --summarize`
                `doit help settings` names the files in which settings stand
        """,
    ),
    "partition is down": (
        1,
        "srun: error: Unable to allocate resources: Required partition not available (inactive or drain)",
        REQUEST,
        """
        Slurm refused the partition of podman:reasoning:2025.1 (account a-demo, partition debug)
          | srun: error: Unable to allocate resources: Required partition not available (inactive or drain)
          next: set `slurm.partition` to one that is up and open to you: `sinfo --summarize`
                `doit help settings` names the files in which settings stand
        """,
    ),
    "time limit refused": (
        1,
        "srun: error: Unable to allocate resources: "
        "Requested time limit is invalid (missing or exceeds some limit)",
        REQUEST,
        """
        Slurm refused the time limit of podman:reasoning:2025.1 (account a-demo, partition debug)
          | srun: error: Unable to allocate resources: Requested time limit is invalid (missing or exceeds some limit)
          next: lower `slurm.time_limit_min` (now 90), or change `slurm.partition`; what each
                allows: `sinfo --format='%P %l'`
                `doit help settings` names the files in which settings stand
        """,
    ),
    "QOS": (
        1,
        "srun: error: Unable to allocate resources: "
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        REQUEST,
        """
        a limit of Slurm refuses podman:reasoning:2025.1 (account a-demo, partition debug)
          | srun: error: Unable to allocate resources: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)
          next: a quality of service (QOS) limits the number, the size and the length of jobs: wait for your
                other jobs to end, change `slurm.account` or `slurm.partition`, or name a QOS in
                `slurm.extra`
        """,
    ),
    "too many CPUs": (
        1,
        "srun: error: Unable to create step for job 17: More processors requested than permitted",
        REQUEST,
        """
        the allocation is too small for podman:reasoning:2025.1
          | srun: error: Unable to create step for job 17: More processors requested than permitted
          next: change `slurm.cpus` (now 8) or `slurm.extra` (now --mem=64G),
                or run it in a job with more CPUs or memory
        """,
    ),
    "too little memory in the allocation": (
        1,
        "srun: error: Unable to create step for job 15: Memory required by task is not available",
        StepRequest("podman:a", cpus=1, node="node1", extra=("--mem=200M",)),
        """
        the allocation is too small for podman:a
          | srun: error: Unable to create step for job 15: Memory required by task is not available
          next: change `slurm.cpus` (now 1) or `slurm.extra` (now --mem=200M),
                or run it in a job with more CPUs or memory
        """,
    ),
    "more steps than a node has CPUs for": (
        1,
        "salloc: error: Job submit/allocate failed: Requested node configuration is not available",
        StepRequest("this run", account="a-demo", cpus=2, nodes=1, steps=2),
        """
        no node can give what this run (account a-demo, the default partition) asks for
          | salloc: error: Job submit/allocate failed: Requested node configuration is not available
          next: change `slurm.cpus` (now 2), `-n` (2 steps a node) or `slurm.extra` (now empty);
                what the nodes have: `sinfo --Node --format='%N %P %c %m %f'`
        """,
    ),
    "too many nodes": (
        1,
        "sbatch: error: Batch job submission failed: More processors requested than permitted",
        StepRequest("the nightly job", account="a-demo", cpus=1, nodes=9, settings_table="nightly"),
        """
        no node can give what the nightly job (account a-demo, the default partition) asks for
          | sbatch: error: Batch job submission failed: More processors requested than permitted
          next: change `slurm.cpus` (now 1), `nightly.nodes` (now 9) or `nightly.extra` (now empty);
                what the nodes have: `sinfo --Node --format='%N %P %c %m %f'`
        """,
    ),
    "node gone from the allocation": (
        1,
        "srun: error: Unable to create step for job 3: Requested node configuration is not available",
        StepRequest("enroot:a", cpus=1, node="node1"),
        """
        node1, the node of enroot:a, takes no steps any more
          | srun: error: Unable to create step for job 3: Requested node configuration is not available
          next: it may be down: `sinfo --list-reasons` tells;
                run `doit` again: finished steps are kept.
                If the node is well, change `slurm.cpus` (now 1) or `slurm.extra` (now empty)
        """,
    ),
    "wrong option": (
        255,
        """
        srun: unrecognized option '--bogus'
        Try "srun --help" for more information
        """,
        StepRequest("env:a", extra=("--bogus",)),
        """
        Slurm does not understand an option of env:a
          | srun: unrecognized option '--bogus'
          next: change `slurm.extra` (now --bogus); `srun --help` lists the options
        """,
    ),
    "allocation over": (
        1,
        """
        srun: error: Slurm job 17 has expired
        srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 17
        """,
        REQUEST,
        """
        the allocation of podman:reasoning:2025.1 has ended
          | srun: error: Slurm job 17 has expired
          | srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 17
          next: its time limit or somebody's scancel ended it: run the command again, perhaps with a
                longer `slurm.time_limit_min` (now 90)
        """,
    ),
    "no controller": (
        1,
        "srun: error: Unable to allocate resources: Unable to contact slurm controller (connect failure)",
        REQUEST,
        """
        Slurm cannot be reached for podman:reasoning:2025.1
          | srun: error: Unable to allocate resources: Unable to contact slurm controller (connect failure)
          next: see that SLURM_CONF, if it is set, names a file, and that `scontrol ping` finds the
                controller; then run the command again
        """,
    ),
    "no munge": (
        1,
        """
        srun: error: If munged is up, restart with --num-threads=10
        srun: error: Munge encode failed: Failed to connect to "/run/munge/munge.socket.2": Connection refused
        srun: error: slurm_send_node_msg: auth_g_create: REQUEST_RESOURCE_ALLOCATION has authentication error
        srun: error: Srun communication socket apparently being written to by something other than Slurm
        """,
        REQUEST,
        """
        Slurm cannot be reached for podman:reasoning:2025.1
          | srun: error: If munged is up, restart with --num-threads=10
          | srun: error: Munge encode failed: Failed to connect to "/run/munge/munge.socket.2": Connection refused
          | srun: error: slurm_send_node_msg: auth_g_create: REQUEST_RESOURCE_ALLOCATION has authentication error
          | srun: error: Srun communication socket apparently being written to by something other than Slurm
          next: see that SLURM_CONF, if it is set, names a file, and that `scontrol ping` finds the
                controller; then run the command again
        """,
    ),
    "SLURM_CONF names a file that is not there": (
        1,
        """
        srun: error: s_p_parse_file: cannot stat file /nonexistent: No such file or directory, retrying in 1sec up to 60sec
        srun: error: ClusterName needs to be specified
        srun: fatal: Unable to process configuration file
        """,
        StepRequest("env:a"),
        """
        Slurm cannot be reached for env:a
          | srun: error: s_p_parse_file: cannot stat file /nonexistent: No such file or directory, retrying in 1sec up to 60sec
          | srun: error: ClusterName needs to be specified
          | srun: fatal: Unable to process configuration file
          next: see that SLURM_CONF, if it is set, names a file, and that `scontrol ping` finds the
                controller; then run the command again
        """,
    ),
    "allocation over just now": (
        1,
        "srun: error: Task launch for StepId=17.0 failed on node nid001: Job credential revoked",
        StepRequest("env:a"),
        """
        the allocation of env:a has ended
          | srun: error: Task launch for StepId=17.0 failed on node nid001: Job credential revoked
          next: its time limit or somebody's scancel ended it: run the command again, perhaps with a
                longer `slurm.time_limit_min` (now the partition's default)
        """,
    ),
    "slurmd gone": (
        1,
        """
        srun: error: Task launch for StepId=14.3 failed on node nid001: Communication connection failure
        srun: error: Application launch failed: Communication connection failure
        srun: Job step aborted
        """,
        StepRequest("env:a", node="nid001"),
        """
        Slurm could not start env:a on its node
          | srun: error: Task launch for StepId=14.3 failed on node nid001: Communication connection failure
          | srun: error: Application launch failed: Communication connection failure
          | srun: Job step aborted
          next: the node may have failed: `sinfo --list-reasons` tells;
                run `doit` again: finished steps are kept
        """,
    ),
    "refused, and revoked as well": (
        1,
        """
        salloc: error: Memory specification can not be satisfied
        salloc: error: Job submit/allocate failed: Requested node configuration is not available
        salloc: Job allocation 4 has been revoked.
        """,
        StepRequest("this run", account="a-demo"),
        """
        no node can give what this run (account a-demo, the default partition) asks for
          | salloc: error: Memory specification can not be satisfied
          | salloc: error: Job submit/allocate failed: Requested node configuration is not available
          next: change `slurm.cpus` (now Slurm's default) or `slurm.extra` (now empty);
                what the nodes have: `sinfo --Node --format='%N %P %c %m %f'`
        """,
    ),
    "prolog failed": (
        1,
        "srun: error: Task launch for StepId=17.0 failed on node nid001: Job prolog failed",
        StepRequest("env:a"),
        """
        Slurm could not start env:a on its node
          | srun: error: Task launch for StepId=17.0 failed on node nid001: Job prolog failed
          next: the node may have failed: `sinfo --list-reasons` tells;
                run `doit` again: finished steps are kept
        """,
    ),
    "unknown complaint": (
        1,
        "srun: error: Unable to create step for job 17: Slurm has had enough",
        StepRequest("env:a"),
        """
        Slurm could not run env:a
          | srun: error: Unable to create step for job 17: Slurm has had enough
          next: if an option is at fault, `slurm.extra` (now empty) is the place; else ask the site
        """,
    ),
    "cancelled while waiting": (
        1,
        """
        srun: job 36 queued and waiting for resources
        srun: Job has been cancelled
        srun: error: Unable to allocate resources: Job/step already completing or completed
        """,
        REQUEST,
        f"""
        podman:reasoning:2025.1 was cancelled, by somebody's scancel or by the site
          | srun: Job has been cancelled
          | srun: error: Unable to allocate resources: Job/step already completing or completed
          next: {RETRY}
        """,
    ),
    "cancelled": (
        143,
        """
        STEP 3/9: RUN pip install torch
        srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
        slurmstepd: error: *** STEP 12.0 ON nid001 CANCELLED AT 2026-11-22T09:52:01 ***
        srun: error: nid001: task 0: Terminated
        """,
        REQUEST,
        f"""
        podman:reasoning:2025.1 was cancelled, by somebody's scancel or by the site
          | slurmstepd: error: *** STEP 12.0 ON nid001 CANCELLED AT 2026-11-22T09:52:01 ***
          | srun: error: nid001: task 0: Terminated
          next: {RETRY}
        """,
    ),
    "ended by us": (
        137,
        """
        srun: forcing job termination
        srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
        slurmstepd: error: *** STEP 28.0 ON nid001 CANCELLED AT 2026-11-22T09:57:38 ***
        srun: error: nid001: task 0: Killed
        """,
        REQUEST,
        f"""
        podman:reasoning:2025.1 was ended because its srun got a signal to end
          | srun: forcing job termination
          | slurmstepd: error: *** STEP 28.0 ON nid001 CANCELLED AT 2026-11-22T09:57:38 ***
          | srun: error: nid001: task 0: Killed
          next: Ctrl-C, scancel of the job around this run, and that job's time limit do this;
                {RETRY}
        """,
    ),
    "out of time": (
        143,
        """
        slurmstepd: error: *** STEP 15.0 ON nid001 CANCELLED AT 2026-11-22T09:53:27 DUE TO TIME LIMIT ***
        srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
        srun: error: nid001: task 0: Terminated
        """,
        StepRequest("podman:a"),
        """
        podman:a ran out of time
          | slurmstepd: error: *** STEP 15.0 ON nid001 CANCELLED AT 2026-11-22T09:53:27 DUE TO TIME LIMIT ***
          | srun: error: nid001: task 0: Terminated
          next: raise `slurm.time_limit_min` (now the partition's default), up to what the partition allows:
                `sinfo --format='%P %l'`
        """,
    ),
    "out of memory, told by accounting": (
        137,
        """
        slurmstepd-node1: error: StepId=10.0 exceeded memory limit (328286208 > 104857600), being killed
        srun: Exceeded job memory limit
        srun: Job step aborted: Waiting up to 3 seconds for job step to finish.
        slurmstepd-node1: error: *** STEP 10.0 ON node1 CANCELLED AT 2026-11-22T09:55:16 ***
        srun: Exceeded job memory limit
        srun: error: node1: task 0: Killed
        """,
        REQUEST,
        """
        podman:reasoning:2025.1 ran out of memory
          | slurmstepd-node1: error: StepId=10.0 exceeded memory limit (328286208 > 104857600), being killed
          | srun: Exceeded job memory limit
          | slurmstepd-node1: error: *** STEP 10.0 ON node1 CANCELLED AT 2026-11-22T09:55:16 ***
          | srun: error: node1: task 0: Killed
          next: ask for more with `slurm.extra`, as in ["--mem=64G"];
                within a job of your own, with the --mem of that job
        """,
    ),
    "out of memory, told by cgroups": (
        1,
        """
        slurmstepd: error: Detected 1 oom_kill event in StepId=10.0. Some of the step tasks have been OOM Killed.
        srun: error: nid001: task 0: Out Of Memory
        """,
        REQUEST,
        """
        podman:reasoning:2025.1 ran out of memory
          | slurmstepd: error: Detected 1 oom_kill event in StepId=10.0. Some of the step tasks have been OOM Killed.
          | srun: error: nid001: task 0: Out Of Memory
          next: ask for more with `slurm.extra`, as in ["--mem=64G"];
                within a job of your own, with the --mem of that job
        """,
    ),
    "node failure, for which srun returns 0": (
        0,
        """
        srun: error: Node failure on node3
        srun: error: Node failure on node3
        srun: Job step aborted: Waiting up to 3 seconds for job step to finish.
        """,
        REQUEST,
        """
        the node of podman:reasoning:2025.1 failed
          | srun: error: Node failure on node3
          next: run `doit` again: finished steps are kept. If the same node fails again, leave it out with
                `slurm.extra`, as in ["--exclude=NODE"], and tell the site
        """,
    ),
    "slurmstepd gone, for which srun returns 0": (
        0,
        """
        srun: Job step aborted: Waiting up to 3 seconds for job step to finish.
        srun: error: Timed out waiting for job step to complete
        """,
        REQUEST,
        """
        Slurm lost sight of podman:reasoning:2025.1
          | srun: error: Timed out waiting for job step to complete
          next: its node may have failed: `sinfo --list-reasons` tells;
                run `doit` again: finished steps are kept
        """,
    ),
    "working directory": (
        1,
        """
        slurmstepd: error: couldn't chdir to `/tmp/my images': No such file or directory: going to /tmp instead
        slurmstepd: error: couldn't chdir to `/tmp/my images': No such file or directory: going to /tmp instead
        /usr/bin/python3: No module named rc_tasks
        srun: error: nid001: task 0: Exited with exit code 1
        """,
        REQUEST,
        """
        podman:reasoning:2025.1 did not find its working directory on the compute node
          | slurmstepd: error: couldn't chdir to `/tmp/my images': No such file or directory: going to /tmp instead
          | srun: error: nid001: task 0: Exited with exit code 1
          next: put the checkout on a file system that the compute nodes share; /tmp is not one
        """,
    ),
}


@pytest.mark.parametrize(
    ("returncode", "log", "request_", "expected"), EXPLAINED.values(), ids=EXPLAINED.keys()
)
def test_what_slurm_did_is_told(returncode: int, log: str, request_: StepRequest, expected: str) -> None:
    error = explain(returncode, dedent(log).splitlines(), request_)
    assert str(error) == dedent(expected).strip("\n")


@pytest.mark.parametrize(
    ("returncode", "log", "request_", "expected"), EXPLAINED.values(), ids=EXPLAINED.keys()
)
def test_slurm_26_05_puts_a_time_before_the_words_of_the_daemon(
    returncode: int, log: str, request_: StepRequest, expected: str
) -> None:
    def of_26_05(text: str) -> str:
        text = re.sub(r"slurmstepd\S*: error: ", "[2026-11-28T16:45:03.978] error: ", text)
        return re.sub(r"(CANCELLED AT \S+) \*\*\*", r"\1 DUE to SIGNAL Terminated ***", text)

    test_what_slurm_did_is_told(returncode, of_26_05(log), request_, of_26_05(expected))


@pytest.mark.parametrize(
    ("returncode", "log"),
    [
        pytest.param(0, "", id="success"),
        pytest.param(
            1, "[2026-11-28T16:45:03.978] error: account: CANCELLED AT the registry", id="a dated error"
        ),
        pytest.param(0, "srun: job 3 queued and waiting for resources", id="success after a queue"),
        pytest.param(
            0, "slurmstepd: error: couldn't chdir to `/x': No such file", id="success elsewhere"
        ),
        pytest.param(1, "", id="silent failure"),
        pytest.param(
            1, "Error: building at STEP 3: CANCELLED AT the registry", id="words of the command"
        ),
        pytest.param(7, "boom\nsrun: error: node1: task 0: Exited with exit code 7", id="exit status"),
        pytest.param(
            137, "srun: error: node1: task 0: Killed\nsrun: Force Terminated StepId=8.0", id="own signal"
        ),
        pytest.param(
            7,
            "srun: error: Unable to confirm allocation for job 3: Unable to contact slurm controller\n"
            "srun: error: node1: task 0: Exited with exit code 7",
            id="a complaint that did not stop it",
        ),
    ],
)
def test_a_failure_of_the_command_itself_is_not_slurms(returncode: int, log: str) -> None:
    assert explain(returncode, log.splitlines(), REQUEST) is None


@pytest.mark.parametrize(
    "text",
    [
        "srun: error: Unable to allocate resources: Unable to contact slurm controller (connect failure)",
        "srun: error: Unable to confirm allocation for job 1: Socket timed out on send/recv operation",
        "srun: error: Unable to create step for job 1: Zero Bytes were transmitted or received",
        "srun: error: Unable to create step for job 1: Communication connection failure",
        "srun: error: Unable to create step for job 1: Message receive failure",
        "srun: error: Unable to create step for job 1: Rate limit exceeded, please retry momentarily",
        "srun: error: Unable to create step for job 1: Connection timed out establishing",
        "srun: error: Slurm controller not responding, sleeping and retrying.",
        "salloc: error: Job submit/allocate failed: Socket timed out on send/recv operation",
        "salloc: error: Job submit/allocate failed: Slurm backup controller in standby mode",
        "salloc: error: Unable to clean up job allocation 1: Unable to contact slurm controller (connect"
        " failure)",
        "sbatch: error: Batch job submission failed: Controller is in standby mode, try a different"
        " controller",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_get_job_steps error: Socket timed out on send/recv operation",
        "scancel: error: Kill job error on job id 1: Connection refused",
        "srun: error: fetch_config: failed to fetch remote configs: Socket timed out on send/recv operation",
    ],
)
def test_a_controller_that_does_not_answer_is_recognised(text: str) -> None:
    assert slurm_words.unreachable(text)
    if text.startswith(("srun", "salloc", "sbatch")):
        error = explain(1, [text, "srun: Check SLURM_JOB_ID. Expired or invalid job 1"], REQUEST)
        assert isinstance(error, UnreachableError)


@pytest.mark.parametrize(
    "text",
    [
        "srun: error: Unable to confirm allocation for job 1: Invalid job id specified",
        "srun: error: Unable to create step for job 1: Requested nodes are busy",
        "srun: error: Task launch for StepId=1.0 failed on node nid001: Socket timed out on send/recv operation",
        "srun: error: eio_message_socket_accept: slurm_receive_msg[10.0.0.1:60830]: Zero Bytes were"
        " transmitted or received",
        "srun: error: Munge encode failed: Failed to connect to socket: Connection refused",
        "Error: reading https://registry/v2/: Connection refused",
    ],
)
def test_other_silences_are_not_the_controllers(text: str) -> None:
    assert not slurm_words.unreachable(text)


@pytest.mark.parametrize(
    ("log", "what"),
    [
        ("srun: error: Node failure on nid001", "the node of podman:a failed"),
        (
            "srun: error: nid001: task 0: Killed\nsrun: Force Terminated StepId=8.0",
            "podman:a was killed from outside",
        ),
        (
            "Killed\nsrun: error: nid001: task 0: Exited with exit code 137",
            "podman:a was killed from outside",
        ),
        (
            "slurmstepd: error: *** STEP 8.0 STEPD TERMINATED ON nid001 AT 2026-11-22T09:52:01 DUE TO JOB NOT"
            " ENDING WITH SIGNALS ***",
            "Slurm lost sight of podman:a",
        ),
        (
            "slurmstepd: error: *** STEP 8.0 ON nid001 UNCORRECTABLE MEMORY ERROR AT 2026-11-22T09:52:01 ***",
            "Slurm lost sight of podman:a",
        ),
        (
            "slurmstepd: error: *** STEP 8.0 ON nid001 FAILED (non-zero exit code or other failure mode) ***",
            "Slurm lost sight of podman:a",
        ),
        ("srun: error: Aborting, io error and missing step on node 0", "Slurm lost sight of podman:a"),
        ("srun: error: Aborting, step missing and io error on node 0", "Slurm lost sight of podman:a"),
        ("srun: error: Aborting, can not test connection to node 0.", "Slurm lost sight of podman:a"),
        (
            "srun: error: step_launch_notify_io_failure: aborting, io error with slurmstepd on node 0",
            "Slurm lost sight of podman:a",
        ),
        ("srun: error: Cannot communicate with node 0.  Aborting job.", "Slurm lost sight of podman:a"),
        (
            "srun: error: timeout waiting for task launch, started 0 of 1 tasks",
            "Slurm could not start podman:a on its node",
        ),
        (
            "srun: error: Task launch for StepId=8.0 failed on node nid001: Message receive failure",
            "Slurm could not start podman:a on its node",
        ),
    ],
)
def test_what_slurm_ends_by_itself_is_tried_elsewhere(log: str, what: str) -> None:
    error = explain(137, log.splitlines(), StepRequest("podman:a"), guarded=True)
    assert isinstance(error, NodeError)
    assert error.what == what


# Recorded from 24.11.5 and 26.05.5, of which only the latter names a signal; node failure and oom_kill, which
# a cluster on one host without cgroups has not, as 22.05 words them.
@pytest.mark.parametrize("before", ["slurmstepd-node1: error:", "[2026-11-29T06:45:29.793] error:"])
@pytest.mark.parametrize(
    ("words", "what", "elsewhere"),
    [
        ("*** STEP 2.0 ON node1 CANCELLED AT 2026-11-29T06:45:29 ***", "was cancelled", False),
        (
            "*** STEP 2.0 ON node1 CANCELLED AT 2026-11-29T06:45:29 DUE to SIGNAL Terminated ***",
            "was cancelled",
            False,
        ),
        (
            "*** STEP 3.0 ON node1 CANCELLED AT 2026-11-29T06:45:42 DUE to SIGNAL Killed ***",
            "was cancelled",
            False,
        ),
        (
            "*** STEP 5.0 ON node1 CANCELLED AT 2026-11-29T06:43:06 DUE TO PREEMPTION ***",
            "had to make room",
            True,
        ),
        (
            "*** STEP 5.0 ON node1 CANCELLED AT 2026-11-29T06:43:06 DUE TO TIME LIMIT ***",
            "ran out of time",
            False,
        ),
        (
            "*** STEP 5.0 ON node1 CANCELLED AT 2026-11-29T06:43:06 DUE TO NODE FAILURE ***",
            "failed",
            True,
        ),
        (
            "StepId=4.0 exceeded memory limit (309145600 > 52428800), being killed",
            "ran out of memory",
            False,
        ),
        (
            "Detected 1 oom_kill event in StepId=4.0. Some of the step tasks have been OOM Killed.",
            "ran out of memory",
            False,
        ),
    ],
)
def test_the_steps_daemon_is_understood_with_its_name_and_with_the_time(
    before: str, words: str, what: str, *, elsewhere: bool
) -> None:
    line = f"{before} {words}"
    error = explain(143, [line, "srun: error: node1: task 0: Terminated"], REQUEST)
    assert error is not None
    assert what in error.what
    assert error.quote[0] == line
    assert isinstance(error, NodeError) is elsewhere


@pytest.mark.parametrize(
    "line",
    [
        "[2026-11-29T06:45:29.793] error: job was CANCELLED AT the registry",
        "[2026-11-29 06:45:29] error: *** STEP 2.0 ON node1 CANCELLED AT 2026-11-29T06:45:29 ***",
        "[2026-11-29T06:45:29.793] info: StepId=4.0 exceeded memory limit",
        "log: [2026-11-29T06:45:29.793] error: *** STEP 2.0 ON node1 CANCELLED ***",
    ],
)
def test_a_command_may_log_with_the_time_too(line: str) -> None:
    assert not slurm_words.is_slurm_line(line)
    assert explain(1, [line], REQUEST) is None


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ("nid001", "nid001, the node of podman:a:1, failed"),
        ("", "the node of podman:a:1 failed"),
    ],
)
def test_the_node_that_failed_is_named_where_it_is_known(node: str, told: str) -> None:
    error = explain(0, ["srun: error: Node failure on nid001"], StepRequest("podman:a:1", node=node))
    assert isinstance(error, NodeError)
    assert error.what == told


@pytest.mark.parametrize(
    ("variables", "hosts", "cpus"),
    [
        (["SLURM_JOB_CPUS_PER_NODE=2"], ["a"], {"a": 2}),
        (["SLURM_JOB_CPUS_PER_NODE=72(x2),36"], ["a", "b", "c"], {"a": 72, "b": 72, "c": 36}),
        ([], ["a", "b"], {"a": 1, "b": 1}),
    ],
    ids=["one node", "several", "unknown"],
)
def test_what_was_granted_is_read(variables: list[str], hosts: list[str], cpus: dict[str, int]) -> None:
    lines = ["SLURM_JOB_ID=4711", *variables, "salloc: Granted job allocation 4711", "", *hosts]
    assert granted(lines) == Granted("4711", cpus)


def test_memory_that_a_restarted_controller_refuses_is_asked_for_again() -> None:
    line = "srun: error: Unable to create step for job 15: Memory required by task is not available"
    assert isinstance(explain(1, [line], REQUEST, guarded=True), UnreachableError)
    assert not isinstance(explain(1, [line], REQUEST), UnreachableError)


def test_a_shell_that_has_outlived_its_job_is_told_to_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "22")
    error = explain(1, ["srun: error: Slurm job 22 has expired"], StepRequest("podman:a"))
    assert isinstance(error, SlurmError)
    assert not isinstance(error, NodeError)
    assert error.what == "job 22, in which podman:a was to run, has ended"
    assert "`unset SLURM_JOB_ID`" in (error.hint or "")


def test_a_job_id_that_is_empty_does_not_reach_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "")
    assert slurm.job_id() is None
    assert "SLURM_JOB_ID" in srun(INNER, REQUEST, allocation="17").unset
    assert "SLURM_JOB_ID" in srun(INNER, REQUEST).unset
    assert "SLURM_JOB_ID" in slurm.attached(INNER, REQUEST, terminal=False).unset


def test_a_step_of_a_heterogeneous_job_names_its_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    assert "--het-group=0" not in options(srun(INNER, REQUEST, allocation="17"))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "--het-group=0" in options(srun(INNER, REQUEST))
    assert "--het-group=0" in slurm.attached(INNER, REQUEST, terminal=False).argv


@pytest.mark.parametrize(
    ("daemon", "text", "elsewhere"),
    [
        pytest.param(
            "slurmstepd: error: *** STEP 12.0 ON nid001 CANCELLED AT 2026-11-22T09:52:01 ***",
            "podman:a was cancelled, by somebody's scancel or by the site",
            False,
            id="scancel",
        ),
        pytest.param(
            "[2026-11-28T16:45:03.978] error: *** JOB 12 ON nid001 CANCELLED AT 2026-11-22T09:52:01"
            " DUE TO PREEMPTION ***",
            "podman:a had to make room for another job",
            True,
            id="preemption",
        ),
        pytest.param("", "RUN pip failed with exit status 143", False, id="by itself"),
    ],
)
def test_a_run_that_died_because_slurm_ended_its_step_is_not_blamed(
    tmp_path: Path, daemon: str, text: str, elsewhere: bool
) -> None:
    log = tmp_path / "step.log"
    failed = 'STEP 3/9: RUN pip\nError: building at STEP "RUN pip": exit status 143'
    message = "podman build failed with exit status 143"
    log.write_text(f"{daemon}\n{failed}\n{message}\n")
    ErrorReport(ErrorKind.FAILED, message, after_tool=True).write(logs.error_report(log))
    found = diagnose(1, log, StepRequest("podman:a"))
    assert (found.text.splitlines()[0], found.elsewhere) == (text, elsewhere)


@pytest.mark.parametrize(
    ("program", "request_", "told"),
    [
        pytest.param(
            "salloc",
            StepRequest("this run"),
            'SLURM_ACCOUNT does not count for salloc: write account = "a06" below [slurm]\n'
            "in ~/.config/rc_tasks.toml, or\nset `slurm.account`",
            id="a run",
        ),
        pytest.param(
            "sbatch",
            StepRequest("nightly", settings_table="nightly"),
            'SLURM_ACCOUNT does not count for sbatch: write account = "a06" below [nightly]\n'
            "in ~/.config/rc_tasks.toml, or\nset `nightly.account`",
            id="a nightly run",
        ),
        pytest.param("srun", StepRequest("local:a"), "set `slurm.account`", id="srun reads it"),
        pytest.param("salloc", StepRequest("x", account="a07"), "set `slurm.account`", id="another"),
    ],
)
def test_an_account_in_a_variable_that_does_not_count_is_told(
    monkeypatch: pytest.MonkeyPatch, program: str, request_: StepRequest, told: str
) -> None:
    monkeypatch.setenv("SLURM_ACCOUNT", "a06")
    line = (
        f"{program}: error: Job submit/allocate failed: Invalid account or account/partition combination"
    )
    error = explain(1, [line], request_)
    assert error is not None
    assert str(error.hint).startswith(told)
