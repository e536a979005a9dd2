"""The images that were published before: kept by hard link, put back whole, killed at any moment."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rc_tasks.model.graph.project import Project
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.disk.processes import space
from rc_tasks.state.records.digests import sample_digest
from rc_tasks.state.records.records import Artifact, Step
from rc_tasks.state.store import previous
from rc_tasks.state.store.previous import put_back
from rc_tasks.steps.publish import squash
from tests.support.checkouts import pretend_built, record, write_checkout
from tests.support.doit import doit

NAME = "app:1"
# After all that is published by the test's own clock.
FIRST_S = 2_000_000_000
# A moment at which a process acts upon files.
ACTS = frozenset({"open", "os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.utime"})


def checkout(tmp_path: Path, settings: str = "") -> Checkout:
    root = write_checkout(
        tmp_path / "it's ä", {f"projects/{NAME}/Dockerfile": "FROM debian\n"}, settings
    )
    pretend_built(root)
    return open_checkout(root, {})


def project(opened: Checkout) -> Project:
    return opened.graph.images[NAME].project


def publish(opened: Checkout, number: int) -> None:
    """Publish an image of other content, as the step does."""
    here = project(opened)
    opened.previous.keep(here, opened.records.get(Step.ENROOT, NAME))
    made = squash.temporary(here.artifact)
    made.write_bytes(content(number))
    mtime_ns = (FIRST_S + number) * 10**9
    os.utime(made, ns=(mtime_ns, mtime_ns))
    squash.publish(made, here.artifact)
    artifact = Artifact(len(content(number)), mtime_ns, sample_digest(str(here.artifact)))
    image_id = id_of(number)
    here.image_json.write_text(json.dumps({"image_id": image_id, "number": number}))
    opened.records.put(Step.ENROOT, NAME, record({"image": image_id}, artifact=artifact))


def id_of(number: int) -> str:
    return f"{number:012x}".ljust(64, "0")


def content(number: int) -> bytes:
    return b"hsqs" + f"{number} ".encode() * 1000


def entries(opened: Checkout) -> list[str]:
    return opened.previous.entries(NAME)


def tree(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_each_image_that_is_replaced_is_kept_as_another_name_of_its_file(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    for number in (1, 2, 3):
        publish(opened, number)
    here = project(opened)
    found = opened.previous.of(here, opened.records.get(Step.ENROOT, NAME))
    assert [each.image_id for each in found[:3]] == [id_of(number) for number in (3, 2, 1)]
    assert [each.current for each in found] == [True, False, False, False]
    assert found[1].path.read_bytes() == content(2)
    assert json.loads((found[1].path.with_name("image.json")).read_text())["number"] == 2
    assert found[1].path.stat().st_nlink == 1
    # Keeping what is published costs no space, and doing it twice nothing at all.
    for _ in range(2):
        assert opened.previous.keep(here, opened.records.get(Step.ENROOT, NAME)) == ""
    assert here.artifact.stat().st_nlink == 2
    assert len(entries(opened)) == 4


@pytest.mark.parametrize("what", ["adopted", "damaged", "gone", "never recorded"])
def test_what_is_not_as_it_was_published_is_not_kept(tmp_path: Path, what: str) -> None:
    opened = checkout(tmp_path)
    here = project(opened)
    published = opened.records.get(Step.ENROOT, NAME)
    match what:
        case "adopted":
            official = tmp_path / "official.sqsh"
            os.rename(here.artifact, official)
            here.artifact.symlink_to(official)
        case "damaged":
            here.artifact.write_bytes(b"hsqs")
        case "gone":
            here.artifact.unlink()
        case _:
            published = None
    assert opened.previous.keep(here, published) == ""
    assert entries(opened) == []


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def link(source: object, destination: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(source), None, str(destination))

    monkeypatch.setattr(os, "link", link)
    yield


@pytest.mark.usefixtures("without_links")
def test_without_hard_links_images_are_kept_and_put_back_as_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rc_tasks.commands.rollback import _roll_back

    opened = checkout(tmp_path)
    publish(opened, 1)
    publish(opened, 2)
    here = project(opened)
    # Once: keeping it again copies nothing.
    capsys.readouterr()
    assert opened.previous.keep(here, opened.records.get(Step.ENROOT, NAME)) == ""
    assert capsys.readouterr().out == f"copying {here.artifact}: it cannot have a hard link there\n"
    assert opened.previous.keep(here, opened.records.get(Step.ENROOT, NAME)) == ""
    assert capsys.readouterr().out == ""
    for number in (1, 2, 1):
        _roll_back(opened, here, 1 if number == 1 else 0)
        assert here.artifact.read_bytes() == content(number)
        found = opened.previous.of(here, opened.records.get(Step.ENROOT, NAME))
        assert [each.image_id for each in found if each.current] == [id_of(number)]
    assert len(entries(opened)) == 3
    left = tree(opened.root / "projects") | tree(opened.previous.directory)
    assert not [path for path in left if ".tmp" in path or ".keep." in path]


def test_an_image_that_cannot_be_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = checkout(tmp_path)

    def link(source: object, destination: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(destination))

    monkeypatch.setattr(os, "link", link)
    told = opened.previous.keep(project(opened), opened.records.get(Step.ENROOT, NAME))
    assert told.startswith("No space left on device: ")
    assert tree(opened.previous.directory) == {NAME}


def surplus(opened: Checkout, *, named: Callable[[str], bool] = lambda _: False) -> list[str]:
    found = opened.previous.surplus(project(opened), opened.settings.store, named)
    return [path.name.rpartition(".")[2] for path in found]


def test_the_newest_and_those_that_jobs_may_run_from_stay(tmp_path: Path) -> None:
    opened = checkout(tmp_path, "[tool.rc_tasks.store]\nprevious = 2\nprevious_days = 3\n")
    for number in range(1, 6):
        publish(opened, number)
    assert len(entries(opened)) == 5
    assert surplus(opened) == []
    for entry in (opened.previous.directory / NAME).iterdir():
        os.utime(entry, (0, 0))
    assert surplus(opened)[1:] == [id_of(number)[:12] for number in (1, 2)]
    named = entries(opened)[0]
    assert len(surplus(opened, named=lambda text: text == named)) == 2
    # What is published is not a previous one, wherever it stands.
    here = project(opened)
    oldest = opened.previous.of(here, None)[-1]
    put_back(here, oldest, squash.temporary(here.artifact))
    assert oldest.image_id[:12] not in surplus(opened)


def test_fewer_than_the_setting_all_stay(tmp_path: Path) -> None:
    opened = checkout(tmp_path, "[tool.rc_tasks.store]\nprevious = 9\nprevious_days = 0\n")
    for number in (1, 2, 3):
        publish(opened, number)
    assert surplus(opened) == []


def killed_at(moment: int, act: Callable[[], None]) -> bool:
    """Let another process act and kill it before it does its n-th thing; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = moment

        def see(event: str, _: object) -> None:
            nonlocal left
            if event in ACTS:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(see)
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WIFSIGNALED(status), "it failed by itself"
    return os.WIFSIGNALED(status)


