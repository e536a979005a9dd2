"""Steps on a real Slurm cluster: what comes back, what ends, and what is said when Slurm refuses."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.errors import SlurmError
from rc_tasks.tools import command, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm import Allocation, Granted, srun
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.tools.slurm_words import explain
from tests.support.cluster import ACCOUNT, Cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
REQUEST = StepRequest("podman:reasoning:2025.1", account=ACCOUNT)
# How long anything here may take that does not wait for Slurm's own slow clocks.
SOON_S = 15.0
# Slurm looks at time limits every half minute.
TIME_LIMIT_CHECK_S = 45.0

Run = Callable[[Command], tuple[int, list[str]]]


@pytest.fixture(autouse=True)
def login_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A shell on the cluster that is in no job; leaves the cluster empty."""
    for name in os.environ:
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield
    for job in jobs(cluster):
        cluster.client("scancel", job)
    until(lambda: not jobs(cluster))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command as a step is run, and gives its exit status and the lines of its log."""

    def run_one(wanted: Command) -> tuple[int, list[str]]:
        log = tmp_path / f"{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            returncode = command.stream(wanted, output)
        return returncode, log.read_text(errors="replace").splitlines()

    return run_one


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads in which steps run beside the test; what still runs at its end is ended."""
    with ThreadPoolExecutor() as threads:
        yield threads
        command.end_all()


@pytest.fixture
def allocation(cluster: Cluster) -> Iterator[str]:
    """The job ID of an allocation of one node with two CPUs."""
    with allocated(StepRequest("rc", account=ACCOUNT, cpus=2)) as granted:
        yield granted.job_id


@contextlib.contextmanager
def allocated(request: StepRequest, nodes: int = 1) -> Iterator[Granted]:
    """An allocation of our own, as a run takes one."""
    taken = Allocation(request, nodes, "rc_tasks.test")
    try:
        yield taken.wait(lambda _job_id: None)
    finally:
        taken.release()


def jobs(running: Cluster, state: str = "pending,running,completing") -> list[str]:
    return running.client("squeue", "--noheader", "--format=%i", f"--states={state}").stdout.split()


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON_S
    while not happened():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.05)


def sh(script: str) -> Command:
    return Command(("sh", "-c", script))


def python(script: str, *argv: str) -> Command:
    return Command((sys.executable, "-c", script, *argv))


def told(returncode: int, lines: list[str], request: StepRequest = REQUEST) -> str:
    error = explain(returncode, lines, request)
    assert error is not None, f"status {returncode}: {lines}"
    return str(error)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        pytest.param("true", 0, id="success"),
        pytest.param("exit 1", 1, id="failure"),
        pytest.param("exit 7", 7, id="status 7"),
        pytest.param("kill -KILL $$", 137, id="killed"),
        pytest.param("kill -TERM $$", 143, id="terminated"),
    ],
)
def test_output_and_exit_status_come_back(run: Run, script: str, status: int) -> None:
    returncode, lines = run(
        srun(sh(f"echo out; echo err >&2; echo on $SLURMD_NODENAME; {script}"), REQUEST)
    )
    assert returncode == status
    # srun's own line about the exit status comes by another way, and so anywhere.
    out, err, on, *shell = (line for line in lines if not slurm_words.is_slurm_line(line))
    assert (out, err) == ("out", "err")
    assert re.fullmatch("on node[123]", on)
    assert shell == (["Killed"] if status == 137 else ["Terminated"] if status == 143 else [])
    assert explain(returncode, lines, REQUEST) is None


@pytest.mark.parametrize("attempt", range(10))
def test_the_last_words_of_a_killed_command_are_kept(run: Run, attempt: int) -> None:
    _, lines = run(srun(sh("echo last words; kill -KILL $$"), REQUEST))
    assert "last words" in lines


