"""`doit gc`: what nothing needs goes, all else stays, and it says the same before it does it."""

import contextlib
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.commands.gc import collect
from rc_tasks.engine.session import Session
from rc_tasks.engine.upkeep.garbage import Collector, GarbageKind, Item, freed_bytes, measure
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.disk import locks
from rc_tasks.state.disk.files import temporary_prefix
from rc_tasks.state.disk.processes import space
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.digests import content_digest, sample_digest
from rc_tasks.state.records.records import Step
from rc_tasks.state.store import garbage
from rc_tasks.state.store.catalogue import Cached, Pulled
from rc_tasks.state.store.store import Store
from rc_tasks.steps.node import podman_storage
from tests.support.checkouts import pretend_built, record, write_checkout
from tests.support.doit import DOIT, Ran, doit
from tests.support.terminal import Terminal

NAMES = ("base", "app:1", "gone:1")
RECIPES = {
    "base/Dockerfile": "FROM debian\n",
    "projects/app:1/Dockerfile": "FROM base\nRUN true\n",
    "projects/gone:1/Dockerfile": "FROM base\nRUN false\n",
}
DAY_S = 86_400


def put(store: Store, image_id: str, layers: dict[str, int]) -> None:
    """An image in a store as skopeo and we leave it, with zeros in its layers."""
    blobs, view = store.directory / "blobs/sha256", store.directory / "images" / image_id
    blobs.mkdir(parents=True, exist_ok=True)
    view.mkdir(parents=True, exist_ok=True)
    parts = [{"digest": f"sha256:{digest(name)}", "size": size} for name, size in layers.items()]
    manifest = {"config": {"digest": f"sha256:{image_id}", "size": 100}, "layers": parts}
    (view / "manifest.json").write_text(json.dumps(manifest))
    for name, size in {**{digest(name): size for name, size in layers.items()}, image_id: 100}.items():
        if not (blobs / name).is_symlink():
            (blobs / name).write_bytes(bytes(size))
        if not (view / name).is_symlink():
            (view / name).symlink_to(f"../../blobs/sha256/{name}")


def digest(name: str) -> str:
    return name * 64


def old(*places: Path, days: float = 40) -> None:
    """Let all below some directories have been written long ago."""
    then = time.time() - days * DAY_S
    for place in places:
        for path in (place, *place.rglob("*")):
            os.utime(path, (then, then), follow_symlinks=False)


def checkout(tmp_path: Path, settings: str = "") -> Checkout:
    """Two images on a registry base, with a cache and a kept image; three that nothing needs."""
    root = write_checkout(tmp_path / "it's ä", RECIPES, settings)
    pretend_built(root)
    opened = open_checkout(root, {})
    store = opened.store
    put(store, digest("d"), {"1": 1000})
    for name in NAMES:
        put(store, image_id(opened, name), {"1": 1000, str(2 + NAMES.index(name)): 200})
    put(store, digest("c"), {"1": 1000, "a": 30})
    put(store, digest("e"), {"1": 1000, "b": 70_000})
    put(store, digest("f"), {"1": 1000, "b": 70_000, "9": 5})
    store.catalogue.put_base(Pulled("debian", "sha256:1", digest("d"), "", ""), "x86_64")
    store.catalogue.put_cache("app:1", (Cached(digest("c"), ""),))
    old(root)
    return opened


def image_id(opened: Checkout, name: str) -> str:
    return content_digest(str(opened.graph.images[name].project.dockerfile))


def gc(opened: Checkout, *argv: str) -> Ran:
    """What `doit gc` says and does, without a process of its own."""
    checkout = open_checkout(opened.root, {})
    dry_run, verbose = bool({"-n", "--dry-run"} & {*argv}), bool({"-v", "--verbose"} & {*argv})
    current, now = Session(checkout, Judge(checkout)), "--now" in argv
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = collect(current, dry_run=dry_run, verbose=verbose, now=now)
    return Ran(status, said.getvalue())


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def named(ran: Ran) -> set[str]:
    """The paths that --verbose names."""
    return set(re.findall(r"^  (\S.*)$", ran.text, re.MULTILINE))


