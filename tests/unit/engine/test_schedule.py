"""The order of steps and their nodes: rules alone, so that a night can be simulated."""

import random
from collections.abc import Iterable

from rc_tasks.engine.schedule.slots import Slots, Wanted, critical_paths, groups


def placed(slots: Slots[str]) -> list[tuple[str, str]]:
    """Everything that finds room now, in order."""
    found = []
    while (next_ := slots.place()) is not None:
        found.append((next_[0].task, next_[1]))
    return found


def filled(slots: Slots[str], wanted: Iterable[Wanted[str]]) -> list[tuple[str, str]]:
    for each in wanted:
        slots.want(each)
    return placed(slots)


def test_the_longest_way_to_the_end_goes_first_then_who_came_first() -> None:
    wanted = [Wanted("a", priority_s=1), Wanted("b", priority_s=9), Wanted("c", priority_s=1)]
    assert filled(Slots({"": 3}), wanted) == [("b", ""), ("a", ""), ("c", "")]


def test_steps_spread_to_the_node_with_most_room() -> None:
    wanted = [Wanted(str(number)) for number in range(5)]
    nodes = [node for _, node in filled(Slots({"n1": 2, "n2": 2}), wanted)]
    assert nodes == ["n1", "n2", "n1", "n2"]


def test_a_step_goes_where_its_base_is_while_there_is_room() -> None:
    slots = Slots[str]({"n1": 1, "n2": 4})
    near = frozenset({"n1", "elsewhere"})
    assert filled(slots, [Wanted("a", near=near), Wanted("b", near=near)]) == [("a", "n1"), ("b", "n2")]


def test_no_more_run_than_there_is_room_for() -> None:
    slots = Slots[str]({"n1": 2, "n2": 2})
    assert len(filled(slots, [Wanted(str(number)) for number in range(9)])) == slots.running == 4
    slots.drop("0")
    assert len(placed(slots)) == 1


def test_what_does_not_fit_lets_smaller_ones_pass_and_gets_its_turn() -> None:
    slots = Slots[str]({"n1": 4})
    big, small = Wanted("big", cpus=3, priority_s=9), Wanted("small", cpus=1)
    assert filled(slots, [Wanted("first", cpus=2)]) == [("first", "n1")]
    assert filled(slots, [big, small]) == [("small", "n1")]
    slots.drop("first")
    assert placed(slots) == [("big", "n1")]


def test_a_step_that_asks_for_more_than_a_node_has_gets_all_of_one() -> None:
    slots = Slots[str]({"n1": 2, "n2": 4})
    assert filled(slots, [Wanted("a", cpus=1), Wanted("huge", cpus=99)]) == [("a", "n2"), ("huge", "n1")]
    slots.drop("huge")
    assert filled(slots, [Wanted("b", cpus=2)])[0][0] == "b"


def test_a_group_stays_on_one_node_and_waits_for_it() -> None:
    slots = Slots[str]({"n1": 1, "n2": 1})
    family = [Wanted(name, group="g") for name in ("a", "b")]
    assert filled(slots, [*family, Wanted("other")]) == [("a", "n1"), ("other", "n2")]
    slots.drop("other")
    assert placed(slots) == []
    slots.drop("a")
    assert placed(slots) == [("b", "n1")]


def test_a_lost_node_gets_nothing_more_and_its_group_moves() -> None:
    slots = Slots[str]({"n1": 2, "n2": 2})
    assert filled(slots, [Wanted("a", group="g")]) == [("a", "n1")]
    slots.drop_node("n1")
    assert slots.nodes == ("n2",)
    # What ran there comes back and is tried elsewhere.
    slots.drop("a")
    assert filled(slots, [Wanted("a", group="g"), Wanted("b", group="g")]) == [("a", "n2"), ("b", "n2")]
    slots.drop_node("n2")
    assert not slots.nodes and filled(slots, [Wanted("c")]) == []


def test_who_waits_can_be_forgotten() -> None:
    slots = Slots[str]({"n1": 1})
    assert filled(slots, [Wanted("a"), Wanted("b")]) == [("a", "n1")]
    slots.drop("b")
    slots.drop("never seen")
    slots.drop("a")
    assert placed(slots) == [] and not slots.running


def test_whatever_happens_no_node_holds_more_than_it_has() -> None:
    chance = random.Random(20260102)
    cpus = {"n1": 3, "n2": 5, "n3": 8}
    slots = Slots[str](cpus)
    running: dict[str, tuple[int, str]] = {}
    for number in range(2000):
        slots.want(Wanted(str(number), cpus=chance.randint(1, 10), priority_s=chance.random()))
        while (found := slots.place()) is not None:
            wanted, node = found
            running[wanted.task] = (min(wanted.cpus, cpus[node]), node)
        used = {node: sum(share for share, where in running.values() if where == node) for node in cpus}
        assert all(used[node] <= cpus[node] for node in cpus)
        assert len(running) == slots.running
        for task in chance.sample(sorted(running), min(len(running), chance.randint(0, 3))):
            slots.drop(task)
            del running[task]
    while running:
        for task in list(running):
            slots.drop(task)
            del running[task]
        while (found := slots.place()) is not None:
            running[found[0].task] = (found[0].cpus, found[1])
    assert not slots.running


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
