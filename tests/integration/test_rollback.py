"""The image before, put back and forward again, and space freed beside a build: with real images."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rc_tasks.state.store.store import Store
from tests.support.checkouts import write_checkout
from tests.support.runs import Site, lines, until
from tests.support.storage import remove_storage

pytestmark = [pytest.mark.podman, pytest.mark.timeout(240)]

DAY_S = 86_400


def recipe(mark: str, comment: str = "") -> str:
    return (
        f"{comment}FROM scratch\nCOPY busybox /bin/busybox\n"
        f'RUN ["/bin/busybox", "sh", "-c", "echo {mark} > /mark"]\n'
        'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\n'
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A checkout in which one image was published three times."""
    root = write_checkout(
        tmp_path_factory.mktemp("published") / "it's ä",
        {"base/Dockerfile": ""},
        'images_root = "/official"',
    )
    shutil.copy("/bin/busybox", root / "base/busybox")
    signs = tmp_path_factory.mktemp("signs")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        environ = {
            "RC_RUNNER": "local",
            "RC_PODMAN_STORAGE": storage,
            "RC_PODMAN_ISOLATION": "chroot",
            "RC_PODMAN_VOLUMES": f"{signs}:/signs",
        }
        site = Site(root, signs, environ)
        for mark in ("one", "two", "three"):
            (root / "base/Dockerfile").write_text(recipe(mark))
            site.run("build")
        yield site
        remove_storage(Path(storage))


@pytest.fixture
def site(published: Site, tmp_path: Path) -> Site:
    """A copy of it, with its hard links and time stamps."""
    root, signs = tmp_path / "it's ä", tmp_path / "signs"
    subprocess.run(("cp", "-a", published.root, root), check=True)
    signs.mkdir()
    environ = dict(published.environ) | {"RC_PODMAN_VOLUMES": f"{signs}:/signs"}
    return replace(published, root=root, signs=signs, environ=environ)


def artifact(site: Site, name: str = "base") -> Path:
    return site.root / ("" if name == "base" else "projects") / name / "image.sqsh"


def mark(image: Path | str, descriptors: tuple[int, ...] = ()) -> str:
    argv = ("unsquashfs", "-cat", image, "mark")
    done = subprocess.run(argv, capture_output=True, text=True, check=True, pass_fds=descriptors)
    return done.stdout.strip()


def state(site: Site, name: str = "base") -> tuple[str, bool]:
    listed = json.loads(site.run("list", "--json"))
    found = next(image for image in listed if image["name"] == name)
    return found["state"], found["rolled_back"]


def test_back_and_forward(site: Site) -> None:
    # That the store has forgotten the image makes no difference.
    shutil.rmtree(site.root / ".rc/store/images")
    edf = (site.root / "base/env.toml").read_bytes()
    with artifact(site).open("rb") as job:
        newest = os.fstat(job.fileno()).st_ino
        site.run("rollback", "base")
        assert mark(artifact(site)) == "two"
        site.run("rollback", "base")
        assert mark(artifact(site)) == "one"
        # Who has it open goes on reading what he began.
        assert mark(f"/dev/fd/{job.fileno()}", (job.fileno(),)) == "three"
        assert "that is older than the current one is kept" in site.run("rollback", "base", status=3)
        site.run("rollback", "base", "0")
    assert artifact(site).stat().st_ino == newest and mark(artifact(site)) == "three"
    assert (site.root / "base/env.toml").read_bytes() == edf
    told = [entry["reason"] for entry in json.loads(site.run("history", "--json")) if entry["reason"]]
    assert [words.split(" to the ")[0] for words in told[-3:]] == [
        "rolled back",
        "rolled back",
        "forward again",
    ]


def test_it_stays_back_until_something_else_is_built(site: Site) -> None:
    site.run("rollback", "base", "1")
    back = json.loads((site.root / "base/image.json").read_text())
    assert state(site) == ("fresh", True)
    # image.json is written again, and of the image that is there.
    (site.root / "base/image.json").unlink()
    assert len(lines(site.run("build"), "start")) == 1
    assert json.loads((site.root / "base/image.json").read_text()) == back
    (site.root / "base/Dockerfile").write_text(recipe("three", comment="# the same\n"))
    text = site.run("build")
    assert [line.split()[1] for line in lines(text, "start")] == ["podman:base"], text
    assert (state(site), mark(artifact(site))) == (("fresh", True), "two")
    # What is built on it is built on the newest.
    site.image("child:1", "true")
    site.run("build")
    assert (mark(artifact(site, "child:1")), mark(artifact(site))) == ("three", "two")
    (site.root / "base/Dockerfile").write_text(recipe("four"))
    assert state(site) == ("stale", True)
    text = site.run("build:base")
    assert "start   enroot:base  the image was rebuilt" in text
    # A run knows what its own podman step has changed.
    assert len(lines(text, "start")) == 2, text
    assert (state(site), mark(artifact(site))) == (("fresh", False), "four")
    shown = site.run("rollback", "base", "--list").splitlines()[1:]
    assert [line.split()[0] for line in shown] == ["0", "1", "2", "3"]
    assert site.run("build:base").endswith("1 image: 1 fresh\n")