def test_what_is_said_before_is_what_goes(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    before = tree(opened.root)
    dry = gc(opened, "--dry-run", "--verbose")
    assert tree(opened.root) == before
    blobs, images = ".rc/store/blobs/sha256", ".rc/store/images"
    assert named(dry) == {
        f"{images}/{digest('e')}",
        f"{images}/{digest('f')}",
        *(f"{blobs}/{digest(each)}" for each in "ef9b"),
    }
    # Two manifests, two configurations, a layer that both have, and one of 5 bytes.
    assert re.search(r"^ +4  70 kB  their layers$", dry.text, re.MULTILINE), dry.text
    assert re.search(
        r"^ +2  +\S+ \S+  images of the store that nothing refers to$", dry.text, re.MULTILINE
    )
    done = doit(opened.root, "gc", "--verbose")
    assert named(done) == named(dry)
    gone = {path for path in before if any(path.startswith(each) for each in named(dry))}
    assert before - tree(opened.root) == gone
    assert re.search(r"^freed 7\d kB$", done.text, re.MULTILINE), done.text
    assert gc(opened).text == "nothing to remove\n"
    shown = json.loads(doit(opened.root, "store", "--json").text)
    assert all(image["referred_by"] for image in shown["images"])


def test_squashed_layers_go_with_the_last_image_that_has_them(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    layers = opened.store.directory / "layers"
    for name in "12b9":
        (layers / digest(name)).mkdir(parents=True)
        (layers / digest(name) / "layer.sqsh").write_bytes(bytes(500))
    (layers / "notes").write_text("somebody's\n")
    old(opened.root)
    # One was used an hour ago by a step whose image is not in the store yet.
    os.utime(layers / digest("9"))
    ran = gc(opened, "--verbose")
    assert f".rc/store/layers/{digest('b')}" in named(ran)
    assert sorted(path.name for path in layers.iterdir()) == [*map(digest, "129"), "notes"]
    assert ".rc/store/layers/notes" in ran.text
    assert list((opened.store.directory / "blobs/sha256").glob(digest("b"))) == []


def test_what_doit_store_shows_as_needed_by_nothing_is_what_goes(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    shown = json.loads(doit(opened.root, "store", "--json").text)
    unneeded = {image["image_id"] for image in shown["images"] if not image["referred_by"]}
    found = Collector(opened).find()
    assert {item.path.name for item in found.items if item.kind is GarbageKind.IMAGE} == unneeded


def test_what_is_younger_than_a_day_stays(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    os.utime(opened.store.directory / "images" / digest("e"))
    ran = gc(opened, "--verbose")
    # The layer that both have stays with it.
    blobs = ".rc/store/blobs/sha256"
    images = ".rc/store/images"
    assert named(ran) == {
        f"{images}/{digest('f')}",
        f"{blobs}/{digest('f')}",
        f"{blobs}/{digest('9')}",
    }
    young = "1 image of the store that nothing refers to, 71 kB, is younger than a day: doit gc --now\n"
    assert f"kept: {young}" in ran.text
    assert gc(opened).text == f"nothing to remove; {young}"
    assert not opened.store.use(digest("f")) and opened.store.use(digest("e"))


def test_now_removes_what_is_young_and_says_what_that_costs(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    for place in opened.store.directory.rglob("*"):
        os.utime(place, follow_symlinks=False)
    (opened.root / ".rc/manifests/app:1").mkdir(parents=True)
    (opened.root / f".rc/manifests/app:1/{digest('e')}.origin.json").write_text("{}")
    before = tree(opened.store.directory)
    dry = doit(opened.root, "gc", "--now", "-n")
    assert (dry.status, tree(opened.store.directory)) == (0, before)
    assert f"  image {'e' * 12}, built for app:1, last used 2" in dry.text
    assert f"  image {'f' * 12}, layer cache, last used 2" in dry.text
    assert re.search(r"^ +7\d kB  in all$", dry.text, re.MULTILINE), dry.text
    assert "cost: a recipe that goes back to what one of these was built from is built" in dry.text
    # There is no terminal.
    asked = doit(opened.root, "gc", "--now")
    assert (asked.status, tree(opened.store.directory)) == (3, before)
    assert "ERROR: nothing was changed: there is no terminal to ask at\n" in asked.text
    assert "next: doit gc --now --yes" in asked.text
    document = json.loads(doit(opened.root, "gc", "--now", "-n", "--json").text)
    assert document["size_bytes"] > 70_000 and (document["young"], document["young_bytes"]) == (0, 0)
    ran = doit(opened.root, "gc", "--now", "--yes")
    assert re.search(r"^freed 7\d kB$", ran.text, re.MULTILINE), ran.text
    gone = {path for path in before - tree(opened.store.directory) if path.startswith("images/")}
    assert {path.split("/")[1] for path in gone} == {digest("e"), digest("f")}
    assert gc(opened, "--now").text == "nothing to remove\n"
    shown = json.loads(doit(opened.root, "store", "--json").text)
    assert all(image["referred_by"] for image in shown["images"])


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 1), ("", 1), ("\x04", 1)])
def test_now_asks_on_a_terminal(tmp_path: Path, answer: str, status: int) -> None:
    opened = checkout(tmp_path)
    os.utime(opened.store.directory / "images" / digest("e"))
    with Terminal((DOIT, "gc", "--now"), opened.root, {}, 100, 40) as terminal:
        terminal.shows(lambda text: "remove all this? [y/N]" in text)
        terminal.type(answer if answer == "\x04" else f"{answer}\n")
        ended, text = terminal.end()
    assert ended == status, text
    assert ("nothing was removed" in text, "freed " in text) == (bool(status), not status)
    assert opened.store.has(digest("e")) == bool(status)


def test_now_keeps_what_a_running_step_may_need(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    old(opened.store.directory, days=0.5)
    # A step that has put an image into the store, and has not recorded it yet.
    with locks.held(opened.lock("app:1"), "podman:app:1"):
        opened.store.use(digest("e"))
        ran = gc(opened, "--now")
        assert opened.store.has(digest("e")) and not opened.store.has(digest("f"))
        assert (opened.store.directory / "blobs/sha256" / digest("b")).exists()
    assert "left alone: 1 image of the store that nothing refers to: " in ran.text
    assert " has been running podman:app:1 since " in ran.text
    assert gc(opened, "--now").status == 0
    assert not opened.store.has(digest("e"))


def test_now_keeps_all_that_is_young_beside_a_lock_that_cannot_be_read(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    old(opened.store.directory, days=0.5)
    lock = opened.lock("app:1")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("{")
    gc(opened, "--now")
    assert opened.store.has(digest("e")) and opened.store.has(digest("f"))


def test_now_keeps_what_a_step_uses_or_records_meanwhile(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    old(opened.store.directory, days=0.01)
    collector = Collector(opened, now=True)
    found = collector.find()
    assert {item.path.name[0] for item in found.items if item.kind is GarbageKind.IMAGE} == {"e", "f"}
    opened.store.use(digest("e"))
    recorded(opened, digest("f"))
    assert collector.remove(found) == []
    assert opened.store.has(digest("e")) and opened.store.has(digest("f"))


def recorded(opened: Checkout, image_id: str) -> None:
    """Let another process record a build of an image that was there before."""
    records = open_checkout(opened.root, {}).records
    built = records.get(Step.PODMAN, "app:1")
    assert built is not None and built.facts is not None
    records.put(Step.PODMAN, "app:1", replace(built, facts=replace(built.facts, image_id=image_id)))


def test_now_knows_the_record_of_a_step_that_ends_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = checkout(tmp_path)
    collector = Collector(opened, now=True)
    collector.find()
    look = Collector._used_before_s

    def looked(self: Collector) -> tuple[float, str]:
        recorded(opened, digest("f"))
        return look(self)

    monkeypatch.setattr(Collector, "_used_before_s", looked)
    assert digest("f") not in {item.path.name for item in collector.find().items}


def test_now_removes_nothing_that_was_recorded_before_the_answer(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    with Terminal((DOIT, "gc", "--now"), opened.root, {}, 100, 40) as terminal:
        terminal.shows(lambda text: "remove all this? [y/N]" in text)
        recorded(opened, digest("f"))
        terminal.type("y\n")
        ended, text = terminal.end()
    assert ended == 0 and "freed " in text
    assert opened.store.has(digest("f")) and not opened.store.has(digest("e"))


def test_now_keeps_a_day_for_clones_of_the_official_checkout(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    old(opened.store.directory, days=0.5)
    settings = opened.root / "pyproject.toml"
    settings.write_text(f'[tool.rc_tasks]\nimages_root = "{opened.root}"\n')
    ran = gc(opened, "--now")
    assert (
        "left alone: 2 images of the store that nothing refers to: younger than a day, and a" in ran.text
    )
    assert opened.store.has(digest("e")) and opened.store.has(digest("f"))
    assert "younger than a day: clones may be using them\n" in gc(opened).text
    # A clone has none of its own.
    (tmp_path / "official").mkdir()
    settings.write_text(f'[tool.rc_tasks]\nimages_root = "{tmp_path}/official"\n')
    gc(opened, "--now")
    assert not opened.store.has(digest("e"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--yes",), "--yes needs --now"),
        (("--now", "--json"), "--now asks first, which --json cannot"),
    ],
)
def test_options_that_cannot_go_together(tmp_path: Path, argv: tuple[str, ...], words: str) -> None:
    opened = checkout(tmp_path)
    ran = doit(opened.root, "gc", *argv)
    assert ran.status == 3 and words in ran.text
    assert opened.store.has(digest("e"))


def test_what_a_writer_wants_meanwhile_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = checkout(tmp_path)
    store, collector = opened.store, Collector(opened)
    found = collector.find()
    take_out = garbage._take_out

    with store.scratch() as scratch:
        # A step that looked just before: at the image `e`, and at a layer for one that it writes.
        def looked(places: object, trash: Path) -> dict[Path, Path]:
            if trash.name == "images":
                store.use(digest("e"))
            else:
                (scratch / "wanted").write_text(digest("9"))
            return take_out(places, trash)

        monkeypatch.setattr(garbage, "_take_out", looked)
        removed = collector.remove(found)
    assert {item.path.name[0] for item in removed} == {"f"}
    blobs = store.directory / "blobs/sha256"
    assert store.has(digest("e"))
    assert {path.name[0] for path in blobs.iterdir() if path.name in map(digest, "abe9f")} == set("abe9")


def test_records_that_cannot_be_read_may_refer_to_anything(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    path = opened.root / ".rc/state/podman:app:1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    ran = gc(opened)
    assert "left alone: the whole store: .rc/state/podman:app:1.json cannot be read" in ran.text
    assert opened.store.has(digest("e"))


def test_foreign_files_are_left_alone_and_told(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    foreign = [
        ".rc/store/images/mine",
        ".rc/store/blobs/sha256/notes.txt",
        ".rc/previous/app:1/2026",
        ".rc/manifests/app:1/README",
    ]
    for name in foreign:
        (opened.root / name).parent.mkdir(parents=True, exist_ok=True)
        (opened.root / name).write_text("x")
    old(opened.root)
    ran = gc(opened)
    for name in foreign:
        assert f"left alone: {name}: is not ours\n" in ran.text
        assert (opened.root / name).exists()


def test_a_store_that_is_reached_by_a_symlink_may_be_anybodys(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    directory = opened.store.directory
    elsewhere = opened.root / "elsewhere"
    os.rename(directory / "blobs", elsewhere)
    (directory / "blobs").symlink_to(elsewhere)
    ran = gc(opened)
    assert "left alone: .rc/store/blobs: is a symlink, and perhaps another checkout's" in ran.text
    assert opened.store.has(digest("e")) and (elsewhere / "sha256" / digest("b")).exists()


def test_of_a_clone_only_its_own_links_go(tmp_path: Path) -> None:
    official = checkout(tmp_path / "official")
    root = write_checkout(tmp_path / "clone", RECIPES, f'images_root = "{official.root}"')
    clone = open_checkout(root, {})
    blobs = clone.store.directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    for layer in "1b":
        (blobs / digest(layer)).symlink_to(official.store.directory / "blobs/sha256" / digest(layer))
    put(clone.store, digest("8"), {"1": 1000, "b": 70_000, "7": 10})
    old(clone.store.directory)
    before = tree(official.root)
    ran = gc(clone)
    assert "freed " in ran.text
    assert tree(official.root) == before
    assert list(blobs.iterdir()) == []


def test_projects_that_are_gone_stay_for_a_month(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    directory = opened.root / "projects/gone:1"
    for name in ("Dockerfile", "env.toml"):
        (directory / name).unlink()
    log = opened.root / ".rc/logs/gone:1/podman/2026-01-02T03-04-05.000Z.1.log"
    log.parent.mkdir(parents=True)
    log.write_text("x" * 500)
    opened.store.catalogue.put_cache("gone:1", (Cached(digest("e"), ""),))
    old(opened.root)
    nightly = opened.root / ".rc/logs/nightly/2026-01-02T03-04-05.000Z.1.log"
    nightly.parent.mkdir()
    nightly.write_text("a night's")
    wanted = content_digest(str(opened.root / "projects/app:1/Dockerfile"))
    ran = gc(opened)
    assert "projects that are gone, kept for 30 days: gone:1\n" in ran.text
    notes = opened.root / ".rc/gone.json"
    assert list(json.loads(notes.read_text())) == ["gone:1"]
    assert (directory / "image.sqsh").exists()
    # Seen again, it is forgotten that it was not there.
    (directory / "Dockerfile").write_text(RECIPES["projects/gone:1/Dockerfile"])
    gc(opened)
    assert json.loads(notes.read_text()) == {}
    (directory / "Dockerfile").unlink()
    notes.write_text(json.dumps({"gone:1": "2026-01-02T03:04:05+00:00"}))
    dry = gc(opened, "-n", "-v")
    assert "projects that are gone: gone:1\n" in dry.text
    ran = gc(opened)
    assert re.search(r"^ +1 +\S+ \S+  projects that are gone$", ran.text, re.MULTILINE), ran.text
    left = [path for path in tree(opened.root) if "gone:1" in path]
    assert left == [] and nightly.exists()
    # With its records goes what they referred to, and its cache.
    images = {path.name for path in (opened.root / ".rc/store/images").iterdir()}
    assert digest("e") not in images and wanted in images


@pytest.mark.parametrize("tracked", [True, False])
def test_what_is_left_of_a_value_of_a_matrix_goes_with_its_env_toml(
    tmp_path: Path, tracked: bool
) -> None:
    opened = checkout(tmp_path)
    directory = opened.root / "projects/gone:1"
    (directory / "Dockerfile").unlink()
    subprocess.run(("git", "init", "-q"), cwd=opened.root, check=True)
    if tracked:
        subprocess.run(("git", "add", directory / "env.toml"), cwd=opened.root, check=True)
    assert "projects that are gone, kept for 30 days: gone:1\n" in gc(opened).text
    old(opened.root)
    (opened.root / ".rc/gone.json").write_text(json.dumps({"gone:1": "2026-01-02T03:04:05+00:00"}))
    assert "projects that are gone: gone:1\n" in gc(opened).text
    assert directory.exists() is tracked
    assert not tracked or os.listdir(directory) == ["env.toml"]


def test_what_an_edf_names_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = checkout(tmp_path, "[tool.rc_tasks.store]\nprevious = 0\nprevious_days = 0\n")
    project = opened.graph.images["app:1"].project
    for _ in range(3):
        assert opened.previous.keep(project, opened.records.get(Step.ENROOT, "app:1")) == ""
        os.utime(opened.previous.directory)
        text = project.artifact.read_bytes() + b"more"
        project.artifact.unlink()
        project.artifact.write_bytes(text)
        published = opened.records.get(Step.ENROOT, "app:1")
        assert published is not None and published.artifact is not None
        status = project.artifact.stat()
        artifact = replace(
            published.artifact,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            sample=sample_digest(str(project.artifact)),
        )
        opened.records.put(Step.ENROOT, "app:1", record(published.inputs, artifact=artifact))
    entries = [opened.previous.directory / "app:1" / name for name in opened.previous.entries("app:1")]
    assert len(entries) == 3
    old(opened.previous.directory)
    home = Path.home() / ".edf"
    home.mkdir()
    # By a variable that is not set, and through another file.
    (home / "a.toml").write_text(f'image = "${{NOWHERE}}/previous/app:1/{entries[0].name}/image.sqsh"\n')
    (home / "b.toml").write_text(f'base_environment = "{tmp_path}/shared/b.toml"\n')
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/b.toml").write_text(f"image = '{entries[1]}/image.sqsh'\n")
    gc(opened)
    assert [path.exists() for path in entries] == [True, True, False]


def test_logs_manifests_and_temporaries(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    generated = opened.root / ".rc"
    logs = generated / "logs/app:1/podman"
    logs.mkdir(parents=True)
    for number in range(25):
        (logs / f"2026-01-02T03-04-{number:02}.000Z.1.log").write_text("x" * 100)
    manifests = generated / "manifests/app:1"
    manifests.mkdir(parents=True)
    for name in (digest("e"), f"{digest('e')}.origin", digest("7"), image_id(opened, "app:1")):
        (manifests / f"{name}.json").write_text("{}")
    node, dead = f"{os.uname().nodename}+{space()}", 1 << 30
    left = [
        generated / f"state/.podman:app:1.json.{node}.{dead}.abcd1234",
        generated / f"store/.put.{node}.{dead}.abcd1234",
        generated / f"previous/app:1/.keep.{node}.{dead}.abcd1234",
        generated / "locks/.app:1.json.other.7.abcd1234",
        opened.root / f"projects/app:1/.env.toml.{node}.{dead}.abcd1234",
        opened.root / "projects/app:1/.image.0123456789abcdef.tmp.sqsh",
    ]
    stays = [
        generated / f"state/{temporary_prefix('x')}abcd1234",
        opened.root / "projects/app:1/.env.toml.swp",
        opened.root / "projects/app:1/.mine.1.so",
    ]
    for path in (*left, *stays):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    old(opened.root, days=100)
    # Of an image that is gone, but `doit history` knows it.
    os.utime(manifests / f"{digest('7')}.json")
    dry = gc(opened, "-n", "-v")
    ran = gc(opened, "-v")
    assert named(ran) == named(dry)
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in stays)
    # Of all that are older than a month the newest stays.
    assert [path.name for path in logs.iterdir()] == ["2026-01-02T03-04-24.000Z.1.log"]
    assert {path.stem for path in manifests.iterdir()} == {image_id(opened, "app:1"), digest("7")}


def test_registry_bases_that_no_dockerfile_names(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    catalogue = opened.store.catalogue
    for name in ("e", "f"):
        reference = f"debian:{name}"
        catalogue.put_base(Pulled(reference, "sha256:1", digest(name), "", ""), "x86_64")
    gc(opened)
    assert opened.store.has(digest("e")) and opened.store.has(digest("f"))
    for path in (opened.store.directory / "references").rglob("*e.json"):
        os.utime(path, (0, 0))
    broken = opened.root / "projects/broken:1"
    broken.mkdir()
    (broken / "Dockerfile").write_text("FROM ${NOTHING}\n")
    gc(opened)
    assert opened.store.has(digest("e"))
    (broken / "Dockerfile").unlink()
    broken.rmdir()
    assert "registry bases that no Dockerfile names" in gc(opened).text
    assert not opened.store.has(digest("e")) and opened.store.has(digest("f"))
    assert [base.reference for base in catalogue.bases()] == ["debian", "debian:f"]


def test_an_image_at_work_is_left_alone(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    unfinished = opened.root / "projects/app:1/.image.0123456789abcdef.tmp.sqsh"
    unfinished.write_text("x")
    with locks.held(opened.lock("app:1"), "enroot:app:1"):
        assert ".image." not in gc(opened, "-v").text
    assert unfinished.exists()
    collector = Collector(opened)
    found = collector.find()
    assert unfinished in {item.path for item in found.items}
    with locks.held(opened.lock("app:1"), "enroot:app:1"):
        removed = collector.remove(found)
    assert unfinished.exists() and unfinished not in {item.path for item in removed}
    assert any(
        line.startswith("app:1: ") and "has been running enroot:app:1" in line for line in found.left
    )


@pytest.mark.podman
def test_storage_of_ended_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = checkout(tmp_path)
    left = tmp_path / "4711"
    (left / "root/overlay").mkdir(parents=True)
    (left / "root/overlay/layer").write_bytes(bytes(5000))
    monkeypatch.setattr(podman_storage, "dead", lambda _: [left] if left.exists() else [])
    assert "podman's storage of ended jobs on this node" in gc(opened, "-n").text
    assert left.exists()
    gc(opened)
    assert not left.exists()


def test_one_at_a_time(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    with locks.held(Collector(opened).lock, "gc"):
        ran = doit(opened.root, "gc")
    assert ran.status == 3 and "another doit gc is running" in ran.text
    assert opened.store.has(digest("e"))


@pytest.mark.parametrize(("also", "freed"), [(False, 0), (True, 1000)])
def test_a_file_with_another_name_frees_nothing(tmp_path: Path, also: bool, freed: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(1000))
    os.link(one, other)
    items = [Item(GarbageKind.PREVIOUS, one), *([Item(GarbageKind.PREVIOUS, other)] if also else [])]
    assert freed_bytes(measure(items), items)[GarbageKind.PREVIOUS] == freed


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_text("{"), id="half"),
        pytest.param(lambda path: path.write_text('{"gone:1": "never"}'), id="no time"),
        pytest.param(lambda path: path.write_text('{"gone:1": 7}'), id="a number"),
        pytest.param(lambda path: path.write_text("[" * 100_000), id="endless nesting"),
        pytest.param(lambda path: path.mkdir(), id="a directory"),
        pytest.param(lambda path: path.write_text('{"gone:1": "0001-01-01T00:00:00"}'), id="year one"),
    ],
)
def test_damaged_notes_only_cost_time(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    opened = checkout(tmp_path)
    (opened.root / "projects/gone:1/Dockerfile").unlink()
    (opened.root / "projects/gone:1/env.toml").unlink()
    damage(opened.root / ".rc/gone.json")
    ran = gc(opened)
    assert ran.status == 0
    # As if it had been missed for the first time.
    assert "projects that are gone, kept for 30 days: gone:1\n" in ran.text
    assert (opened.root / "projects/gone:1/image.sqsh").exists()


def test_without_anything_there_is_nothing(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", {})
    assert doit(root, "gc", "-n").text == "nothing to remove\n"
    assert not (root / ".rc").exists()
    assert doit(root, "gc").text == "nothing to remove\n"
    assert doit(root, "gc", "app").status == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_gets_room(tmp_path: Path) -> None:
    opened = checkout(tmp_path / "roomy")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(("mount", "-t", "tmpfs", "-o", "size=3m", "none", small), check=False)
    if mounted.returncode != 0:
        pytest.skip("mount is not permitted here")
    try:
        root = small / "imgs"
        subprocess.run(("cp", "-a", opened.root, root), check=True)
        with contextlib.suppress(OSError), (small / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        ran = doit(root, "gc", "--now", "--yes")
        assert ran.status == 0 and "freed 7" in ran.text, ran.text
        assert not Store(root / ".rc/store").has(digest("e"))
        (root / "room").write_bytes(bytes(60_000))
    finally:
        subprocess.run(("umount", "--lazy", small), check=True)
