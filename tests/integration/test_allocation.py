"""The allocation of a run on a real Slurm cluster: taken, shared, lost, and always given back."""

import contextlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rc_tasks.state import history
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.records import Step
from rc_tasks.steps.publish.squash import container_name
from tests.support.checkouts import write_checkout
from tests.support.cluster import ACCOUNT, Cluster, Process, processes
from tests.support.doit import DOIT, doit
from tests.support.runs import PROMPT_S, Running, Site, lines, until
from tests.support.soak import ROUNDS
from tests.support.storage import remove_storage
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.podman, pytest.mark.slurm, pytest.mark.timeout(240)]

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n"
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\n',
    "projects/one:1/Dockerfile": "FROM base\nRUN echo one > /made\n",
    "projects/two:1/Dockerfile": "FROM base\nRUN echo two > /made\n",
    "projects/three:1/Dockerfile": "FROM base\nRUN echo three > /made\n",
}
IMAGES = ("one:1", "two:1", "three:1")
STEPS = tuple(f"podman:{name}" for name in IMAGES)
UNTIL = r"until \d\d:\d\d"


@pytest.fixture(scope="module")
def storage() -> Iterator[Path]:
    """Where each node keeps its podman images."""
    # /dev/shm as on diskless nodes, and a short name: podman's paths may be 50 characters long.
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as name:
        yield Path(name)
        for node in Path(name).iterdir():
            remove_storage(node)


@pytest.fixture(scope="module")
def built(cluster: Cluster, storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose path has a space and an umlaut, with all images in its store."""
    root = write_checkout(tmp_path_factory.mktemp("allocation") / "imgs ä", FILES)
    shutil.copy("/bin/busybox", root / "base/busybox")
    ran = doit(root, *STEPS, environ=variables(cluster, storage))
    assert ran.status == 0, ran.text
    return root


def variables(cluster: Cluster, storage: Path) -> dict[str, str]:
    """What a user's shell on the login node has."""
    return {
        **cluster.environment,
        "RC_RUNNER": "slurm",
        "RC_SLURM_ACCOUNT": ACCOUNT,
        "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
        "RC_PODMAN_ISOLATION": "chroot",
    }


@pytest.fixture
def site(cluster: Cluster, built: Path, storage: Path, tmp_path: Path) -> Iterator[Site]:
    """A copy of that checkout; afterwards no job is left, and every node is up."""
    root = tmp_path / built.name
    subprocess.run(("cp", "-a", built, root), check=True)
    for each in ("logs", "history"):
        shutil.rmtree(root / ".rc" / each)
    signs = tmp_path / "signs"
    signs.mkdir()
    environ = {**variables(cluster, storage), "RC_PODMAN_VOLUMES": f"{signs}:/signs"}
    yield Site(root, signs, environ)
    cluster.revive()
    cluster.end_jobs()
    cluster.wait_ready()


def tries(site: Site) -> list[HistoryEntry]:
    """What history says of every try, in order."""
    return [*history.entries(site.root / ".rc/history")][::-1]


def jobs(cluster: Cluster, states: str = "pending,running") -> list[str]:
    return cluster.client("squeue", "--noheader", "--format=%i", f"--states={states}").stdout.split()


def steps(cluster: Cluster) -> dict[str, str]:
    """The node of each step that runs now, by its task."""
    told = cluster.client("squeue", "--steps", "--noheader", "--format=%j %N").stdout
    return dict(line.split() for line in told.splitlines() if ":" in line)


def given_back(cluster: Cluster, site: Site) -> None:
    """Nothing is left of an allocation, on the cluster and in the checkout."""
    until(lambda: not jobs(cluster, "pending,running,completing"))
    assert list((site.root / ".rc/allocations").iterdir()) == []


@pytest.fixture
def full(cluster: Cluster) -> Iterator[Callable[[], str]]:
    """Fills all nodes with somebody else's job, once it is called; gives its ID."""

    def fill() -> str:
        options = (f"--account={ACCOUNT}", "--nodes=3", "--exclusive", "--output=/dev/null")
        job = cluster.client("sbatch", "--parsable", *options, "--wrap=sleep 1000").stdout.strip()
        until(lambda: job in jobs(cluster, "running"))
        return job

    yield fill
    cluster.end_jobs()


def test_one_allocation_serves_all_steps_and_is_given_back(site: Site, cluster: Cluster) -> None:
    for name in ("one:1", "two:1"):
        site.image(name, "true")
    text = site.run("build:one:1", "build:two:1")
    (granted,) = lines(text, "granted", "queue")
    found = re.fullmatch(rf"granted job (\d+): node1, {UNTIL}", granted)
    assert found, granted
    jobs_used = {site.record(name, step).job_id for name in ("one:1", "two:1") for step in Step}
    assert jobs_used == {found[1]}
    assert {(each.outcome, each.node, each.job_id) for each in tries(site)} == {
        (Outcome.DONE, "node1", found[1])
    }
    assert re.search(r"^done    podman:one:1  \d+\.\d s on node1$", text, re.MULTILINE)
    given_back(cluster, site)
    told = cluster.client("scontrol", "show", "job", found[1]).stdout
    assert "JobState=COMPLETED" in told, "salloc gave it back by itself"
    again = site.run("build:one:1", "build:two:1")
    assert lines(again, "granted", "queue", "start") == []


def test_a_run_that_fails_is_not_retried_and_gives_the_nodes_back(site: Site, cluster: Cluster) -> None:
    site.image("one:1", "exit 3")
    text = site.run("podman:one:1", status=None)
    assert len(lines(text, "granted")) == len(lines(text, "start")) == len(lines(text, "FAILED")) == 1
    assert lines(text, "retry", "again") == []
    given_back(cluster, site)


SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name
)