@pytest.mark.parametrize("between", ["two", "four"], ids=["what is published", "unpublished"])
def test_whatever_is_built_in_between_ends_a_rollback(site: Site, between: str) -> None:
    site.run("rollback", "base")
    (site.root / "base/Dockerfile").write_text(recipe(between))
    site.run("podman:base")
    assert (state(site)[1], mark(artifact(site))) == (False, "two")
    (site.root / "base/Dockerfile").write_text(recipe("three"))
    text = site.run("build:base")
    assert [line.split()[1] for line in lines(text, "start")] == ["podman:base", "enroot:base"], text
    assert (state(site), mark(artifact(site))) == (("fresh", False), "three")


def test_published_images_beyond_the_setting_go_when_no_job_can_need_them(site: Site) -> None:
    entries = sorted((site.root / ".rc/previous/base").iterdir())
    assert len(entries) == 2
    with (entries[0] / "image.sqsh").open("rb") as job:
        (site.root / "base/Dockerfile").write_text(recipe("five"))
        site.run("build", RC_STORE_PREVIOUS="1", RC_STORE_PREVIOUS_DAYS="0")
        left = sorted((site.root / ".rc/previous/base").iterdir())
        assert len(left) == 1 and left[0] not in entries
        assert mark(f"/dev/fd/{job.fileno()}", (job.fileno(),)) == "one"
    assert mark(left[0] / "image.sqsh") == "three"


def test_gc_beside_a_build_takes_nothing_that_it_needs(site: Site, tmp_path: Path) -> None:
    site.waiting("slow:1")
    with site.running("build") as run:
        until(lambda: site.begun("slow:1"), lambda: run.text)
        # All that is there might have been written days ago.
        then = time.time() - 3 * DAY_S
        for path in (site.root / ".rc/store").rglob("*"):
            os.utime(path, (then, then), follow_symlinks=False)
        before = set((site.root / ".rc/store/images").iterdir())
        said = site.run("gc", "--dry-run").partition("\nnot here")[0]
        text = site.run("gc")
        assert text.startswith(said.strip().rpartition("\n")[0]) and "freed " in text
        assert set((site.root / ".rc/store/images").iterdir()) < before
        site.go()
        run.end()
    assert lines(site.run("build"), "start") == []
    # Every image that is recorded is there for a node that has none.
    site.image("top:1", "cat /mark > /top", base="slow:1")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        text = site.run("build", RC_PODMAN_STORAGE=storage)
        remove_storage(Path(storage))
    assert "again " not in text and lines(text, "FAILED") == []
    assert mark(artifact(site, "top:1")) == "three"


def test_gc_now_beside_a_build_frees_what_nothing_needs(site: Site) -> None:
    site.image("child:1", "cat /mark > /child")
    site.run("build")
    for mark_now in ("six", "seven"):
        (site.root / "base/Dockerfile").write_text(recipe(mark_now))
        site.run("build", RC_STORE_PREVIOUS="1", RC_STORE_PREVIOUS_DAYS="0")
    site.run("rollback", "base")
    store = Store(site.root / ".rc/store")
    images = store.directory / "images"
    before = set(images.iterdir())
    assert ", are younger than a day: doit gc --now" in site.run("gc")
    assert set(images.iterdir()) == before
    site.waiting("slow:1")
    with site.running("build:slow:1") as run:
        until(lambda: site.begun("slow:1"), lambda: run.text)
        during = json.loads(site.run("gc", "--now", "--yes", "--json"))
        site.go()
        run.end()
    # The step began just now, but clocks of nodes may differ: what was used shortly before stays, too.
    assert any(" has been running podman:slow:1 since " in line for line in during["left"])
    assert lines(site.run("build:slow:1"), "start") == []
    size_bytes = store.size_bytes()
    freed = json.loads(site.run("gc", "--now", "--yes", "--json"))
    blobs_bytes = size_bytes - store.size_bytes()
    assert 0 < blobs_bytes <= freed["freed_bytes"] == freed["size_bytes"]
    assert before - set(images.iterdir())
    site.run("verify", "--all")
    # Images are built on what is left, on a node that has nothing; also the one that was rolled back.
    site.image("top:1", "cat /made > /top", base="slow:1")
    site.image("other:1", "cat /child > /other", base="child:1")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        text = site.run("build", RC_PODMAN_STORAGE=storage)
        remove_storage(Path(storage))
    assert "again " not in text and lines(text, "FAILED") == []
    assert (mark(artifact(site)), state(site)) == ("six", ("fresh", True))
    site.run("rollback", "base", "0")
    assert mark(artifact(site)) == "seven"
