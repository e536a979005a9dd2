"""Waiting for Slurm's controller, and noticing that a step is gone."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rc_tasks.engine.controller import ClosedError, Controller
from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.srun_watch import SrunWatch
from rc_tasks.errors import SlurmError, UnreachableError
from rc_tasks.tools import slurm


class Site:
    """A controller that answers or not, and whose nodes it knows or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = False
        self.asked = 0
        monkeypatch.setattr("rc_tasks.tools.slurm.answers", self._answers)
        monkeypatch.setattr("rc_tasks.tools.slurm.all_known", lambda _nodes: True)
        monkeypatch.setattr("rc_tasks.tools.slurm.POLL_S", 0.02)
        self.told: list[Event] = []
        self.closing = threading.Event()
        self.controller = Controller(self.told.append, self.closing)

    def _answers(self) -> bool:
        self.asked += 1
        return self.answers


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_all_wait_together_and_it_is_told_once(site: Site) -> None:
    began_s = time.monotonic()
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(site.controller.wait, began_s, None) for _ in range(4)]
        while site.asked < 3:
            time.sleep(0.01)
        assert site.controller.absent
        assert not any(each.done() for each in waiting)
        site.answers = True
        assert [each.result(10) for each in waiting] == [True] * 4
    assert not site.controller.absent
    assert [(each.kind, each.words) for each in site.told] == [
        (EventKind.SLURM, "the controller does not answer: waiting for it"),
        (EventKind.SLURM, "the controller answers again"),
    ]


def test_a_controller_that_answers_at_once_was_not_absent(site: Site) -> None:
    site.answers = True
    assert site.controller.wait(time.monotonic(), None) is False
    assert site.told == []


def test_the_waiting_ends_with_the_time_of_the_allocation(site: Site) -> None:
    began_s = time.monotonic()
    for _ in range(2):
        with pytest.raises(
            SlurmError, match=r"Slurm's controller has not answered for 0\.\d s"
        ) as raised:
            site.controller.wait(began_s, time.monotonic(), why="srun: error: no")
    assert raised.value.quote == ("srun: error: no",)
    assert len(site.told) == 1, "the second one does not wait once more"


def test_the_waiting_ends_with_the_run(site: Site) -> None:
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(site.controller.wait, time.monotonic(), None) for _ in range(3)]
        while not site.asked:
            time.sleep(0.01)
        site.closing.set()
        for each in waiting:
            with pytest.raises(ClosedError):
                each.result(10)


def test_a_request_is_made_again_once_the_controller_answers(site: Site) -> None:
    said: list[str] = []

    def ask() -> str:
        if not site.answers:
            site.answers = True
            raise UnreachableError("no")
        return "yes"

    assert slurm.patiently(ask, said.append) == "yes"
    assert said == [
        "Slurm: the controller does not answer: waiting for it",
        "Slurm: the controller answers again",
    ]


def test_patience_ends(site: Site) -> None:
    def ask() -> str:
        raise UnreachableError("no")

    with pytest.raises(UnreachableError):
        slurm.patiently(ask, lambda _line: None, 0.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time as a SrunWatch sees it, to be set."""
    now = [1000.0]
    monkeypatch.setattr("rc_tasks.engine.srun_watch.time.monotonic", lambda: now[0])
    return now


def leave(path: Path, job_id: str = "7", age_s: float = 0.0) -> None:
    """A lock that its holder touched so long ago; of a node that is not this host."""
    holder = {"step": "podman:a", "user": "a", "node": "far", "pid": 1, "job_id": job_id, "since": ""}
    path.write_text(json.dumps(holder))
    touched_s = time.time() - age_s
    os.utime(path, (touched_s, touched_s))


def after(clock: list[float], seconds: float) -> None:
    clock[0] += seconds


def watch(lock: Path, *, done: bool = False) -> SrunWatch:
    return SrunWatch(lock, "7", "podman:a", lambda: done)


@pytest.fixture(autouse=True)
def ran_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long Slurm says that the step has run."""
    found = [0.0]
    monkeypatch.setattr("rc_tasks.tools.slurm.step_time_s", lambda _job, _step: found[0])
    return found


def test_a_step_that_waits_for_cpus_is_not_lost(tmp_path: Path, clock: list[float]) -> None:
    srun = watch(tmp_path / "lock")
    for _ in range(5):
        assert not srun.srun_hangs()
        after(clock, 1000)


def test_a_step_that_has_long_run_without_its_lock_is_lost(
    tmp_path: Path, clock: list[float], ran_s: list[float]
) -> None:
    srun = watch(tmp_path / "lock")
    ran_s[0] = 290
    after(clock, 301)
    assert not srun.srun_hangs()
    ran_s[0] = 310
    assert not srun.srun_hangs(), "Slurm was asked just now"
    after(clock, 61)
    assert srun.srun_hangs()


def test_a_step_may_be_done_before_its_lock_is_seen(tmp_path: Path, clock: list[float]) -> None:
    srun = watch(tmp_path / "lock", done=True)
    assert not srun.srun_hangs()
    after(clock, 61)
    assert srun.srun_hangs()


def test_a_lock_of_others_says_nothing_of_the_step(tmp_path: Path, clock: list[float]) -> None:
    leave(tmp_path / "lock", "6", age_s=1000)
    srun = watch(tmp_path / "lock")
    for _ in range(5):
        assert not srun.srun_hangs()
        after(clock, 1000)


def test_a_step_whose_lock_is_lost_is_lost(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, answers = tmp_path / "lock", [False, True]
    # It watches a lock for a while before it says so: tests/unit/state/test_locks.py.
    monkeypatch.setattr("rc_tasks.state.disk.locks.expired", lambda _lock: answers.pop(0))
    srun = watch(lock)
    leave(lock)
    assert not srun.srun_hangs()
    assert not srun.srun_hangs(), "just asked"
    after(clock, 11)
    assert srun.srun_hangs() and srun.hung


def test_srun_has_a_minute_after_the_lock_was_released(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    monkeypatch.setattr("rc_tasks.state.disk.locks.expired", lambda _lock: False)
    srun = watch(lock)
    leave(lock)
    assert not srun.srun_hangs()
    lock.unlink()
    assert not srun.srun_hangs()
    after(clock, 59)
    assert not srun.srun_hangs()
    after(clock, 2)
    assert srun.srun_hangs()
