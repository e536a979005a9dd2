"""Where steps go on this host, what is expected of them, and what becomes of those that wait."""

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import pytest

from rc_tasks.engine.controller import ClosedError
from rc_tasks.engine.events import Event
from rc_tasks.engine.run.allocator import Allocator, Slot, release_abandoned
from rc_tasks.engine.schedule.estimates import Order, order
from rc_tasks.engine.schedule.scheduler import ReadyStep
from rc_tasks.errors import SlurmError
from rc_tasks.model.config.settings import Runner, Slurm
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.disk.processes import space
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step, Task
from rc_tasks.tools.slurm import Granted
from rc_tasks.tools.slurm_request import StepRequest
from tests.support.checkouts import pretend_built, write_checkout

FILES = {
    "base/Dockerfile": "FROM scratch\n",
    "projects/left:1/Dockerfile": "FROM base\n",
    "projects/right:1/Dockerfile": "FROM base\n",
    "projects/top:1/Dockerfile": "FROM left:1\nCOPY --from=right:1 /a /b\n",
    "projects/alone:1/Dockerfile": "FROM scratch\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout in which everything but `alone:1` was built, ten seconds a step."""
    root = write_checkout(tmp_path / "imgs", FILES)
    pretend_built(root, {"base", "left:1", "right:1", "top:1"})
    return open_checkout(root, {})


def here(checkout: Checkout, at_once: int) -> Allocator:
    return Allocator(checkout, Runner.LOCAL, at_once, lambda _event: None)


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_on_this_host_slurms_settings_do_not_count(checkout: Checkout) -> None:
    allocator = here(checkout, 2)
    greedy = Slurm(cpus=64, time_limit_min=1)
    first = allocator.take(ReadyStep(Task(Step.PODMAN, "a")), greedy, 9e9)
    assert allocator.take(ReadyStep(Task(Step.PODMAN, "b")), Slurm(partition="other"), None) == Slot(
        Task(Step.PODMAN, "b"), Slurm(partition="other")
    )
    assert first == Slot(Task(Step.PODMAN, "a"), greedy)


def test_those_that_wait_start_in_order_as_others_leave(checkout: Checkout) -> None:
    allocator = here(checkout, 1)
    started: list[Task] = []
    lock = threading.Lock()

    def run(wanted: ReadyStep[Task]) -> None:
        slot = allocator.take(wanted, Slurm(), None)
        with lock:
            started.append(wanted.task)
        allocator.free(slot)

    held = allocator.take(ReadyStep(Task(Step.PODMAN, "first")), Slurm(), None)
    with ThreadPoolExecutor(40) as threads:
        for number in range(30):
            threads.submit(run, ReadyStep(Task(Step.PODMAN, str(number)), priority_s=number))
        (pool,) = allocator._pools.values()
        until(lambda: len(pool.waiting) == 30)
        allocator.free(held)
    assert [task.name for task in started] == [str(number) for number in reversed(range(30))]


def test_the_end_of_a_run_is_told_to_all_that_wait(checkout: Checkout) -> None:
    allocator = here(checkout, 1)
    allocator.take(ReadyStep(Task(Step.PODMAN, "first")), Slurm(), None)
    with ThreadPoolExecutor() as threads:
        waiting: list[Future[Slot]] = [
            threads.submit(allocator.take, ReadyStep(Task(Step.PODMAN, str(number))), Slurm(), None)
            for number in range(3)
        ]
        allocator.close()
        for each in waiting:
            with pytest.raises(ClosedError):
                each.result(30)
    with pytest.raises(ClosedError):
        allocator.take(ReadyStep(Task(Step.PODMAN, "late")), Slurm(), None)
    allocator.release()


class Site:
    """In place of Slurm: every allocation is granted at once, with a node of four CPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[str] = []
        self.states: dict[str, str] = {}
        monkeypatch.setattr("rc_tasks.tools.slurm.Allocation", lambda *_: self)
        monkeypatch.setattr(
            "rc_tasks.tools.slurm.state", lambda job: (self.states.get(job, "RUNNING"), "")
        )
        monkeypatch.setattr("rc_tasks.tools.slurm.time_left_s", lambda _job: None)
        self.ended = False
        self.released = True

    def wait(self, _queued: Callable[[str], None]) -> Granted:
        self.jobs.append(str(len(self.jobs) + 1))
        self.ended = False
        return Granted(self.jobs[-1], {"node1": 4})

    def release(self) -> bool:
        return self.released


def test_a_request_names_the_settings_that_count_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = '[tool.rc_tasks.slurm]\npartition = "normal"\n[tool.rc_tasks.arch.aarch64]\npartition = "gh"'
    checkout = open_checkout(write_checkout(tmp_path / "imgs", FILES, arch), {})
    requests: list[StepRequest] = []
    site = Site(monkeypatch)

    def ask(request: StepRequest, *_: object) -> Site:
        requests.append(request)
        return site

    monkeypatch.setattr("rc_tasks.tools.slurm.Allocation", ask)
    allocator = Allocator(checkout, Runner.SLURM, 3, lambda _event: None)
    with closing(allocator):
        for machine in ("", "aarch64"):
            settings = checkout.settings.slurm_for(machine)
            allocator.take(ReadyStep(Task(Step.PODMAN, f"a{machine}")), settings, None)
    told = [(each.settings_table, each.partition, each.cpus, each.steps) for each in requests]
    assert told == [("slurm", "normal", 0, 3), ("arch.aarch64", "gh", 0, 3)]


def test_an_allocation_without_nodes_is_told(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch)
    monkeypatch.setattr(site, "wait", lambda _queued: Granted("1", {}))
    allocator = Allocator(checkout, Runner.SLURM, 1, lambda _event: None)
    with closing(allocator), pytest.raises(SlurmError, match="does not name the nodes of job 1"):
        allocator.take(ReadyStep(Task(Step.PODMAN, "a")), Slurm(), None)


def test_no_more_run_at_once_than_asked_for_in_all_allocations_together(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch)
    allocator = Allocator(checkout, Runner.SLURM, 1, lambda _event: None)
    kinds = [Slurm(time_limit_min=number + 1) for number in range(3)]
    with ThreadPoolExecutor() as threads, closing(allocator):
        waiting = {
            threads.submit(
                allocator.take, ReadyStep(Task(Step.PODMAN, str(kind.time_limit_min))), kind, None
            )
            for kind in kinds
        }
        while waiting:
            (done, *more), waiting = wait(waiting, 30, FIRST_COMPLETED)
            time.sleep(0.1)
            assert not more and not any(each.done() for each in waiting)
            assert len(site.jobs) == len(kinds) - len(waiting), "only then is there another one"
            allocator.free(done.result())


def test_an_allocation_that_slurm_has_forgotten_is_worth_another_one(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch)
    told: list[Event] = []
    allocator = Allocator(checkout, Runner.SLURM, 0, told.append)
    allocator.free(allocator.take(ReadyStep(Task(Step.PODMAN, "a")), Slurm(), None))
    site.ended = True
    site.states["1"] = ""
    assert allocator.take(ReadyStep(Task(Step.PODMAN, "b")), Slurm(), None).job_id == "2"
    assert "job 1 is over: asking for another one" in [event.words for event in told]
    allocator.release()


def test_an_allocation_whose_release_was_not_confirmed_is_noted(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch)
    allocator = Allocator(checkout, Runner.SLURM, 0, lambda _event: None)
    allocator.free(allocator.take(ReadyStep(Task(Step.PODMAN, "a")), Slurm(), None))
    (lock,) = checkout.allocations.glob("*.json")
    site.released = False
    assert allocator.release() == ("1",)
    (note,) = checkout.allocations.iterdir()
    assert note == lock.with_suffix(".left")
    monkeypatch.setattr("rc_tasks.tools.slurm.cancel", lambda _name: ["1"])
    assert release_abandoned(checkout) == ["1"]
    assert list(checkout.allocations.iterdir()) == []


def expected(checkout: Checkout, *names: str) -> Order:
    return order(checkout, Judge(checkout), names)


def test_what_is_fresh_takes_no_time_and_what_never_ran_the_median(checkout: Checkout) -> None:
    found = expected(checkout, "top:1", "alone:1")
    assert found.stale_images == 1
    assert found.paths_s[Task(Step.PODMAN, "base")] == 0
    assert found.paths_s[Task(Step.PODMAN, "alone:1")] == 30.0
    assert found.paths_s[Task(Step.ENV, "alone:1")] == 10.0
    assert Task(Step.PODMAN, "alone:1") not in found.last_s
    assert found.last_s[Task(Step.PODMAN, "base")] == 10.0


def test_a_stale_base_has_the_longest_way_before_it(checkout: Checkout) -> None:
    (checkout.root / "base/Dockerfile").write_text("FROM scratch\nENV A=1\n")
    found = expected(open_checkout(checkout.root, {}), "top:1")
    # Three podman steps below one another, or the publishing of all: the longer one counts.
    assert found.paths_s[Task(Step.PODMAN, "base")] == 50.0
    assert found.paths_s[Task(Step.PODMAN, "left:1")] == 40.0
    assert found.paths_s[Task(Step.PODMAN, "right:1")] == 40.0
    assert found.paths_s[Task(Step.PODMAN, "top:1")] == 30.0
    assert found.stale_images == 4


def test_a_step_is_wanted_where_its_images_are(checkout: Checkout) -> None:
    found = expected(checkout, "top:1")
    assert found.ready_step(checkout, Task(Step.PODMAN, "top:1")).near == {"node1"}
    assert found.ready_step(checkout, Task(Step.ENROOT, "top:1")).near == {"node1"}
    assert found.ready_step(checkout, Task(Step.ENV, "top:1")).near == frozenset()
    assert found.ready_step(checkout, Task(Step.PODMAN, "base")).near == frozenset()


def test_only_without_the_store_families_stay_together(checkout: Checkout) -> None:
    assert expected(checkout, "top:1").groups == {}
    without = open_checkout(checkout.root, {"RC_STORE_ENABLED": "false"})
    kept = expected(without, "top:1").groups
    assert len({kept[name] for name in ("base", "left:1", "right:1", "top:1")}) == 1
    assert kept["alone:1"] != kept["base"]


def test_only_what_a_killed_run_of_ours_left_is_given_back(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert release_abandoned(checkout) == []
    cancelled: list[str] = []

    def cancel(name: str) -> list[str] | None:
        cancelled.append(name)
        return ["4711"] if reachable else None

    reachable = False

    monkeypatch.setattr("rc_tasks.tools.slurm.cancel", cancel)
    holder = {"step": "allocation", "user": "a", "node": os.uname().nodename, "job_id": "", "since": ""}
    holder["space"] = space()
    checkout.allocations.mkdir(parents=True)
    for name, pid in (("rc_tasks.dead", 2**22 + 1), ("rc_tasks.living", os.getpid())):
        (checkout.allocations / f"{name}.json").write_text(json.dumps({**holder, "pid": pid}))
    if os.getuid() == 0:
        foreign = checkout.allocations / "rc_tasks.foreign.json"
        foreign.write_text(json.dumps({**holder, "pid": 2**22 + 1}))
        os.chown(foreign, 12345, 12345)
    (checkout.allocations / "rc_tasks.kept.left").write_text("{}")
    ours = ["rc_tasks.dead", "rc_tasks.kept"]
    assert release_abandoned(checkout) == []
    assert cancelled == ours
    assert (checkout.allocations / "rc_tasks.kept.left").exists(), "Slurm could not say"
    assert (checkout.allocations / "rc_tasks.dead.json").exists()
    reachable = True
    assert release_abandoned(checkout) == ["4711", "4711"]
    assert cancelled == ours * 2
    assert not (checkout.allocations / "rc_tasks.kept.left").exists()
    assert not (checkout.allocations / "rc_tasks.dead.json").exists()
    assert (checkout.allocations / "rc_tasks.living.json").exists()