@SIGNALS
def test_a_signal_gives_the_nodes_back(site: Site, cluster: Cluster, number: signal.Signals) -> None:
    site.waiting("one:1")
    with site.running("podman:one:1") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        run.process.send_signal(number)
        sent_s = time.monotonic()
        text = run.end(130)
        took_s = time.monotonic() - sent_s
    assert took_s < PROMPT_S
    assert lines(text, "interrupted:") == [
        "interrupted: ending podman:one:1 on node1; what is finished stays finished"
    ]
    assert text.endswith("2 images: 1 fresh; 1 not finished\n")
    given_back(cluster, site)
    (tried,) = tries(site)
    assert (tried.outcome, tried.node) == (Outcome.INTERRUPTED, "node1")
    assert tried.job_id.isdigit()
    assert tried.duration_s > 0


def test_an_image_that_is_built_and_not_published_is_not_finished(
    site: Site, cluster: Cluster, tmp_path: Path
) -> None:
    site.image("one:1", "true")
    site.run("podman:one:1")
    hangs = tmp_path / "bin/mksquashfs"
    hangs.parent.mkdir()
    # It is asked what it can do before it is run.
    real = shutil.which("mksquashfs")
    hangs.write_text(
        f'#!/bin/sh\ncase " $* " in *" -noappend "*) ;; *) exec {real} "$@" ;; esac\n'
        f"echo > {site.signs}/squashing\nexec sleep 1000\n"
    )
    hangs.chmod(0o755)
    path = f"{hangs.parent}:{os.environ['PATH']}"
    with site.running("build:one:1", PATH=path, RC_SQUASH_METHOD="direct") as run:
        until((site.signs / "squashing").exists, lambda: run.text)
        run.process.send_signal(signal.SIGINT)
        text = run.end(130)
    assert text.endswith("2 images: 2 not finished\n")
    given_back(cluster, site)


