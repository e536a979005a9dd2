"""A Slurm cluster of several nodes on this one machine, without systemd and without root.

    python -m tests.support.cluster DIR

starts one to play with and prints the lines that make a shell use it. Everything that it writes is
below DIR. It has the partitions `debug` (default, half an hour at most), `normal`, `reserved`
(account `a-admins` only) and `spare` (its jobs are ended as soon as others need their nodes), and
takes jobs of the accounts `a-demo` and `a-admins` only.
"""

import argparse
import contextlib
import ctypes
import getpass
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ACCOUNT = "a-demo"
ADMIN_ACCOUNT = "a-admins"
TOOLS = ("munged", "slurmctld", "slurmd", "srun", "salloc", "scontrol", "scancel", "sinfo")
CONTROLLER = "slurmctld"
READY_TIMEOUT_S = 30.0
# How long jobs and daemons may take to end before they get KILL; nothing of theirs is kept anyway.
STOP_TIMEOUT_S = 2.0

SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
PlugStackConfig={directory}/plugstack.conf
MailProg={directory}/mail
MpiDefault=none
SwitchType=switch/none
# Nothing here needs a cgroup, so that it runs in a container too.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Every second each step's memory is summed; a step above its limit is ended.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={memory_per_cpu_mib}
# Nodes claim more CPUs and memory than the machine has.
SlurmdParameters=config_overrides
JobSubmitPlugins=lua
# A job that asks for too much is refused at once instead of waiting for ever.
EnforcePartLimits=ALL
ReturnToService=2
KillWait=1
OverTimeLimit=0
SlurmdTimeout=30
InactiveLimit=0
# The defaults wait for a second between checks; tests are many and short.
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
{nodes}
PartitionName=debug Default=YES MaxTime=30 DefaultTime=10 Nodes=ALL
PartitionName=normal MaxTime=720 DefaultTime=60 Nodes=ALL
PartitionName=reserved MaxTime=720 AllowAccounts={admin_account} Nodes=ALL
PartitionName=spare MaxTime=720 PriorityTier=0 Nodes=ALL
"""

# Slurm 24.05 is the first to know this word (CHANGELOG/slurm-24.05.md). Without it, newer ones look at
# cgroups though nothing needs them, and refuse a machine that has both kinds.
CGROUP_CONF = "CgroupPlugin=disabled\n"
CGROUP_CONF_SINCE = (24, 5)
# From here on AllowAccounts is asked of slurmdbd, which is not here (part_policy_valid_acct in
# src/slurmctld/partition_mgr.c).
ALLOW_ACCOUNTS_NEEDS_SLURMDBD_SINCE = (23, 2)

# A site with slurmdbd refuses accounts with the same error number.
JOB_SUBMIT = """\
local ESLURM_INVALID_ACCOUNT = 2045
local ALLOW_ACCOUNTS_COUNTS = {allow_accounts_counts}
function slurm_job_submit(job, partitions, uid)
   if job.account == nil or job.account == "" then
      slurm.log_user("Please name the account of your project: --account=...")
      return ESLURM_INVALID_ACCOUNT
   end
   if job.account ~= "{account}" and job.account ~= "{admin_account}" then
      return ESLURM_INVALID_ACCOUNT
   end
   if not ALLOW_ACCOUNTS_COUNTS and job.partition == "reserved" and job.account ~= "{admin_account}" then
      return ESLURM_INVALID_ACCOUNT
   end
   return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid)
   return slurm.SUCCESS
