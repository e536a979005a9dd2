"""Rollbacks: how long they hold, also when a process is killed at any moment."""

import json
from pathlib import Path

from msgspec.structs import replace

from rc_tasks.commands.rollback import _roll_back
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Record, Step
from rc_tasks.state.records.rollback import next_generation, put_back_record, rolled_back_from
from tests.unit.state.test_previous import NAME, checkout, content, id_of, killed_at, project, publish


def built(opened: Checkout, number: int) -> Record:
    """Return the record of a build that gives an image, after the build that is recorded."""
    earlier = opened.records.get(Step.PODMAN, NAME)
    assert earlier is not None and earlier.facts is not None
    facts = replace(earlier.facts, image_id=id_of(number))
    generation = next_generation(earlier, facts.image_id)
    return replace(earlier, facts=facts, generation=generation)


def published_twice(root: Path) -> Checkout:
    """Return a checkout that has built and published two images."""
    opened = checkout(root)
    for number in (1, 2):
        opened.records.put(Step.PODMAN, NAME, built(opened, number))
        publish(opened, number)
    # Every store has the images.
    for number in (1, 2, 3):
        manifest = opened.store.directory / "images" / id_of(number) / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
    return opened


def replaced(opened: Checkout) -> str:
    """Return the image that a rollback replaced, by the files alone."""
    records = open_checkout(opened.root, {}).records
    return rolled_back_from(records.get(Step.ENROOT, NAME), records.get(Step.PODMAN, NAME))


def test_a_rollback_holds_until_another_image_is_built(tmp_path: Path) -> None:
    opened = published_twice(tmp_path)
    _roll_back(opened, project(opened), 1)
    assert replaced(opened) == id_of(2)
    opened.records.put(Step.PODMAN, NAME, built(opened, 2))
    assert replaced(opened) == id_of(2)
    # Neither the third image nor the second one, when it is built again, was rolled back.
    for number in (3, 2):
        opened.records.put(Step.PODMAN, NAME, built(opened, number))
        assert replaced(opened) == ""


def test_no_rollback_outlives_a_build_of_the_image_that_it_published(tmp_path: Path) -> None:
    opened = published_twice(tmp_path)
    _roll_back(opened, project(opened), 1)
    opened.records.put(Step.PODMAN, NAME, built(opened, 1))
    assert replaced(opened) == ""
    _roll_back(opened, project(opened), 2)
    assert replaced(opened) == id_of(1)


def test_a_rollback_of_an_earlier_version_holds_and_ends(tmp_path: Path) -> None:
    opened = published_twice(tmp_path)
    _roll_back(opened, project(opened), 1)
    for step in (Step.PODMAN, Step.ENROOT):
        path, _ = opened.records.files(step, NAME)
        document = json.loads(path.read_text())
        del document["generation"]
        path.write_text(json.dumps(document))
    assert replaced(opened) == id_of(2)
    again = open_checkout(opened.root, {})
    again.records.put(Step.PODMAN, NAME, built(again, 3))
    again.records.put(Step.PODMAN, NAME, built(again, 2))
    assert replaced(opened) == ""


def test_the_newest_image_put_back_is_no_rollback(tmp_path: Path) -> None:
    opened = published_twice(tmp_path)
    _roll_back(opened, project(opened), 1)
    _roll_back(opened, project(opened), 0)
    assert replaced(opened) == ""
    record = opened.records.get(Step.ENROOT, NAME)
    assert record is not None and put_back_record(record, "", None) == record


def test_killed_at_any_moment_a_rollback_is_done_or_undone_by_the_next_run(tmp_path: Path) -> None:
    for moment in range(200):
        opened = published_twice(tmp_path / str(moment))
        hit = killed_at(
            moment,
            lambda opened=opened: _roll_back(opened, project(opened), 1) and None,
        )
        again = open_checkout(opened.root, {})
        judge, shown = Judge(again), project(again).artifact.read_bytes()
        if judge.rolled_back(NAME):
            assert shown == content(1) and judge.step(Step.ENROOT, NAME).fresh
        elif shown == content(1):
            assert not judge.step(Step.ENROOT, NAME).fresh
        if not hit:
            assert moment > 10 and judge.rolled_back(NAME)
            return
    raise AssertionError("it never ends")


def test_killed_at_any_moment_a_build_ends_a_rollback_or_leaves_it(tmp_path: Path) -> None:
    for moment in range(50):
        opened = published_twice(tmp_path / str(moment))
        _roll_back(opened, project(opened), 1)
        record, (published, _) = built(opened, 3), opened.records.files(Step.ENROOT, NAME)
        before = published.read_bytes()
        hit = killed_at(
            moment, lambda opened=opened, record=record: opened.records.put(Step.PODMAN, NAME, record)
        )
        assert published.read_bytes() == before
        now = open_checkout(opened.root, {}).records.get(Step.PODMAN, NAME)
        assert now is not None and now.facts is not None
        assert replaced(opened) == ("" if now.facts.image_id == id_of(3) else id_of(2))
        if not hit:
            assert moment > 1 and replaced(opened) == ""
            return
    raise AssertionError("it never ends")