@SIGNALS
def test_a_signal_while_it_waits_ends_the_waiting(
    site: Site, cluster: Cluster, full: Callable[[], str], number: signal.Signals
) -> None:
    hog = full()
    site.image("one:1", "true")
    with site.running("podman:one:1") as run:
        run.says(r"queue   job \d+ waits for its nodes \(Resources\)")
        run.process.send_signal(number)
        sent_s = time.monotonic()
        text = run.end(130)
        took_s = time.monotonic() - sent_s
    assert took_s < PROMPT_S
    assert lines(text, "granted", "start", "FAILED") == []
    until(lambda: jobs(cluster) == [hog])
    assert list((site.root / ".rc/allocations").glob("*.json")) == []


def test_waiting_in_the_queue_is_told(site: Site, cluster: Cluster, full: Callable[[], str]) -> None:
    hog = full()
    site.image("one:1", "true")
    with site.running("podman:one:1") as run:
        waiting = run.says(r"queue   job (\d+) waits for its nodes \(Resources\)")
        said_s = time.monotonic()
        cluster.client("scancel", hog)
        waited_s = time.monotonic() - said_s
        text = run.end()
    (tried,) = tries(site)
    assert 0 < waited_s <= tried.queued_s
    assert tried.job_id == waiting[1]
    told = lines(text, "queue", "granted", "start")
    assert [line.split()[0] for line in told] == ["queue", "granted", "start"]
    assert re.fullmatch(rf"granted job {waiting[1]}: node\d, {UNTIL}( after 0 min \d+ s)?", told[1])
    given_back(cluster, site)


def test_kill_9_gives_the_nodes_back(site: Site, cluster: Cluster) -> None:
    site.waiting("one:1")
    with site.running("podman:one:1") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        run.process.kill()
    until(lambda: not jobs(cluster, "pending,running,completing"))
    until(lambda: not builders(site))
    site.image("one:1", "true")
    text = site.run("podman:one:1")
    assert lines(text, "job", "wait", "FAILED") == []
    given_back(cluster, site)


def test_kill_9_while_it_waits_ends_the_waiting(
    site: Site, cluster: Cluster, full: Callable[[], str]
) -> None:
    hog = full()
    site.image("one:1", "true")
    with site.running("podman:one:1") as run:
        run.says(r"queue   job \d+ waits for its nodes \(Resources\)")
        run.process.kill()
    until(lambda: jobs(cluster) == [hog])


def test_an_allocation_that_nobody_gave_back_is_given_back_by_the_next_run(
    site: Site, cluster: Cluster
) -> None:
    site.waiting("one:1")
    with site.running("podman:one:1") as run:
        job = run.says(rf"granted job (\d+): node1, {UNTIL}")[1]
        until(lambda: site.begun("one:1"), lambda: run.text)
        doomed = [*salloc_of(run), run.process.pid]
        assert len(doomed) == 2
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
    until(lambda: not builders(site))
    assert jobs(cluster) == [job]
    site.go()
    text = site.run("podman:one:1")
    assert text.splitlines()[0] == f"job {job} of an earlier run released"
    assert len(lines(text, "start")) == len(lines(text, "done")) == 1
    given_back(cluster, site)