end
"""


# In place of mail(1): what it is called with, in a line of mail.log beside it.
MAIL = """\
#!/bin/sh
printf '%s\\n' "$*" >> "${0%/*}/mail.log"
"""


@dataclass(slots=True)
class Cluster:
    """One running cluster: `with Cluster(directory) as cluster:`.

    The daemons are children of a process of their own that lives as long as its standard input is
    open. So they end, with all their jobs, however this process ends.
    """

    directory: Path
    nodes: int = 3
    cpus_per_node: int = 2
    memory_per_cpu_mib: int = 1000
    # The lines of plugstack.conf.
    plugins: str = ""
    _keeper: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def node_names(self) -> tuple[str, ...]:
        """`node1`, `node2`, and so on."""
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))

    @property
    def environment(self) -> dict[str, str]:
        """What a client such as srun needs beyond its usual environment."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def start(self) -> None:
        """Write the configuration and start the daemons; they are ready a moment later."""
        self._configure()
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, "--keep", str(self.directory), *self.node_names],
            stdin=subprocess.PIPE,
            # Its own session: Ctrl-C in a test run reaches the tests first, then stop() ends this.
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Return when all nodes take jobs; raises RuntimeError with the logs when they do not."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            states = self.client("sinfo", "--noheader", "--Node", "--format=%T", "--partition=debug")
            if states.stdout.split() == ["idle"] * self.nodes:
                return
            if self._keeper is None or self._keeper.poll() is not None:
                break
            time.sleep(0.1)
        logs = "\n".join(
            f"{path.name}: {line}"
            for path in sorted(self.directory.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-10:]
        )
        raise RuntimeError(f"the Slurm cluster in {self.directory} is not ready\n{logs}")

    def client(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """One of Slurm's short commands on this cluster, such as scontrol or squeue."""
        environment = os.environ | self.environment
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, check=False, timeout=READY_TIMEOUT_S
        )

    def expire(self, job: str) -> None:
        """Let a running job reach its time limit now; Slurm notices within half a minute."""
        # Limits are whole minutes, but the end is a moment. Slurm checks every 30 s and cannot be
        # told to do so more often.
        self.client("scontrol", "update", f"jobid={job}", "endtime=now").check_returncode()

    def end_jobs(self) -> None:
        """Cancel every job; returns when none is left."""
        jobs = ("squeue", "--noheader", "--format=%i", "--states=pending,running,completing")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while found := self.client(*jobs).stdout.split():
            self.client("scancel", *found)
            if time.monotonic() > deadline:
                raise RuntimeError(f"jobs {', '.join(found)} do not end")
            time.sleep(0.1)

    def kill_slurmd(self, name: str) -> None:
        """Kill a node's slurmd alone: its steps go on, and the controller thinks that it is busy."""
        _kill(lambda process: process.is_slurmd(self.directory, name))

    def kill_node(self, name: str) -> None:
        """Let a node die with all that runs on it, and let the controller know at once."""
        self.kill_slurmd(name)
        _kill(lambda process: process.is_on(self.directory, name))
        # By itself it would notice after SlurmdTimeout.
        self.client(
            "scontrol", "update", f"nodename={name}", "state=down", "reason=test"
        ).check_returncode()

    def revive(self) -> None:
        """Start every slurmd that was killed; their nodes take jobs again soon."""

        def runs(name: str) -> bool:
            return any(process.is_slurmd(self.directory, name) for process in processes())

        for name in self.node_names:
            if not runs(name):
                self._start(name)
                deadline = time.monotonic() + READY_TIMEOUT_S
                while not runs(name) and time.monotonic() < deadline:
                    time.sleep(0.02)
                self.client("scontrol", "update", f"nodename={name}", "state=resume")

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state: clients find nobody at its port."""
        self._signal_controller(signal.SIGTERM)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while any(each.is_controller(self.directory) for each in processes()):
            if time.monotonic() > deadline:
                raise RuntimeError("slurmctld does not end")
            time.sleep(0.05)

    @contextlib.contextmanager
    def frozen_controller(self) -> Iterator[None]:
        """Suspend slurmctld while the block runs: clients connect and get no answer."""
        self._signal_controller(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal_controller(signal.SIGCONT)

    def start_controller(self, *, forgetful: bool = False) -> None:
        """Start slurmctld again; a forgetful one has lost its state, and knows of no job."""
        if forgetful:
            shutil.rmtree(self.directory / "state")
            (self.directory / "state").mkdir()
        self._start(CONTROLLER)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self.client("scontrol", "ping").returncode != 0 and time.monotonic() < deadline:
            time.sleep(0.1)

    def kill_slurmstepd(self, *words: str) -> None:
        """Kill the slurmstepd above a command that has these words, and nothing else."""
        found = {each.pid: each for each in processes()}
        for task in found.values():
            if f" {' '.join(words)} " in f" {' '.join(task.argv)} " and task.is_task(self.directory):
                above: Process | None = task
                while above is not None and not above.argv[0].startswith("slurmstepd"):
                    above = found.get(above.parent)
                if above is not None:
                    os.kill(above.pid, signal.SIGKILL)
                    return
        raise RuntimeError(f"no step runs {' '.join(words)}")

    def _signal_controller(self, number: signal.Signals) -> None:
        for process in processes():
            if process.is_controller(self.directory):
                os.kill(process.pid, number)

    def _start(self, name: str) -> None:
        """Let the keeper start slurmctld, or the slurmd of a node."""
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(f"{name}\n".encode())
        self._keeper.stdin.flush()

    def stop(self) -> None:
        """End every job and every daemon; returns when none of their processes is left."""
        if self._keeper is None:
            return
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper = None

    def _configure(self) -> None:
        self.directory = self.directory.resolve()
        if " " in str(self.directory) or len(str(self.directory)) > 80:
            # slurm.conf knows no quotes, and a Unix socket's path has at most 107 bytes.
            raise ValueError(
                f"the directory of a cluster must be short and without spaces: {self.directory}"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        # munged refuses a socket that others cannot reach, and a directory that they may write to.
        self.directory.chmod(0o755)
        (self.directory / "state").mkdir(exist_ok=True)
        for name in self.node_names:
            (self.directory / f"spool-{name}").mkdir(exist_ok=True)
        key = self.directory / "munge.key"
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        (self.directory / "plugstack.conf").write_text(self.plugins)
        mail = self.directory / "mail"
        mail.write_text(MAIL)
        mail.chmod(0o755)
        found = version()
        (self.directory / "job_submit.lua").write_text(
            JOB_SUBMIT.format(
                account=ACCOUNT,
                admin_account=ADMIN_ACCOUNT,
                allow_accounts_counts=str(found < ALLOW_ACCOUNTS_NEEDS_SLURMDBD_SINCE).lower(),
            )
        )
        if found >= CGROUP_CONF_SINCE:
            (self.directory / "cgroup.conf").write_text(CGROUP_CONF)
        controller_port, *node_ports = _free_ports(1 + self.nodes)
        memory_mib = self.cpus_per_node * self.memory_per_cpu_mib
        (self.directory / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=socket.gethostname().split(".")[0],
                controller_port=controller_port,
                user=getpass.getuser(),
                directory=self.directory,
                memory_per_cpu_mib=self.memory_per_cpu_mib,
                nodes="\n".join(
                    f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
                    f" CPUs={self.cpus_per_node} RealMemory={memory_mib} State=UNKNOWN"
                    for name, port in zip(self.node_names, node_ports, strict=True)
                ),
                admin_account=ADMIN_ACCOUNT,
            )
        )


def _path() -> str:
    # An ordinary user's PATH has no sbin, where Debian puts the daemons.
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


def version() -> tuple[int, ...]:
    """Slurm's year and month, of `slurm-wlm 22.05.8`."""
    argv = ("slurmctld", "-V")
    environment = os.environ | {"PATH": _path()}
    said = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.split()[1].split(".")[:2])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _keep(directory: Path, node_names: list[str]) -> None:
    """Run the daemons until standard input ends or TERM comes, then end everything below them."""
    # Orphans come to us instead of init: slurmstepd leaves its slurmd on purpose, and what a job
    # leaves behind leaves slurmstepd. So our descendants are all there is to end.
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    conf = directory / "slurm.conf"
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(conf)}

    def daemon(*argv: str) -> None:
        with (directory / f"{Path(argv[0]).name}.out.log").open("ab") as out:
            subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    try:
        daemon(
            "munged",
            "--foreground",
            f"--socket={directory}/munge.socket",
            f"--key-file={directory}/munge.key",
            f"--log-file={directory}/munged.log",
            f"--pid-file={directory}/munged.pid",
            f"--seed-file={directory}/munged.seed",
        )
        # Slurm's daemons look for it once, and then again only after ten seconds.
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (directory / "munge.socket").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

        def start(name: str) -> None:
            if name == CONTROLLER:
                daemon(CONTROLLER, "-D", "-f", str(conf))
            else:
                daemon("slurmd", "-D", "-f", str(conf), "-N", name)

        for name in (CONTROLLER, *node_names):
            start(name)
        # A line is the name of a daemon's node, or the controller, that was killed.
        for line in sys.stdin:
            start(line.strip())
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Steps first, while their daemons can still tell srun about it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["scancel", f"--user={getpass.getuser()}"],
                env=environment,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=STOP_TIMEOUT_S,
            )
        _end_descendants()


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    argv: tuple[str, ...]
    environment: frozenset[str]

    def is_slurmd(self, cluster: Path, node: str) -> bool:
        """Whether it is the slurmd of a node."""
        return self.argv[-4:] == ("-f", f"{cluster}/slurm.conf", "-N", node)

    def is_controller(self, cluster: Path) -> bool:
        """Whether it is the slurmctld of a cluster."""
        return self.argv == (CONTROLLER, "-D", "-f", f"{cluster}/slurm.conf")

    def is_task(self, cluster: Path) -> bool:
        """Whether it belongs to a step on any node."""
        return f"SLURM_CONF={cluster}/slurm.conf" in self.environment

    def is_on(self, cluster: Path, node: str) -> bool:
        """Whether it belongs to a step on a node."""
        return self.environment >= {f"SLURM_CONF={cluster}/slurm.conf", f"SLURMD_NODENAME={node}"}


