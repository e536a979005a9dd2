"""The main job on a real Slurm cluster: every step is a job step on a node of its own podman storage."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.cluster import Cluster
from tests.support.doit import DOIT, doit, start
from tests.support.storage import remove_storage

pytestmark = [pytest.mark.podman, pytest.mark.slurm]

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n"
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\nWORKDIR /workspace\n',
    "projects/one:1/Dockerfile": "FROM base\nRUN echo one > /one\n",
    "projects/two:1/Dockerfile": "FROM base\nRUN echo two > /two\n",
    "projects/both:1/Dockerfile": "FROM one:1\nCOPY --from=two:1 /two /two\n",
    "projects/both:latest": "-> both:1",
}


@pytest.fixture
def environ(cluster: Cluster) -> Iterator[dict[str, str]]:
    """What a user's shell on the login node has; podman's images lie on each node apart."""
    # /dev/shm as on diskless nodes, and a short name: podman's paths may be 50 characters long.
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        yield {
            **cluster.environment,
            "RC_RUNNER": "slurm",
            "RC_SLURM_ACCOUNT": "a-demo",
            "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
        }
        for node in cluster.node_names:
            remove_storage(Path(storage) / node)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout whose path has a space, a colon and an umlaut."""
    made = write_checkout(tmp_path / "imgs: ä b", FILES)
    shutil.copy("/bin/busybox", made / "base/busybox")
    return made


def nodes(root: Path) -> set[str]:
    """The nodes that the podman steps ran on."""
    return {json.loads(path.read_text())["node"] for path in root.glob(".rc/state/podman:*.json")}


def test_images_are_built_on_the_nodes_and_then_nothing_is_left_to_do(
    root: Path, environ: dict[str, str]
) -> None:
    ran = doit(root, "-n", "3", "build:both:latest", environ=environ)
    assert ran.status == 0, ran.text
    assert len(ran.started) == 12
    assert ran.text.endswith("4 images: 4 built\nnext: doit local both:latest\n")
    for name in ("base", "projects/one:1", "projects/two:1", "projects/both:1"):
        subprocess.run(
            ["unsquashfs", "-s", root / name / "image.sqsh"], check=True, stdout=subprocess.PIPE
        )
    assert nodes(root) <= {"node1", "node2", "node3"}
    record = json.loads((root / "projects/both:1/image.json").read_text())
    assert record["job_id"] and set(record["bases"]) == {"one:1", "two:1"}
    assert doit(root, environ=environ).started == []