def salloc_of(run: Running) -> list[int]:
    found = subprocess.run(
        ("pgrep", "-P", str(run.process.pid), "salloc"), stdout=subprocess.PIPE, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def builders(site: Site) -> list[Process]:
    """The processes that have to do with this checkout: doit, Slurm's clients, steps, podman."""
    mark = f"RC_PODMAN_VOLUMES={site.environ['RC_PODMAN_VOLUMES']}"
    return [process for process in processes() if mark in process.environment]


def test_a_terminal_that_closes_gives_the_nodes_back(site: Site, cluster: Cluster) -> None:
    site.waiting("one:1")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(site.root)
        os.execve(DOIT, [DOIT, "podman:one:1"], {**os.environ, **site.environ})
    until(lambda: site.begun("one:1"))
    os.close(terminal)
    ended: list[int] = []

    def ends() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.extend([status] if pid else [])
        return bool(pid)

    until(ends)
    assert os.waitstatus_to_exitcode(ended[0]) == 130
    until(lambda: not builders(site))
    given_back(cluster, site)


def test_steps_spread_over_the_nodes(site: Site, cluster: Cluster) -> None:
    names = [f"image{number}:1" for number in range(7)]
    for name in names:
        site.waiting(name)
    with site.running(*(f"podman:{name}" for name in names), RC_SLURM_NODES="3") as run:
        run.says(rf"granted job \d+: node1, node2, node3, {UNTIL}")
        until(lambda: sum(map(site.begun, names)) == 6, lambda: run.text)
        # Two a node is what two CPUs hold.
        assert sorted(steps(cluster).values()) == ["node1", "node1", "node2", "node2", "node3", "node3"]
        assert len(lines(run.text, "start")) == 6
        site.go()
        text = run.end()
    assert len(lines(text, "done")) == 7


def test_on_a_terminal_it_is_seen_what_runs_where(site: Site, cluster: Cluster) -> None:
    names = [f"image{number}:1" for number in range(5)]
    for name in names[:-1]:
        site.waiting(name)
    site.image(names[-1], "until [ -e /signs/fail ]; do sleep 0.1; done; exit 3")
    tasks = [f"podman:{name}" for name in names]
    environ = {**site.environ, "RC_SLURM_NODES": "2"}
    with Terminal((DOIT, "--continue", *tasks), site.root, environ, 80, 24) as shown:
        drawn = shown.shows(lambda text: text.count("STEP 2/") == 4).splitlines()
        assert re.fullmatch(r"  queued 1: podman:image\d:1", drawn[-2])
        assert drawn[-1].startswith("  0 of 5 steps done; 4 running, 1 queued")
        seen = [
            re.fullmatch(r"  (\S+)  (node\d)  0:\d\d +STEP 2/\d RUN .*", row) for row in drawn[-6:-2]
        ]
        assert {row[1]: row[2] for row in seen if row is not None} == steps(cluster)
        (site.signs / "fail").touch()
        site.go()
        status, text = shown.end()
    assert status != 0
    assert len(lines(text, "granted")) == len(lines(text, "FAILED")) == 1
    assert len(lines(text, "start")) == 5 and len(lines(text, "done")) == 4
    assert "steps done" not in text
    assert re.search(
        r"^6 images: 4 built; 1 fresh; (1 failed|failed: podman:image4:1)\Z", text, re.MULTILINE
    )
    given_back(cluster, site)


def test_no_more_run_at_once_than_asked_for(site: Site, cluster: Cluster) -> None:
    for name in IMAGES:
        site.waiting(name)
    with site.running("-n", "2", *STEPS, RC_SLURM_NODES="3") as run:
        until(lambda: sum(map(site.begun, IMAGES)) == 2, lambda: run.text)
        assert len(lines(run.text, "start")) == len(steps(cluster)) == 2
        site.go()
        run.end()


def test_a_child_runs_where_its_base_is(site: Site) -> None:
    for name in IMAGES:
        site.waiting(name)
        site.image(f"child-{name}", "true", base=name)
    with site.running(*(f"podman:child-{name}" for name in IMAGES), RC_SLURM_NODES="2") as run:
        until(lambda: all(map(site.begun, IMAGES)), lambda: run.text)
        site.go()
        run.end()
    bases = {name: site.record(name).node for name in IMAGES}
    assert set(bases.values()) == {"node1", "node2"}
    assert {name: site.record(f"child-{name}").node for name in IMAGES} == bases


def took(site: Site, name: str, seconds: float) -> None:
    """Pretend that an image took so long the last time."""
    path = site.root / f".rc/state/podman:{name}.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "duration_s": seconds}))


def test_the_longest_way_to_the_end_goes_first(site: Site) -> None:
    for name, seconds in zip(IMAGES, (4.0, 90.0, 50.0), strict=True):
        site.image(name, "true")
        took(site, name, seconds)
    site.image("last:1", "true", base="one:1")
    text = site.run("-n", "1", "podman:last:1", *STEPS)
    started = [line.split()[1] for line in lines(text, "start")]
    # What has never run is taken for the median of those that have.
    assert started == ["podman:two:1", "podman:three:1", "podman:one:1", "podman:last:1"]


def test_without_the_store_a_family_stays_on_one_node(
    site: Site, cluster: Cluster, tmp_path: Path
) -> None:
    """An image is only where it was built, and its whole family with it."""
    root = write_checkout(tmp_path / "no store", {"base/Dockerfile": FILES["base/Dockerfile"]})
    shutil.copy("/bin/busybox", root / "base/busybox")
    alone = Site(root, site.signs, {**site.environ, "RC_STORE_ENABLED": "false", "RC_SLURM_NODES": "3"})
    for name in ("one:1", "two:1"):
        alone.image(name, "true")
    alone.image("three:1", "cat /made", base="one:1")
    (root / "projects/one:1/Dockerfile").write_text("FROM base\nRUN echo one > /made\n")
    text = alone.run("podman:two:1", "podman:three:1")
    assert len(lines(text, "done")) == 4
    assert len({alone.record(name).node for name in ("base", *IMAGES)}) == 1


def test_a_step_whose_node_dies_is_tried_on_another(site: Site, cluster: Cluster) -> None:
    site.waiting("one:1")
    with site.running("podman:one:1", RC_SLURM_NODES="2") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        dead = steps(cluster)["podman:one:1"]
        cluster.kill_node(dead)
        run.says(rf"retry   podman:one:1  {dead}, the node of podman:one:1, failed \(try 2 of 3\)")
        site.go()
        text = run.end()
    assert lines(text, "FAILED", "again") == []
    assert len(lines(text, "granted")) == 1
    (lost, done) = tries(site)
    assert (lost.outcome, lost.node, lost.job_id) == (Outcome.RETRIED, dead, done.job_id)
    assert lost.error == f"{dead}, the node of podman:one:1, failed"
    assert (done.outcome, done.node) == (Outcome.DONE, site.record("one:1").node)
    assert done.node in {"node1", "node2"} - {dead}
    cluster.revive()
    given_back(cluster, site)


def test_a_record_that_this_node_sees_late(site: Site, tmp_path: Path) -> None:
    """A network file system may hide for a minute what a step on another node has written."""
    site.image("one:1", "true")
    late = tmp_path / "bin/srun"
    late.parent.mkdir()
    # The record is away when srun ends, and comes back by itself.
    late.write_text(
        f'#!/bin/sh\n{shutil.which("srun")} "$@"; status=$?\n'
        f'cd "{site.root}/.rc/state" && mv podman:one:1.json "{site.signs}/" &&\n'
        f'    setsid sh -c \'sleep 3; mv "$0" .\' "{site.signs}/podman:one:1.json" >/dev/null 2>&1 &\n'
        "sleep 0.5; exit $status\n"
    )
    late.chmod(0o755)
    text = site.run("podman:one:1", PATH=f"{late.parent}:{os.environ['PATH']}")
    assert lines(text, "FAILED", "retry") == []
    assert text.endswith("2 images: 1 built; 1 fresh\n")
    assert [each.outcome for each in tries(site)] == [Outcome.DONE]


def test_the_only_node_dies(site: Site, cluster: Cluster) -> None:
    """Another allocation is taken; without retries the step fails, and the node is named."""
    site.waiting("one:1")
    with site.running("podman:one:1") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        first = run.says(rf"granted job \d+: (node\d), {UNTIL}.*")[1]
        cluster.kill_node(first)
        run.says(r"again   job \d+ lost its node: asking for another one")
        run.says(rf"granted job \d+: (?!{first})node\d, {UNTIL}.*")
        (site.signs / "one").unlink()
        until(lambda: site.begun("one:1"), lambda: run.text)
        site.go()
        run.end()
    (site.signs / "go").unlink()
    (site.signs / "one").unlink()
    site.waiting("one:1")
    with site.running("podman:one:1", RC_SLURM_RETRIES="0") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        second = run.says(rf"granted job \d+: (node\d), {UNTIL}.*")[1]
        cluster.kill_node(second)
        text = run.end(None)
    (failed,) = lines(text, "FAILED")
    assert failed == f"FAILED  podman:one:1  {second}, the node of podman:one:1, failed"
    assert lines(text, "retry", "again") == []


def test_scancel_ends_the_run(site: Site, cluster: Cluster) -> None:
    site.waiting("one:1")
    site.image("two:1", "true")
    took(site, "one:1", 90.0)  # so that it comes first
    with site.running("-n", "1", "--continue", "podman:one:1", "podman:two:1") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        (job,) = jobs(cluster)
        cluster.client("scancel", job)
        text = run.end(None)
    assert len(lines(text, "granted")) == 1
    first, second = lines(text, "FAILED")
    assert first == (
        "FAILED  podman:one:1  podman:one:1 was cancelled, by somebody's scancel or by the site"
    )
    assert second == f"FAILED  podman:two:1  job {job}, the allocation of this run, was cancelled"
    assert "next: run `doit` again: finished steps are kept" in text
    given_back(cluster, site)


def test_the_time_limit_in_the_middle(site: Site, cluster: Cluster) -> None:
    """Slurm looks at time limits every half minute."""
    site.waiting("one:1")
    site.image("two:1", "true")
    took(site, "one:1", 90.0)  # so that it comes first
    with site.running("-n", "1", "--continue", "podman:one:1", "podman:two:1") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        (job,) = jobs(cluster)
        cluster.expire(job)
        text = run.end(None)
    assert lines(text, "FAILED") == ["FAILED  podman:one:1  podman:one:1 ran out of time"]
    assert "next: raise `slurm.time_limit_min` (now the partition's default)" in text
    assert lines(text, "again") == [f"again   job {job} ran out of time: asking for another one"]
    assert len(lines(text, "granted")) == 2
    assert re.search(r"^done    podman:two:1  ", text, re.MULTILINE)
    given_back(cluster, site)


@pytest.mark.parametrize("starter", ["salloc", "srun"])
def test_in_ones_own_job_nothing_is_started_that_cannot_finish(site: Site, starter: str) -> None:
    for name in ("one:1", "two:1"):
        site.image(name, "true")
    took(site, "one:1", 6000.0)
    prefix = (starter, f"--account={ACCOUNT}", "--nodes=1", "--time=5", "--quiet")
    text = site.run("--continue", "podman:one:1", "podman:two:1", prefix=prefix, status=None)
    (failed,) = lines(text, "FAILED")
    assert re.fullmatch(
        r"FAILED  podman:one:1  podman:one:1 was not started: job \d+ ends in [45] min \d+ s, and last"
        r" time it took 1 h 40 min",
        failed,
    )
    assert "  next: run `doit` again in a job with more time: finished steps are kept" in text
    (late,) = (each for each in tries(site) if each.outcome is Outcome.FAILED)
    assert late.error.startswith("podman:one:1 was not started: job ")
    assert (late.node, late.log, late.job_id) == ("", "", tries(site)[-1].job_id)
    assert [line.split()[1] for line in lines(text, "start")] == ["podman:two:1"]
    assert lines(text, "granted", "queue") == []


def test_within_the_first_component_of_a_heterogeneous_job(site: Site) -> None:
    site.image("one:1", "true")
    one = (f"--account={ACCOUNT}", "--nodes=1")
    text = site.run("podman:one:1", prefix=("salloc", "--quiet", *one, ":", *one))
    assert re.search(r"^done    podman:one:1  ", text, re.MULTILINE)
    assert lines(text, "granted", "retry") == []


def test_the_id_of_a_job_that_has_ended_is_told_at_once(site: Site) -> None:
    site.image("one:1", "true")
    text = site.run("podman:one:1", status=None, SLURM_JOB_ID="99999")
    (failed,) = lines(text, "FAILED")
    assert failed == "FAILED  podman:one:1  job 99999 has no nodes: it does not run, or has ended"
    assert "`unset SLURM_JOB_ID`" in text


def test_another_allocation_is_taken_when_too_little_time_is_left(site: Site) -> None:
    site.image("one:1", "sleep 3")
    site.image("two:1", "true", base="one:1")
    took(site, "two:1", 57.5)
    text = site.run("podman:two:1", RC_SLURM_TIME_LIMIT_MIN="1")
    kinds = [line.split()[0] for line in lines(text, "granted", "again", "start", "done")]
    assert kinds == ["granted", "start", "done", "again", "granted", "start", "done"]
    assert re.fullmatch(
        r"again   job \d+ has no time or node left: asking for another one", lines(text, "again")[0]
    )


def test_a_step_that_no_allocation_is_long_enough_for(site: Site, cluster: Cluster) -> None:
    site.image("one:1", "true")
    took(site, "one:1", 90.0)
    text = site.run("podman:one:1", RC_SLURM_TIME_LIMIT_MIN="1", status=None)
    (failed,) = lines(text, "FAILED")
    assert re.fullmatch(
        r"FAILED  podman:one:1  podman:one:1 was not started: the allocation is for"
        r" 1 min 0 s, and last time it took 1 min 30 s",
        failed,
    )
    assert "next: raise `slurm.time_limit_min`" in text
    given_back(cluster, site)


def test_preemption(site: Site, cluster: Cluster, full: Callable[[], str]) -> None:
    site.waiting("one:1")
    with site.running("podman:one:1", RC_SLURM_PARTITION="spare") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        hog = full()
        run.says(r"retry   podman:one:1  podman:one:1 had to make room for another job \(try 2 of 3\)")
        run.says(r"again   job \d+ had to make room for another job: asking for another one")
        run.says(r"queue   job \d+ waits for its nodes \(.+\)")
        site.go()
        cluster.client("scancel", hog)
        text = run.end()
    assert len(lines(text, "granted")) == 2
    given_back(cluster, site)


def test_a_refusal_is_told_once(site: Site, cluster: Cluster) -> None:
    for name in IMAGES:
        site.image(name, "true")
    text = site.run("-n", "2", "--continue", *STEPS, RC_SLURM_ACCOUNT="a-dmeo", status=None)
    failed = lines(text, "FAILED")
    assert len(failed) == 3
    assert failed[0].endswith(
        "Slurm refused the account of this run (account a-dmeo, the default partition)"
    )
    assert all(re.fullmatch(r"FAILED  podman:\S+  as podman:\S+", line) for line in failed[1:])
    assert text.count("Invalid account") == 1
    assert lines(text, "start", "granted", "retry", "again") == []
    given_back(cluster, site)


VICTIMS = ("doit", "step", "podman", "slurmstepd")


def victims(site: Site, run: Running, kind: str) -> list[int]:
    """The processes of a kind that a run has now."""
    ours = builders(site)
    match kind:
        case "doit":
            return [run.process.pid]
        case "step":
            return [
                each.pid for each in ours if "rc_tasks.steps" in each.argv and "srun" not in each.argv
            ]
        case "podman":
            return [each.pid for each in ours if each.argv[0].endswith("podman")]
        case _:
            parents = {each.parent for each in ours}
            return [
                each.pid
                for each in processes()
                if each.pid in parents and each.argv[0].startswith("slurmstepd")
            ]


@pytest.mark.soak
@pytest.mark.timeout(60 + 12 * ROUNDS)
def test_kill_9_at_random_moments(site: Site, cluster: Cluster, storage: Path, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    site = replace(site, environ={**site.environ, "TMPDIR": str(scratch)})
    names = ("one:1", "child:1")
    targets = [f"build:{name}" for name in names]
    hits = dict.fromkeys(VICTIMS, 0)
    for number in range(ROUNDS):
        kind = VICTIMS[number % len(VICTIMS)]
        site.image("one:1", f"sleep 0.3; echo one {number} > /made")
        site.image("child:1", f"sleep 0.3; cp /made /before; echo child {number} > /made", base="one:1")
        with site.running(*targets) as run:
            found: list[int] = []

            def appeared(found: list[int] = found, run: Running = run, kind: str = kind) -> bool:
                found[:] = victims(site, run, kind)
                return bool(found) or run.process.poll() is not None

            until(lambda: lines(run.text, "start") or run.process.poll() is not None)
            # The moment is the point here, and any will do.
            time.sleep(chance.uniform(0, 1.5))
            until(appeared)
            for pid in found[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hits[kind] += 1
            if kind == "slurmstepd":
                # Slurm 22.05 never notices, and its srun waits for ever: people press Ctrl-C.
                until(lambda run=run: not victims(site, run, "step"))  # its default has no type
                run.process.send_signal(signal.SIGINT)
            until(
                lambda run=run: run.process.poll() is not None, lambda run=run: run.text
            )  # its default has no type
            assert "Traceback" not in run.text, run.text
    assert all(hits.values()), hits
    text = site.run(*targets)
    assert lines(text, "FAILED", "retry") == []
    for name, made in (("one:1", "one"), ("child:1", "child")):
        artifact = site.root / "projects" / name / "image.sqsh"
        argv = ("unsquashfs", "-cat", artifact, "made", *(["before"] if name == "child:1" else []))
        held = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        assert held == [f"{made} {ROUNDS - 1}", f"one {ROUNDS - 1}"][: len(held)]
        assert site.record(name, Step.ENROOT).inputs["image"] == image_id(site, name)
    assert lines(site.run(*targets), "start") == []
    until(lambda: not builders(site))
    given_back(cluster, site)
    assert [path.name for path in scratch.iterdir()] == []
    assert leftovers(site) == []
    # A node is cleared by the next step of the same kind there: child:1 was built last.
    built = storage / site.record("child:1").node
    assert [each for each in containers(built) if "working-container" in each] == []
    for name in names:
        squashed = storage / site.record(name, Step.ENROOT).node
        assert container_name(site.root / "projects" / name / "image.sqsh") not in containers(squashed)
    if containers(built) == []:
        mounted = Path("/proc/self/mountinfo").read_text()
        assert not re.findall(rf" {re.escape(str(built))}/\S*/merged ", mounted)


def image_id(site: Site, name: str) -> str:
    facts = site.record(name).facts
    assert facts is not None
    return facts.image_id


def leftovers(site: Site) -> list[str]:
    """Temporary files and locks in the checkout."""
    hidden = [path for path in site.root.rglob(".*") if path.name not in {".rc", ".gitignore"}]
    locks = (site.root / ".rc/locks").glob("*.json")
    return [str(path.relative_to(site.root)) for path in (*hidden, *locks)]


def containers(node: Path) -> list[str]:
    """The names of podman's containers on a node, those of unfinished builds too."""
    where = ("--root", str(node / "root"), "--runroot", str(node / "run"))
    argv = ("podman", *where, "container", "ls", "--all", "--external", "--format={{.Names}}")
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def test_a_dead_slurmd_alone_loses_nothing(site: Site, cluster: Cluster) -> None:
    # The last test: for half a minute afterwards Slurm gives nobody that node.
    site.waiting("one:1")
    with site.running("build:one:1", RC_SLURM_NODES="2") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        node = steps(cluster)["podman:one:1"]
        cluster.kill_slurmd(node)
        site.go()
        text = run.end()
    assert lines(text, "FAILED") == []
    assert site.record("one:1").node == node
    # What comes after it finds nobody on that node any more, and goes to the other one.
    assert site.record("one:1", Step.ENROOT).node != node