def test_a_cancelled_command_may_clean_up(run: Run, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    sign = tmp_path / "started"
    # Not at once: srun of Slurm 26.05 was seen to return 0 when a step was cancelled as it began.
    script = "trap 'sleep 0.2; echo cleaned up; exit 9' TERM; sleep 1; echo > \"$0\"; sleep 1000 & wait"
    future = in_background(pool, run, srun(Command(("sh", "-c", script, str(sign))), REQUEST), sign)
    command.capture(Command(("scancel", f"--account={ACCOUNT}")))
    returncode, lines = future.result(SOON_S)
    assert (returncode, "cleaned up" in lines) == (9, True)
    assert " CANCELLED AT " in told(returncode, lines)


def test_a_missing_program_is_its_own_failure(run: Run) -> None:
    returncode, lines = run(srun(Command(("no-such-program",)), REQUEST))
    assert returncode == 127
    assert any("no-such-program: not found" in line for line in lines)
    assert explain(returncode, lines, REQUEST) is None


def test_no_line_is_lost_or_moved_between_the_two_outputs(run: Run) -> None:
    script = """
import os
for number in range(3000):
    os.write(1 + number % 2, b"%d %s\\n" % (number, b"x" * (number % 300)))
os.write(2, b"no newline at the end")
"""
    _, lines = run(srun(python(script), REQUEST))
    assert [int(line.split()[0]) for line in lines[:-1]] == list(range(3000))
    assert lines[-1] == "no newline at the end"


def test_arguments_environment_and_directory_arrive_unchanged(run: Run, tmp_path: Path) -> None:
    hostile = [
        "",
        " a  b ",
        "it's",
        '"$HOME"',
        "$(id)",
        "`id`",
        "two\nlines",
        "größe ☃",
        "--help",
        "a\\nb",
        "*",
    ]
    directory = tmp_path / "it's a $DIR: ü"
    directory.mkdir()
    script = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['RC_TEST']]))"
    )
    inner = Command(python(script, *hostile).argv, cwd=directory, env={"RC_TEST": 'a, "b"\n$c ü'})
    returncode, lines = run(srun(inner, REQUEST))
    assert returncode == 0, lines
    assert json.loads(lines[0]) == [hostile, str(directory), 'a, "b"\n$c ü']


@pytest.mark.parametrize("job_name", ["podman:a:1.0", "env:größe", "-x", "it's a $NAME"])
def test_any_name_is_a_job_name(run: Run, job_name: str) -> None:
    returncode, lines = run(srun(sh('echo "$SLURM_JOB_NAME"'), StepRequest(job_name, account=ACCOUNT)))
    assert (returncode, lines) == (0, [job_name])


def test_a_step_does_not_wait_for_standard_input(run: Run) -> None:
    assert run(srun(sh("cat; echo done"), REQUEST)) == (0, ["done"])


def test_the_nodes_are_different_ones(run: Run, cluster: Cluster) -> None:
    seen = set()
    for name in cluster.node_names:
        request = StepRequest("where", account=ACCOUNT, extra=(f"--nodelist={name}",))
        seen.add(tuple(own(run(srun(sh("echo $SLURMD_NODENAME"), request))[1])))
    assert seen == {("node1",), ("node2",), ("node3",)}


def test_this_host_has_slurm() -> None:
    assert slurm.configured()
    assert slurm.job_id() is None
    assert not slurm.in_step()


@pytest.mark.timeout(60)
def test_steps_of_an_allocation_share_its_node(
    run: Run, pool: ThreadPoolExecutor, allocation: str, tmp_path: Path
) -> None:
    # Each waits for the other's file, so this ends only when both run at the same time.
    script = 'touch "$1"; until [ -e "$2" ]; do sleep 0.05; done; echo $SLURM_JOB_ID on $SLURMD_NODENAME'

    def step(mine: str, other: str) -> Future[tuple[int, list[str]]]:
        inner = Command(("sh", "-c", script, "sh", mine, other), cwd=tmp_path)
        return pool.submit(run, srun(inner, StepRequest("step", cpus=1), allocation=allocation))

    both = [step("a", "b"), step("b", "a")]
    for status, lines in (one.result() for one in both):
        assert status == 0, lines
        assert re.fullmatch(rf"{allocation} on node[123]", own(lines)[-1])


def own(lines: list[str]) -> list[str]:
    """The lines of the command: srun's words can stand anywhere among them."""
    return [line for line in lines if not slurm_words.is_slurm_line(line)]


NESTED = """
import sys
from rc_tasks.tools import command, slurm, slurm_words
from rc_tasks.tools.command import Command
print("in step:", slurm.in_step(), flush=True)
show = "echo $SLURM_JOB_NAME in $SLURM_JOB_ID; env | grep SLURM_NTASKS_PER_NODE; exit 5"
inner = Command(("sh", "-c", show))
sys.exit(command.stream(slurm.srun(inner, slurm.StepRequest("inner", account="a-wrong", cpus=2)), None))
"""