def test_a_step_brings_its_base_from_the_store_to_another_node(
    root: Path, environ: dict[str, str]
) -> None:
    assert (
        doit(root, "build:base", environ={**environ, "RC_SLURM_EXTRA": "--nodelist=node1"}).status == 0
    )
    ran = doit(root, "build:both:1", environ={**environ, "RC_SLURM_EXTRA": "--nodelist=node3"})
    assert ran.status == 0, ran.text
    assert "podman:base" not in ran.started
    assert nodes(root) == {"node1", "node3"}
    listing = subprocess.run(
        ["unsquashfs", "-cat", root / "projects/both:1/image.sqsh", "one", "two"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert listing == "one\ntwo\n"


def test_a_rebuild_on_another_node_resumes_at_the_changed_line(
    root: Path, environ: dict[str, str]
) -> None:
    dockerfile = root / "projects/one:1/Dockerfile"
    dockerfile.write_text('FROM base\nRUN date > /slow\nSHELL ["/bin/sh", "-ec"]\nRUN echo one > /one\n')
    assert doit(root, "build:one", environ={**environ, "RC_SLURM_EXTRA": "--nodelist=node1"}).status == 0
    before = in_image(root, "slow")
    dockerfile.write_text(dockerfile.read_text().replace("echo one", "echo two"))
    shutil.rmtree(root / ".rc/logs")
    assert doit(root, "build:one", environ={**environ, "RC_SLURM_EXTRA": "--nodelist=node2"}).status == 0
    (log,) = (root / ".rc/logs/one:1/podman").glob("2*.log")
    assert log.read_text().count("Using cache") == 2
    assert (in_image(root, "slow"), in_image(root, "one")) == (before, "two\n")


def in_image(root: Path, path: str) -> str:
    """A file of the published image of `one:1`."""
    argv = ("unsquashfs", "-cat", str(root / "projects/one:1/image.sqsh"), path)
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_inside_an_allocation_steps_are_job_steps_of_it(
    root: Path, environ: dict[str, str], cluster: Cluster
) -> None:
    done = subprocess.run(
        ["srun", "--account=a-demo", "--nodes=1", "--cpus-per-task=2", DOIT, "build:one"],
        cwd=root,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    jobs = {json.loads(path.read_text())["job_id"] for path in root.glob(".rc/state/*.json")}
    assert len(jobs) == 1, "all steps ran in the one job"


def test_settings_and_project_toml_reach_slurm(
    root: Path, environ: dict[str, str], cluster: Cluster
) -> None:
    (root / "projects/one:1/project.toml").write_text(
        '[slurm]\npartition = "normal"\ntime_limit_min = 7\ncpus = 2\n'
    )
    ran = doit(root, "build:one", environ=environ)
    assert ran.status == 0, ran.text
    (log,) = (root / ".rc/logs/one:1/podman").glob("2*.log")
    assert "--cpus-per-task=2" in log.read_text().splitlines()[0]
    # A project that asks for another partition gets an allocation of its own there.
    base, one = (job_of(root, f"podman:{name}") for name in ("base", "one:1"))
    assert base != one
    assert "Partition=debug " in cluster.client("scontrol", "show", "job", base).stdout
    told = cluster.client("scontrol", "show", "job", one).stdout
    assert "Partition=normal " in told and "TimeLimit=00:07:00" in told


def job_of(root: Path, task: str) -> str:
    """The job in which a step ran."""
    found: str = json.loads((root / f".rc/state/{task}.json").read_text())["job_id"]
    return found


def test_a_refused_partition_is_told_once_with_the_setting(root: Path, environ: dict[str, str]) -> None:
    ran = doit(root, "build:base", environ={**environ, "RC_SLURM_PARTITION": "nosuch"})
    assert ran.status != 0
    assert ran.text.count("invalid partition specified: nosuch") == 1
    assert "slurm.partition" in ran.text and "Traceback" not in ran.text


def test_other_images_go_on_when_one_step_is_cancelled(
    root: Path, environ: dict[str, str], cluster: Cluster
) -> None:
    (root / "projects/one:1/Dockerfile").write_text("FROM base\nRUN sleep 60\n")
    with start(root, "-n", "2", "--continue", environ=environ) as running:
        wait_for_log(root / ".rc/logs/one:1/podman", "sleep 60")
        steps = cluster.client("squeue", "--steps", "--noheader", "--format=%i %j").stdout
        (step,) = (line.split()[0] for line in steps.splitlines() if line.endswith("podman:one:1"))
        cluster.client("scancel", step)
        text, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "FAILED  podman:one:1  podman:one:1 was cancelled" in text, text
    assert (root / "projects/two:1/image.sqsh").exists()
    assert not (root / "projects/both:1/image.sqsh").exists()
    shown = doit(root, "list", environ=environ).text
    assert "failed" in shown


def test_ctrl_c_ends_the_steps_and_keeps_what_is_finished(
    root: Path, environ: dict[str, str], cluster: Cluster
) -> None:
    (root / "projects/one:1/Dockerfile").write_text("FROM base\nRUN sleep 60\n")
    for number in (signal.SIGINT, signal.SIGTERM):
        with start(root, "build:one", environ=environ) as running:
            wait_for_log(root / ".rc/logs/one:1/podman", "sleep 60")
            running.send_signal(number)
            text, _ = running.communicate(timeout=60)
        assert running.returncode == 130 and "Traceback" not in text, text
        assert "stays finished" in text
        jobs = cluster.client("squeue", "--noheader", "--states=running,pending").stdout
        assert jobs.strip() == ""
        shutil.rmtree(root / ".rc/logs/one:1")
    assert "podman:base" not in doit(root, "plan", "base", environ=environ).text


def wait_for_log(directory: Path, text: str, timeout_s: float = 180) -> None:
    """Wait until a step's log has a text."""
    import time

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(text in path.read_text(errors="replace") for path in directory.glob("*.log")):
            return
        time.sleep(0.1)
    raise AssertionError(f"{text!r} did not appear in {directory}")