def processes() -> list[Process]:
    """All processes of this machine that can be looked at."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
            environment = (entry / "environ").read_text(errors="replace").split("\0")
            parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            found.append(Process(int(entry.name), parent, tuple(argv), frozenset(environment)))
    return found


def _kill(chosen: Callable[[Process], bool]) -> None:
    """Kill processes, the slurmstepd above them, and all below; returns when they are gone."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    doomed: set[int] = set()
    while time.monotonic() < deadline:
        found = processes()
        by_pid = {process.pid: process for process in found}
        generation = {process.pid for process in found if chosen(process)}
        generation |= {
            above.pid
            for pid in generation
            if (above := by_pid.get(by_pid[pid].parent)) and above.argv[0].startswith("slurmstepd")
        }
        while generation:
            doomed |= generation
            generation = {each.pid for each in found if each.parent in generation} - doomed
        left = doomed & by_pid.keys()
        if not left:
            return
        # The daemon of a step first: it would tell that its task was killed, which a dead node does not.
        for pid in sorted(left, key=lambda pid: not by_pid[pid].argv[0].startswith("slurmstepd")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end_descendants() -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while found := _descendants():
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.05)


def _descendants() -> list[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field is the program's name in parentheses and may hold anything.
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    generation = {os.getpid()}
    while generation := {pid for pid, parent in parents.items() if parent in generation}:
        found += generation
    return found


def main() -> None:
    """A cluster to play with, until Ctrl-C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus-per-node", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    with Cluster(options.directory, options.nodes, options.cpus_per_node) as running:
        print(f"# {options.nodes} nodes, ready in {time.monotonic() - started:.1f} s; Ctrl-C ends them")
        for key, value in running.environment.items():
            print(f"export {key}={shlex.quote(value)}")
        print(f"export SLURM_ACCOUNT={ACCOUNT}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--keep"]:
        _keep(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