@pytest.mark.timeout(60)
def test_a_step_inside_a_step_does_not_wait_for_it(run: Run, allocation: str) -> None:
    outer = Command(python(NESTED).argv, env={"PYTHONPATH": str(ROOT)})
    # The outer step has all CPUs of the allocation, so that nothing is left for the inner one.
    returncode, lines = run(srun(outer, StepRequest("outer", cpus=2), allocation=allocation))
    assert own(lines)[:2] == ["in step: True", f"inner in {allocation}"]
    assert returncode == 5
    assert explain(returncode, lines, REQUEST) is None


@pytest.mark.timeout(60)
def test_a_step_of_a_batch_script_takes_none_of_its_binding(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "batch.log"
    script = tmp_path / "batch.py"
    script.write_text(f"#!{sys.executable}\n{NESTED}")
    options = ("--ntasks=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem-per-cpu=300")
    argv = ("sbatch", "--parsable", f"--account={ACCOUNT}", f"--export=ALL,PYTHONPATH={ROOT}")
    job = cluster.client(*argv, *options, f"--output={log}", str(script)).stdout.strip()
    until(lambda: not jobs(cluster))
    lines = own(log.read_text().splitlines())
    assert lines[:2] == ["in step: False", f"inner in {job}"]
    assert not [line for line in lines if line.startswith("SLURM_NTASKS_PER_NODE")]
    assert "ExitCode=5:0" in cluster.client("scontrol", "show", "job", job).stdout


def test_an_allocation_is_given_back(cluster: Cluster) -> None:
    taken = Allocation(REQUEST, 2, "rc_tasks.test")
    granted = taken.wait(lambda _job_id: None)
    assert jobs(cluster, "running") == [granted.job_id]
    assert granted.cpus == {"node1": 2, "node2": 2}
    assert not taken.ended
    taken.release()
    assert taken.ended
    until(lambda: not jobs(cluster))
    taken.release()


def test_an_allocation_that_waits_is_told_and_can_be_given_back(cluster: Cluster) -> None:
    with allocated(StepRequest("all", account=ACCOUNT, cpus=2), nodes=3):
        queued: list[str] = []
        with ThreadPoolExecutor() as threads:
            taken = Allocation(REQUEST, 1, "rc_tasks.test")
            waiting = threads.submit(taken.wait, queued.append)
            until(lambda: queued)
            assert jobs(cluster, "pending") == queued
            assert slurm.state(queued[0]) == ("PENDING", "Resources")
            taken.release()
            with pytest.raises(SlurmError):
                waiting.result(SOON_S)
        until(lambda: not jobs(cluster, "pending"))


def test_an_allocation_is_found_by_its_name(cluster: Cluster) -> None:
    with allocated(REQUEST):
        slurm.cancel("rc_tasks.other")
        assert jobs(cluster, "running")
        slurm.cancel("rc_tasks.test")
        until(lambda: not jobs(cluster))


@contextlib.contextmanager
def left_by_salloc(cluster: Cluster, *argv: str) -> Iterator[str]:
    """The job ID of an allocation whose salloc has ended, as after `salloc --no-shell`."""
    done = cluster.client("salloc", f"--account={ACCOUNT}", "--no-shell", *argv)
    (job,) = re.findall(r"Granted job allocation (\d+)", done.stderr)
    yield job
    cluster.client("scancel", job)


@pytest.mark.parametrize(
    ("argv", "cpus"),
    [
        (("--nodes=2", "--ntasks=4"), {"node1": 2, "node2": 2}),
        # Steps run in the first component.
        (("--nodes=1", ":", "--nodes=1"), {"node1": 1}),
    ],
    ids=["one", "heterogeneous"],
)
def test_a_job_of_which_the_id_alone_is_known(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], cpus: dict[str, int]
) -> None:
    with left_by_salloc(cluster, *argv) as job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert slurm.current_allocation() == Granted(job, cpus)
    until(lambda: not jobs(cluster))
    with pytest.raises(SlurmError, match=f"job {job} has no nodes: it does not run, or has ended"):
        slurm.current_allocation()


def test_a_job_that_salloc_has_left_behind_is_released(cluster: Cluster) -> None:
    taken = Allocation(replace(REQUEST, extra=("--no-shell",)), 1, "rc_tasks.test")
    with pytest.raises(SlurmError, match="Slurm gave no allocation"):
        taken.wait(lambda _job_id: None)
    assert jobs(cluster)
    assert taken.release()
    until(lambda: not jobs(cluster))


def test_a_step_of_an_allocation_that_is_gone(run: Run) -> None:
    with allocated(REQUEST) as granted:
        pass
    returncode, lines = run(srun(sh("true"), REQUEST, allocation=granted.job_id))
    text = told(returncode, lines)
    assert text.startswith("the allocation of podman:reasoning:2025.1 has ended\n  | srun: ")


