"""The order of steps and their nodes: rules alone, so that a night can be simulated."""

import random
from collections.abc import Iterable

from rc_tasks.engine.schedule.scheduler import ReadyStep, Scheduler, critical_paths, groups


def placed(scheduler: Scheduler[str]) -> list[tuple[str, str]]:
    """Everything that finds room now, in order."""
    found = []
    while (next_ := scheduler.start_next()) is not None:
        found.append((next_[0].task, next_[1]))
    return found


def filled(scheduler: Scheduler[str], wanted: Iterable[ReadyStep[str]]) -> list[tuple[str, str]]:
    for each in wanted:
        scheduler.queue(each)
    return placed(scheduler)


def test_the_longest_way_to_the_end_goes_first_then_who_came_first() -> None:
    wanted = [ReadyStep("a", priority_s=1), ReadyStep("b", priority_s=9), ReadyStep("c", priority_s=1)]
    assert filled(Scheduler({"": 3}), wanted) == [("b", ""), ("a", ""), ("c", "")]


def test_steps_spread_to_the_node_with_most_room() -> None:
    wanted = [ReadyStep(str(number)) for number in range(5)]
    nodes = [node for _, node in filled(Scheduler({"n1": 2, "n2": 2}), wanted)]
    assert nodes == ["n1", "n2", "n1", "n2"]


def test_a_step_goes_where_its_base_is_while_there_is_room() -> None:
    scheduler = Scheduler[str]({"n1": 1, "n2": 4})
    near = frozenset({"n1", "elsewhere"})
    assert filled(scheduler, [ReadyStep("a", near=near), ReadyStep("b", near=near)]) == [
        ("a", "n1"),
        ("b", "n2"),
    ]


def test_no_more_run_than_there_is_room_for() -> None:
    scheduler = Scheduler[str]({"n1": 2, "n2": 2})
    assert (
        len(filled(scheduler, [ReadyStep(str(number)) for number in range(9)])) == scheduler.running == 4
    )
    scheduler.drop("0")
    assert len(placed(scheduler)) == 1


def test_what_does_not_fit_lets_smaller_ones_pass_and_gets_its_turn() -> None:
    scheduler = Scheduler[str]({"n1": 4})
    big, small = ReadyStep("big", cpus=3, priority_s=9), ReadyStep("small", cpus=1)
    assert filled(scheduler, [ReadyStep("first", cpus=2)]) == [("first", "n1")]
    assert filled(scheduler, [big, small]) == [("small", "n1")]
    scheduler.drop("first")
    assert placed(scheduler) == [("big", "n1")]


def test_a_step_that_asks_for_more_than_a_node_has_gets_all_of_one() -> None:
    scheduler = Scheduler[str]({"n1": 2, "n2": 4})
    assert filled(scheduler, [ReadyStep("a", cpus=1), ReadyStep("huge", cpus=99)]) == [
        ("a", "n2"),
        ("huge", "n1"),
    ]
    scheduler.drop("huge")
    assert filled(scheduler, [ReadyStep("b", cpus=2)])[0][0] == "b"


def test_a_group_stays_on_one_node_and_waits_for_it() -> None:
    scheduler = Scheduler[str]({"n1": 1, "n2": 1})
    family = [ReadyStep(name, group="g") for name in ("a", "b")]
    assert filled(scheduler, [*family, ReadyStep("other")]) == [("a", "n1"), ("other", "n2")]
    scheduler.drop("other")
    assert placed(scheduler) == []
    scheduler.drop("a")
    assert placed(scheduler) == [("b", "n1")]


def test_a_lost_node_gets_nothing_more_and_its_group_moves() -> None:
    scheduler = Scheduler[str]({"n1": 2, "n2": 2})
    assert filled(scheduler, [ReadyStep("a", group="g")]) == [("a", "n1")]
    scheduler.drop_node("n1")
    assert scheduler.nodes == ("n2",)
    # What ran there comes back and is tried elsewhere.
    scheduler.drop("a")
    assert filled(scheduler, [ReadyStep("a", group="g"), ReadyStep("b", group="g")]) == [
        ("a", "n2"),
        ("b", "n2"),
    ]
    scheduler.drop_node("n2")
    assert not scheduler.nodes and filled(scheduler, [ReadyStep("c")]) == []


def test_who_waits_can_be_forgotten() -> None:
    scheduler = Scheduler[str]({"n1": 1})
    assert filled(scheduler, [ReadyStep("a"), ReadyStep("b")]) == [("a", "n1")]
    scheduler.drop("b")
    scheduler.drop("never seen")
    scheduler.drop("a")
    assert placed(scheduler) == [] and not scheduler.running


def test_whatever_happens_no_node_holds_more_than_it_has() -> None:
    chance = random.Random(20260102)
    cpus = {"n1": 3, "n2": 5, "n3": 8}
    scheduler = Scheduler[str](cpus)
    running: dict[str, tuple[int, str]] = {}
    for number in range(2000):
        scheduler.queue(ReadyStep(str(number), cpus=chance.randint(1, 10), priority_s=chance.random()))
        while (found := scheduler.start_next()) is not None:
            wanted, node = found
            running[wanted.task] = (min(wanted.cpus, cpus[node]), node)
        used = {node: sum(share for share, where in running.values() if where == node) for node in cpus}
        assert all(used[node] <= cpus[node] for node in cpus)
        assert len(running) == scheduler.running
        for task in chance.sample(sorted(running), min(len(running), chance.randint(0, 3))):
            scheduler.drop(task)
            del running[task]
    while running:
        for task in list(running):
            scheduler.drop(task)
            del running[task]
        while (found := scheduler.start_next()) is not None:
            running[found[0].task] = (found[0].cpus, found[1])
    assert not scheduler.running


def test_critical_paths_count_what_waits_for_a_task() -> None:
    seconds = {"base": 5.0, "short": 1.0, "long": 7.0, "last": 2.0, "alone": 3.0}
    before = {"short": ["base"], "long": ["base"], "last": ["short", "long"], "alone": ["not here"]}
    assert critical_paths(seconds, before) == {
        "base": 14.0,
        "short": 3.0,
        "long": 9.0,
        "last": 2.0,
        "alone": 3.0,
    }


def test_groups_are_those_that_are_linked_in_any_way() -> None:
    found = groups({"a": [], "b": ["a"], "c": ["b"], "d": [], "e": ["d"], "f": []})
    assert len({found["a"], found["b"], found["c"]}) == len({found["d"], found["e"]}) == 1
    assert len(set(found.values())) == 3
    assert set(found) == {"a", "b", "c", "d", "e", "f"}