def test_killed_at_any_moment_a_publication_leaves_one_whole_image(tmp_path: Path) -> None:
    for moment in range(200):
        opened = checkout(tmp_path / str(moment))
        publish(opened, 1)
        hit = killed_at(moment, lambda opened=opened: publish(opened, 2))
        here = project(opened)
        assert here.artifact.read_bytes() in (content(1), content(2))
        for entry in entries(opened):
            place = opened.previous.directory / NAME / entry
            assert {path.name for path in place.iterdir()} == {"image.sqsh", "image.json", "record.json"}
        squash.sweep(here.directory)
        again = open_checkout(opened.root, {})
        publish(again, 3)
        assert here.artifact.read_bytes() == content(3)
        left = tree(opened.root / "projects") | tree(opened.previous.directory)
        assert not [path for path in left if ".tmp" in path or ".keep." in path], moment
        if not hit:
            assert moment > 10
            return
    raise AssertionError("it never ends")


def test_killed_at_any_moment_a_rollback_leaves_one_whole_image(tmp_path: Path) -> None:
    from rc_tasks.commands.rollback import _roll_back

    for moment in range(200):
        opened = checkout(tmp_path / str(moment))
        publish(opened, 1)
        publish(opened, 2)
        here = project(opened)
        # Opened anew: another process knows nothing yet.
        again = open_checkout(opened.root, {})
        hit = killed_at(moment, lambda again=again, here=here: _roll_back(again, here, 1) and None)
        assert here.artifact.read_bytes() in (content(1), content(2))
        # Tried again, it is done, whatever was done before.
        _roll_back(open_checkout(opened.root, {}), here, 1)
        assert here.artifact.read_bytes() == content(1)
        assert json.loads(here.image_json.read_text())["number"] == 1
        published = open_checkout(opened.root, {}).records.get(Step.ENROOT, NAME)
        assert published is not None and published.instead_of == id_of(2)
        assert published.inputs["image"] == id_of(1)
        squash.sweep(here.directory)
        opened.previous.keep(here, open_checkout(opened.root, {}).records.get(Step.ENROOT, NAME))
        left = tree(opened.root / "projects") | tree(opened.previous.directory)
        assert not [path for path in left if ".tmp" in path or ".keep." in path], moment
        if not hit:
            assert moment > 10
            return
    raise AssertionError("it never ends")