REFUSED = {
    "unknown account": (
        StepRequest("a", account="a-dmeo"),
        "Slurm refused the account of a (account a-dmeo, the default partition)",
        "Invalid account or account/partition combination specified",
    ),
    "no account": (
        StepRequest("a"),
        "Slurm refused the account of a (no account, the default partition)",
        "Please name the account of your project: --account=...",
    ),
    "account not in this partition": (
        StepRequest("a", account=ACCOUNT, partition="reserved"),
        "Slurm refused the account of a (account a-demo, partition reserved)",
        "Invalid account or account/partition combination specified",
    ),
    "unknown partition": (
        StepRequest("a", account=ACCOUNT, partition="no such"),
        "Slurm refused the partition of a (account a-demo, partition no such)",
        "invalid partition specified: no such",
    ),
    "time limit": (
        StepRequest("a", account=ACCOUNT, partition="debug", time_limit_min=31),
        "Slurm refused the time limit of a (account a-demo, partition debug)",
        "Requested time limit is invalid",
    ),
    "CPUs": (
        StepRequest("a", account=ACCOUNT, cpus=999),
        "no node can give what a (account a-demo, the default partition) asks for",
        "More processors requested than permitted",
    ),
    "memory": (
        StepRequest("a", account=ACCOUNT, extra=("--mem=900G",)),
        "no node can give what a (account a-demo, the default partition) asks for",
        "Memory specification can not be satisfied",
    ),
    "node": (
        StepRequest("a", account=ACCOUNT, extra=("--nodelist=node9",)),
        "no node can give what a (account a-demo, the default partition) asks for",
        "Invalid node name specified",
    ),
    "option": (
        StepRequest("a", account=ACCOUNT, extra=("--bogus=1",)),
        "Slurm does not understand an option of a",
        "unrecognized option '--bogus=1'",
    ),
    "option's value": (
        StepRequest("a", account=ACCOUNT, extra=("--mem=lots",)),
        "Slurm does not understand an option of a",
        "Invalid --mem specification",
    ),
}


