"""`doit watch` with real builds: after an edit, a mistake and its repair, and after a signal."""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rc_tasks.tools.podman import Podman
from tests.integration.test_terminal import built, site, storage
from tests.support.cluster import ACCOUNT, Cluster, processes
from tests.support.containers import working_runtime
from tests.support.doit import DOIT, doit
from tests.support.runs import Running, Site, until
from tests.support.storage import remove_storage
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.podman, pytest.mark.timeout(300)]

WATCHING = r"watching \d+ files of 2 images; Ctrl-C ends"
__all__ = ["built", "site", "storage"]


@pytest.fixture
def on_nodes(site: Site, cluster: Cluster) -> Iterator[Site]:
    """The same on a cluster; afterwards no job is left."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        slurm = {
            **cluster.environment,
            "RC_RUNNER": "slurm",
            "RC_SLURM_ACCOUNT": ACCOUNT,
            "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
        }
        yield replace(site, environ={**site.environ, **slurm})
        cluster.end_jobs()
        for node in Path(storage).iterdir():
            remove_storage(node)


def says(run: Running, pattern: str, times: int) -> None:
    """Wait until as many lines match as a whole."""

    def said() -> bool:
        assert run.process.poll() is None, run.text
        return len(re.findall(f"^{pattern}$", run.text, re.MULTILINE)) >= times

    until(said, lambda: run.text)


def interrupt(run: Running) -> str:
    run.process.send_signal(signal.SIGINT)
    return run.end(130)


def nothing_left(site: Site) -> None:
    """No lock of a build, no temporary file, and no process."""
    until(lambda: not list((site.root / ".rc/locks").glob("*.json")))
    no_process(site)
    assert list((site.root / "projects/app:1").glob(".*.tmp*")) == []


def no_process(site: Site) -> None:
    """No process that works in the checkout, or for one that does."""
    of_ours = {f"RC_PODMAN_VOLUMES={site.environ['RC_PODMAN_VOLUMES']}"}
    until(lambda: not [each.argv for each in processes() if of_ours & each.environment])


def published(site: Site, file: str) -> str:
    """A file of the published image."""
    image = site.root / "projects/app:1/image.sqsh"
    return subprocess.run(
        ("unsquashfs", "-cat", image, file), check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("options", [(), ("--poll",)], ids=["inotify", "poll"])
def test_an_edit_a_mistake_and_its_repair(
    site: Site, storage: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    runtime = working_runtime(
        Podman(root=f"{storage}/root", runroot=f"{storage}/run"), tmp_path / "rootfs"
    )
    project = site.root / "projects/app:1"
    site.image("app:1", "true")
    right = project.joinpath("Dockerfile").read_text() + "COPY file* /\n"
    project.joinpath("Dockerfile").write_text(right)
    project.joinpath("file").write_text("first")
    smoke = [["sh", "-c", "test $(cat /file) != wrong"]]
    project.joinpath("project.toml").write_text(f"smoke = {json.dumps(smoke)}\n")
    with site.running("watch", *options, "app:1", RC_PODMAN_RUNTIME=runtime) as run:
        says(run, WATCHING, 1)
        way = "polling every 1 s: --poll was given" if options else "inotify"
        assert re.match(f"changes are noticed by {way}\nstart   ", run.text)
        assert published(site, "file") == "first"

        project.joinpath("file").write_text("second")
        says(run, r"changed: projects/app:1/file", 1)
        says(run, WATCHING, 2)
        assert published(site, "file") == "second"

        # The smoke test fails, and the image before it stays.
        project.joinpath("file").write_text("wrong")
        says(run, WATCHING, 3)
        assert "FAILED  enroot:app:1" in run.text
        assert published(site, "file") == "second"

        project.joinpath("Dockerfile").write_text(right.replace("COPY", "CPY"))
        says(run, WATCHING, 4)
        assert re.search(r"projects/app:1/Dockerfile:3", run.text)

        for number in range(200):
            project.joinpath(f"file{number}").write_text("many")
        project.joinpath("file").write_text("third")
        project.joinpath("Dockerfile").write_text(right)
        says(run, r"changed: projects/app:1/Dockerfile, .* and 197 more", 1)
        says(run, WATCHING, 5)
        assert published(site, "file") == "third"
        assert published(site, "file199") == "many"
        text = interrupt(run)
    assert text.count("changed: ") == 4
    assert len(re.findall(r"^done    podman:app:1 ", text, re.MULTILINE)) == 4
    assert text.endswith("Ctrl-C ends\ninterrupted\n")
    nothing_left(site)
    # It is as fresh as after any other run.
    assert doit(site.root, "plan", "app:1", environ=site.environ).text == "nothing to do\n"


def test_a_change_during_a_build_leads_to_another(site: Site) -> None:
    site.waiting("app:1")
    with site.running("watch", "app:1") as run:
        until(lambda: site.begun("app:1"), lambda: run.text)
        dockerfile = site.root / "projects/app:1/Dockerfile"
        dockerfile.write_text(f"{dockerfile.read_text()}ENV A=1\n")
        site.go()
        says(run, WATCHING, 1)
        text = interrupt(run)
    assert text.count("changed: projects/app:1/Dockerfile\n") == 1
    assert text.count("done    podman:app:1 ") == 2


def test_ctrl_c_during_a_build_at_a_terminal(site: Site) -> None:
    site.waiting("app:1")
    with Terminal((DOIT, "watch", "app:1"), site.root, site.environ, 100, 24) as shown:
        shown.shows(lambda text: "1 running" in text and site.begun("app:1"))
        shown.type("\x03")
        status, text = shown.end()
    assert status == 130
    assert "interrupted: ending podman:app:1; what is finished stays finished" in text
    assert text.endswith("not finished\ninterrupted")
    nothing_left(site)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_its_end_ends_the_build(site: Site, number: signal.Signals) -> None:
    site.waiting("app:1")
    with site.running("watch", "app:1") as run:
        until(lambda: site.begun("app:1"), lambda: run.text)
        run.process.send_signal(number)
        status = run.process.wait(60)
    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 130)
    nothing_left(site)


def jobs(cluster: Cluster) -> list[str]:
    return cluster.client("squeue", "--noheader", "--format=%i").stdout.split()


@pytest.mark.slurm
def test_each_build_releases_its_allocation(on_nodes: Site, cluster: Cluster) -> None:
    site = on_nodes
    site.image("app:1", "true")
    with site.running("watch", "app:1") as run:
        says(run, WATCHING, 1)
        until(lambda: not jobs(cluster))
        assert "within `salloc`" in run.text.partition("\n")[0]
        site.waiting("app:1")
        until(lambda: site.begun("app:1"), lambda: run.text)
        assert len(jobs(cluster)) == 1
        text = interrupt(run)
    assert len(re.findall("^granted job", text, re.MULTILINE)) == 2
    until(lambda: not jobs(cluster))
    assert list((site.root / ".rc/allocations").iterdir()) == []
    no_process(site)


@pytest.mark.slurm
def test_within_a_job_of_ones_own_each_build_uses_that(on_nodes: Site, cluster: Cluster) -> None:
    site = on_nodes
    site.image("app:1", "true")
    prefix = ("salloc", f"--account={ACCOUNT}", "--nodes=1", "--time=30", "--quiet")
    with site.running("watch", "app:1", prefix=prefix) as run:
        says(run, WATCHING, 1)
        (job,) = jobs(cluster)
        site.image("app:1", "echo")
        says(run, WATCHING, 2)
        assert jobs(cluster) == [job]
        (watcher,) = (each for each in processes() if each.argv[1:3] == (DOIT, "watch"))
        os.kill(watcher.pid, signal.SIGINT)
        text = run.end(130)
    assert site.record("app:1").job_id == job
    assert "granted" not in text and "salloc" not in text
    until(lambda: not jobs(cluster))