def test_rolled_back_and_forward_as_a_user_sees_it(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    newest = opened.records.get(Step.ENROOT, NAME)
    assert newest is not None and newest.artifact is not None
    publish(opened, 1)
    # The newest is what the recipe was built to.
    here = project(opened)
    podman = opened.records.get(Step.PODMAN, NAME)
    assert podman is not None and podman.facts is not None
    publish(opened, 2)
    found = opened.records.get(Step.ENROOT, NAME)
    assert found is not None
    opened.records.put(
        Step.ENROOT, NAME, record({"image": podman.facts.image_id}, artifact=found.artifact)
    )
    here.image_json.write_text("{}")
    reasons = listed(opened)
    assert reasons["state"] == "fresh" and not reasons["rolled_back"]

    before = here.artifact.read_bytes()
    ran = doit(opened.root, "rollback", NAME)
    assert ran.status == 0, ran.text
    assert ran.text.splitlines()[1] == (
        f"next: `doit rollback {NAME} 0` or a change of the recipe puts the newest image back"
    )
    assert here.artifact.read_bytes() == content(1)
    assert json.loads(here.image_json.read_text())["number"] == 1
    told = listed(opened)
    assert (told["state"], told["rolled_back"]) == ("fresh", True)
    assert str(told["reasons"]).startswith("['rolled back to the image published 2026-01-02 ")
    assert "rolled back" in doit(opened.root, "why", NAME).text
    assert doit(opened.root).started == []
    history = doit(opened.root, "history").text
    assert "rolled back to the image published 2026-01-02" in history

    ran = doit(opened.root, "rollback", NAME, "0")
    assert ran.status == 0, ran.text
    assert here.artifact.read_bytes() == before
    assert not listed(opened)["rolled_back"]
    assert "forward again" in doit(opened.root, "history").text
    assert doit(opened.root).started == []


def listed(opened: Checkout) -> dict[str, object]:
    found = json.loads(doit(opened.root, "list", "--json").text)
    assert isinstance(found, list)
    return dict(found[0])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        pytest.param((), 3, "NAME is missing", id="no image"),
        pytest.param(("app",), 3, "no previous image of app:1 is kept", id="nothing kept"),
        pytest.param((NAME, "9"), 3, "no previous image of app:1 is kept", id="no such number"),
        pytest.param((NAME, "-1"), 3, "", id="a negative number"),
        pytest.param((NAME, "²"), 3, "'²' is not the number of an image", id="no number"),
        pytest.param((NAME, "1", "2"), 3, "'1 2' is not the number of an image", id="two numbers"),
        pytest.param(("nobody",), 3, "no image named 'nobody'", id="no such image"),
    ],
)
def test_what_cannot_be_put_back_is_said(
    tmp_path: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    opened = checkout(tmp_path)
    project(opened).artifact.unlink()
    ran = doit(opened.root, "rollback", *words)
    assert (ran.status, said in ran.text, "Traceback" in ran.text) == (status, True, False), ran.text


def test_a_damaged_image_is_not_put_back(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    publish(opened, 1)
    publish(opened, 2)
    kept = opened.previous.of(project(opened), None)[0]
    assert kept.image_id == id_of(1)
    kept.path.write_bytes(b"hsqs")
    ran = doit(opened.root, "rollback", NAME)
    assert ran.status == 3 and "is not as it was published any more" in ran.text, ran.text
    assert "damaged" in doit(opened.root, "rollback", NAME, "--list").text
    assert project(opened).artifact.read_bytes() == content(2)


def test_an_adopted_image_is_rolled_back_where_it_is_official(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    publish(opened, 1)
    publish(opened, 2)
    here = project(opened)
    os.rename(here.artifact, tmp_path / "official.sqsh")
    here.artifact.symlink_to(tmp_path / "official.sqsh")
    ran = doit(opened.root, "rollback", NAME)
    assert ran.status == 3 and "run `doit rollback` in the official checkout" in ran.text, ran.text
    assert here.artifact.is_symlink()


def test_a_removed_entry_is_gone_as_a_whole(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    publish(opened, 1)
    publish(opened, 2)
    for entry in entries(opened):
        previous.remove(opened.previous.directory / NAME / entry)
    assert tree(opened.previous.directory) == {NAME}


def test_what_a_killed_process_left_goes_with_the_next_image_whatever_is_kept(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    publish(opened, 1)
    publish(opened, 2)
    left = opened.previous.directory / NAME / f".keep.{os.uname().nodename}+{space()}.{2**22 - 1}.x"
    left.mkdir()
    # Nothing is worth keeping: the file is not as it was published.
    project(opened).artifact.write_bytes(b"other")
    assert opened.previous.keep(project(opened), opened.records.get(Step.ENROOT, NAME)) == ""
    assert not left.exists()