@pytest.mark.parametrize(("request_", "what", "quoted"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_is_told_by_step_and_allocation_alike(
    run: Run, request_: StepRequest, what: str, quoted: str
) -> None:
    returncode, lines = run(srun(sh("true"), request_))
    text = told(returncode, lines, request_)
    assert text.splitlines()[0] == what
    assert quoted in text
    with pytest.raises(SlurmError) as refused:
        Allocation(request_, 1, "rc_tasks.test").wait(lambda _job_id: None)
    assert str(refused.value).splitlines()[0] == what
    assert quoted in str(refused.value)


def in_background(
    pool: ThreadPoolExecutor, run: Run, wanted: Command, sign: Path
) -> Future[tuple[int, list[str]]]:
    """Starts a step and returns when its command has written the file `sign`."""
    future = pool.submit(run, wanted)
    until(lambda: future.done() or (sign.exists() and sign.read_text().endswith("\n")))
    assert not future.done(), future.result()
    return future


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[Command, Path]]:
    """A command that never ends by itself, with a child, and the file it writes both PIDs to."""
    sign = tmp_path / "pids"
    # Not at once: srun of newer Slurms was seen to return 0 when it was ended as a step began.
    script = 'sleep 1000 & child=$!; sleep 1; echo $$ $child > "$1"; wait'
    yield Command(("sh", "-c", script, "sh", str(sign))), sign
    pids = sign.read_text().split()
    until(lambda: not any(Path("/proc", pid).exists() for pid in pids))


def test_a_cancelled_step(
    run: Run,
    pool: ThreadPoolExecutor,
    cluster: Cluster,
    sleeper: tuple[Command, Path],
) -> None:
    inner, sign = sleeper
    future = in_background(pool, run, srun(inner, REQUEST), sign)
    cluster.client("scancel", *jobs(cluster))
    text = told(*future.result(SOON_S))
    assert text.startswith(
        "podman:reasoning:2025.1 was cancelled, by somebody's scancel or by the site\n"
    )
    assert " CANCELLED AT " in text


def test_a_cancelled_job_that_still_waits(run: Run, pool: ThreadPoolExecutor, cluster: Cluster) -> None:
    with allocated(StepRequest("all", account=ACCOUNT, cpus=2), nodes=3):
        future = pool.submit(run, srun(sh("true"), REQUEST))
        until(lambda: jobs(cluster, "pending"))
        cluster.client("scancel", "--state=pending", f"--account={ACCOUNT}")
        text = told(*future.result(SOON_S))
    assert text.startswith(
        "podman:reasoning:2025.1 was cancelled, by somebody's scancel or by the site\n"
    )


def test_out_of_memory(run: Run) -> None:
    request = StepRequest("podman:big", account=ACCOUNT, extra=("--mem=100",))
    script = "import time; held = bytearray(300 << 20); time.sleep(60)"
    returncode, lines = run(srun(python(script), request))
    text = told(returncode, lines, request)
    assert text.startswith("podman:big ran out of memory\n")
    assert "exceeded memory limit" in text
    assert 'next: ask for more with `slurm.extra`, as in ["--mem=64G"]' in text


def test_out_of_time(
    run: Run, pool: ThreadPoolExecutor, cluster: Cluster, sleeper: tuple[Command, Path]
) -> None:
    inner, sign = sleeper
    request = StepRequest("podman:long", account=ACCOUNT, time_limit_min=1)
    future = in_background(pool, run, srun(inner, request), sign)
    cluster.expire(*jobs(cluster))
    text = told(*future.result(TIME_LIMIT_CHECK_S), request)
    assert text.startswith("podman:long ran out of time\n")
    assert "DUE TO TIME LIMIT" in text
    assert "next: raise `slurm.time_limit_min` (now 1)" in text


def test_a_node_failure_is_told_although_srun_returns_0(
    run: Run,
    pool: ThreadPoolExecutor,
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    sign = tmp_path / "started"
    request = StepRequest("podman:a", account=ACCOUNT, extra=("--nodelist=node3",))
    inner = Command(("sh", "-c", 'echo > "$1"; exec sleep 1000', "sh", str(sign)))
    future = in_background(pool, run, srun(inner, request), sign)
    cluster.client("scontrol", "update", "nodename=node3", "state=down", "reason=test")
    try:
        text = told(*future.result(SOON_S), request)
    finally:
        cluster.client("scontrol", "update", "nodename=node3", "state=resume")
        cluster.wait_ready()
    assert text.startswith("the node of podman:a failed\n")


@pytest.mark.parametrize("where", ["own job", "allocation"])
def test_ending_srun_ends_the_remote_processes(
    run: Run,
    pool: ThreadPoolExecutor,
    cluster: Cluster,
    where: str,
    sleeper: tuple[Command, Path],
) -> None:
    inner, sign = sleeper
    with contextlib.ExitStack() as taken:
        allocation = None
        if where == "allocation":
            allocation = taken.enter_context(allocated(REQUEST)).job_id
        future = in_background(pool, run, srun(inner, REQUEST, allocation=allocation), sign)
        started = time.monotonic()
        command.end_all()
        returncode, lines = future.result(SOON_S)
        assert time.monotonic() - started < 5
        assert returncode != 0
        assert told(returncode, lines).startswith(
            "podman:reasoning:2025.1 was ended because its srun got a signal to end"
        )
        # An allocation outlives its steps; a job of the step's own does not.
        until(lambda: jobs(cluster) == [allocation] if allocation else not jobs(cluster))


@pytest.mark.parametrize("how", ["stop", "the tests are killed"])
def test_a_cluster_leaves_no_process(how: str, sleeper: tuple[Command, Path]) -> None:
    """Also with a job that runs, and however the process that started it ends."""
    inner, sign = sleeper
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        script = f"""
import subprocess, sys, time
from pathlib import Path
from tests.support.cluster import Cluster
cluster = Cluster(Path({name!r}), nodes=1)
cluster.start()
cluster.wait_ready()
cluster.client("sbatch", "--account={ACCOUNT}", "--output=/dev/null", "--wrap", sys.argv[1])
while not Path(sys.argv[2]).exists():
    time.sleep(0.05)
if sys.argv[3] == "stop":
    cluster.stop()
else:
    time.sleep(1000)
"""
        argv = (sys.executable, "-c", script, shlex.join(inner.argv), str(sign), how)
        with subprocess.Popen(argv, cwd=ROOT) as starter:
            until(lambda: sign.exists() and sign.read_text().endswith("\n"))
            if how != "stop":
                starter.kill()
            starter.wait(SOON_S)
        until(lambda: not processes_naming(name))


def processes_naming(directory: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace")
            if directory in words and path.parent.name != str(os.getpid()):
                found.append(words)
    return found
