"""Where steps go on this host, what is expected of them, and what becomes of those that wait."""

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from rc_tasks.engine.order import Order, order
from rc_tasks.engine.places import ClosedError, Place, Places, release_abandoned
from rc_tasks.engine.schedule import Wanted
from rc_tasks.model.settings import Runner, Slurm
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records import Step
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


def here(checkout: Checkout, at_once: int) -> Places:
    return Places(checkout, Runner.LOCAL, at_once, lambda _event: None)


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_on_this_host_slurms_settings_do_not_count(checkout: Checkout) -> None:
    places = here(checkout, 2)
    greedy = Slurm(cpus=64, time_limit_min=1)
    first = places.take(Wanted("a"), greedy, 9e9)
    assert places.take(Wanted("b"), Slurm(partition="other"), None) == Place(
        "b", Slurm(partition="other")
    )
    assert first == Place("a", greedy)


def test_those_that_wait_start_in_order_as_others_leave(checkout: Checkout) -> None:
    places = here(checkout, 1)
    started: list[str] = []
    lock = threading.Lock()

    def run(wanted: Wanted) -> None:
        place = places.take(wanted, Slurm(), None)
        with lock:
            started.append(wanted.task)
        places.leave(place)

    held = places.take(Wanted("first"), Slurm(), None)
    with ThreadPoolExecutor(40) as threads:
        for number in range(30):
            threads.submit(run, Wanted(str(number), priority_s=number))
        (pool,) = places._pools.values()
        until(lambda: len(pool.waiting) == 30)
        places.leave(held)
    assert started == [str(number) for number in reversed(range(30))]


def test_the_end_of_a_run_is_told_to_all_that_wait(checkout: Checkout) -> None:
    places = here(checkout, 1)
    places.take(Wanted("first"), Slurm(), None)
    with ThreadPoolExecutor() as threads:
        waiting: list[Future[Place]] = [
            threads.submit(places.take, Wanted(str(number)), Slurm(), None) for number in range(3)
        ]
        places.close()
        for each in waiting:
            with pytest.raises(ClosedError):
                each.result(30)
    with pytest.raises(ClosedError):
        places.take(Wanted("late"), Slurm(), None)
    places.release()


def expected(checkout: Checkout, *names: str) -> Order:
    return order(checkout, Judge(checkout), names)


def test_what_is_fresh_takes_no_time_and_what_never_ran_the_median(checkout: Checkout) -> None:
    found = expected(checkout, "top:1", "alone:1")
    assert found.stale_images == 1
    assert found.paths_s["podman:base"] == 0
    assert found.paths_s["podman:alone:1"] == 30.0
    assert found.paths_s["env:alone:1"] == 10.0
    assert "podman:alone:1" not in found.last_s and found.last_s["podman:base"] == 10.0


def test_a_stale_base_has_the_longest_way_before_it(checkout: Checkout) -> None:
    (checkout.root / "base/Dockerfile").write_text("FROM scratch\nENV A=1\n")
    found = expected(open_checkout(checkout.root, {}), "top:1")
    # Three podman steps below one another, or the publishing of all: the longer one counts.
    assert found.paths_s["podman:base"] == 50.0
    assert found.paths_s["podman:left:1"] == found.paths_s["podman:right:1"] == 40.0
    assert found.paths_s["podman:top:1"] == 30.0
    assert found.stale_images == 4


def test_a_step_is_wanted_where_its_images_are(checkout: Checkout) -> None:
    found = expected(checkout, "top:1")
    assert found.wanted(checkout, Step.PODMAN, "top:1").near == {"node1"}
    assert found.wanted(checkout, Step.ENROOT, "top:1").near == {"node1"}
    assert found.wanted(checkout, Step.ENV, "top:1").near == frozenset()
    assert found.wanted(checkout, Step.PODMAN, "base").near == frozenset()


def test_only_without_the_store_families_stay_together(checkout: Checkout) -> None:
    assert expected(checkout, "top:1").groups == {}
    without = open_checkout(checkout.root, {"RC_STORE": "false"})
    kept = expected(without, "top:1").groups
    assert len({kept[name] for name in ("base", "left:1", "right:1", "top:1")}) == 1
    assert kept["alone:1"] != kept["base"]


def test_only_what_a_killed_run_of_ours_left_is_given_back(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert release_abandoned(checkout) == []
    cancelled: list[str] = []

    def cancel(name: str) -> list[str]:
        cancelled.append(name)
        return ["4711"]

    monkeypatch.setattr("rc_tasks.tools.slurm.cancel", cancel)
    holder = {"step": "allocation", "user": "a", "node": os.uname().nodename, "job_id": "", "since": ""}
    checkout.allocations.mkdir(parents=True)
    for name, pid in (("rc_tasks.dead", 2**22 + 1), ("rc_tasks.living", os.getpid())):
        (checkout.allocations / f"{name}.json").write_text(json.dumps({**holder, "pid": pid}))
    if os.getuid() == 0:
        foreign = checkout.allocations / "rc_tasks.foreign.json"
        foreign.write_text(json.dumps({**holder, "pid": 2**22 + 1}))
        os.chown(foreign, 12345, 12345)
    assert release_abandoned(checkout) == ["4711"]
    assert cancelled == ["rc_tasks.dead"]
    assert not (checkout.allocations / "rc_tasks.dead.json").exists()
    assert (checkout.allocations / "rc_tasks.living.json").exists()
