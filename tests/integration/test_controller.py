"""A Slurm controller that goes away and comes back, and a step whose slurmstepd is killed."""

import json
import os
import re
import signal
import time

import pytest

from rc_tasks.state.history import Outcome
from rc_tasks.tools import slurm
from tests.integration.test_allocation import (
    built,
    full,
    given_back,
    jobs,
    site,
    steps,
    storage,
    tries,
)
from tests.support.cluster import ACCOUNT, Cluster, version
from tests.support.runs import Site, lines, until

__all__ = ["built", "full", "site", "storage"]

pytestmark = [pytest.mark.podman, pytest.mark.slurm, pytest.mark.timeout(300)]

AWAY = "slurm   the controller does not answer: waiting for it"
BACK = "slurm   the controller answers again"
# From here on a step ends once the controller has heard of it (seen with 26.05.5; not so with 24.11.5).
STEPS_WAIT_FOR_CONTROLLER_SINCE = (26, 5)
# Longer than Slurm's clients try by themselves.
LONG_S = 12.0


def test_a_step_waits_for_a_controller_that_restarts(site: Site, cluster: Cluster) -> None:
    site.waiting("one:1")
    site.image("two:1", "true", base="one:1")
    with site.running("podman:two:1", "podman:one:1") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        (job,) = jobs(cluster)
        ends = version() < STEPS_WAIT_FOR_CONTROLLER_SINCE
        cluster.stop_controller()
        try:
            site.go()
            if ends:
                run.says("start   podman:two:1  .*")
                run.says(re.escape(AWAY))
            time.sleep(LONG_S)
        finally:
            cluster.start_controller()
        if ends:
            run.says(BACK)
        text = run.end()
    given_back(cluster, site)
    assert lines(text, "FAILED", "retry") == []
    if not ends:
        # It also ends the job of a step of which it did not hear, and the run asks for another one.
        assert site.record("two:1").job_id in {job, *re.findall(r"granted job (\d+)", text)}
        return
    assert lines(text, "again") == []
    assert len(lines(text, "granted")) == 1
    assert len(lines(text, "slurm")) == 2
    assert {site.record(name).job_id for name in ("one:1", "two:1")} == {job}
    missed = [each for each in tries(site) if each.outcome is Outcome.RETRIED]
    assert {each.error for each in missed} == {"Slurm cannot be reached for podman:two:1"}


def test_memory_is_asked_for_again_after_a_restart(site: Site, cluster: Cluster) -> None:
    site.waiting("one:1")
    site.image("two:1", "true", base="one:1")
    prefix = ("salloc", "--quiet", f"--account={ACCOUNT}", "--nodes=1", "--mem=700")
    extra = '["--mem=500"]'
    with site.running("podman:two:1", "podman:one:1", prefix=prefix, RC_SLURM_EXTRA=extra) as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        cluster.stop_controller()
        try:
            site.go()
            time.sleep(LONG_S)
        finally:
            cluster.start_controller()
        text = run.end()
    assert lines(text, "FAILED", "retry") == []


def test_an_allocation_is_asked_for_once_the_controller_answers(site: Site, cluster: Cluster) -> None:
    site.image("one:1", "true")
    with cluster.frozen_controller(), site.running("podman:one:1") as run:
        run.says(re.escape(AWAY))
        run.process.terminate()
        run.end(130)
    with site.running("podman:one:1") as run:
        text = run.end()
    assert len(lines(text, "granted")) == 1
    given_back(cluster, site)


def test_ctrl_c_ends_the_waiting_for_a_controller(site: Site, cluster: Cluster) -> None:
    site.image("one:1", "true")
    cluster.stop_controller()
    try:
        with site.running("podman:one:1") as run:
            run.says(re.escape(AWAY))
            run.process.send_signal(signal.SIGINT)
            text = run.end(130)
        assert lines(text, "FAILED", "granted") == []
        assert "did not confirm" not in text, "there never was a job"
    finally:
        cluster.start_controller()
    assert jobs(cluster) == []


def test_what_could_not_be_released_is_released_by_the_next_run(site: Site, cluster: Cluster) -> None:
    site.waiting("one:1")
    try:
        with site.running("podman:one:1") as run:
            until(lambda: site.begun("one:1"), lambda: run.text)
            (job,) = jobs(cluster)
            cluster.stop_controller()
            run.process.send_signal(signal.SIGINT)
            text = run.end(130)
        assert (
            f"warning: Slurm did not confirm the release of job {job}; the next run releases it\n"
            f"  next: scancel {job}, once `scontrol ping` reports the controller up\n"
        ) in text
    finally:
        cluster.start_controller()
    assert jobs(cluster) == [job]
    with site.running("podman:one:1") as run:
        # Before that, the step of the earlier run could still end well.
        run.says(f"job {job} of an earlier run released")
        site.go()
        text = run.end()
    assert text.splitlines()[0] == f"job {job} of an earlier run released"
    assert len(lines(text, "done")) == 1
    given_back(cluster, site)


def test_a_controller_that_lost_its_state(site: Site, cluster: Cluster) -> None:
    """It ends the jobs that it does not know, and their steps are tried again in another one."""
    site.waiting("one:1")
    with site.running("podman:one:1") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        (site.signs / "one").unlink()
        cluster.stop_controller()
        cluster.start_controller(forgetful=True)
        run.says(r"retry   podman:one:1  podman:one:1 was killed from outside \(try 2 of 3\)")
        site.go()
        text = run.end()
    assert len(lines(text, "granted")) == 2
    assert re.search(r"^again   job \d+ is over: asking for another one$", text, re.MULTILINE)
    given_back(cluster, site)


@pytest.mark.parametrize("whole", [False, True], ids=["slurmstepd", "slurmstepd and the step"])
def test_a_step_whose_slurmstepd_was_killed_is_tried_elsewhere(
    site: Site, cluster: Cluster, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    site.waiting("one:1")
    with site.running("podman:one:1", RC_SLURM_NODES="2") as run:
        until(lambda: site.begun("one:1"), lambda: run.text)
        node = steps(cluster)["podman:one:1"]
        (lock,) = (site.root / ".rc/locks").glob("one:1*")
        cluster.kill_slurmstepd("podman", "one:1")
        if whole:
            os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
        else:
            # It cannot write to the log any more, and fails.
            (site.signs / "go").touch()
            until(lambda: not lock.exists())
            (site.signs / "go").unlink()
        # In the log is nothing, and srun would wait for ever.
        time.sleep(55)
        assert lines(run.text, "retry") == []
        (job,) = jobs(cluster)
        assert slurm.step_time_s(job, "podman:one:1") > 50, "Slurm does not notice"
        what = f"the step is gone from {node}, and srun did not notice"
        run.says(rf"retry   podman:one:1  {what} \(try 2 of 3\)")
        site.go()
        text = run.end()
    assert lines(text, "FAILED") == []
    (lost, done) = tries(site)
    assert (lost.outcome, lost.node, lost.error) == (Outcome.RETRIED, node, what)
    assert done.outcome is Outcome.DONE
    assert done.node in {"node1", "node2"} - {node}
    given_back(cluster, site)
