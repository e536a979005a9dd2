"""The store: an image comes back on an empty node with the same ID, whole or not at all."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.errors import ArtifactError
from rc_tasks.model.config.settings import Squash
from rc_tasks.state.disk.processes import space
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.loading import load_images
from rc_tasks.state.store.store import Store
from rc_tasks.steps.save.image import save
from rc_tasks.tools import command
from rc_tasks.tools.podman import Image, Podman
from tests.support.images import BUSYBOX
from tests.support.soak import ROUNDS
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

SEED = 20260103

# SHELL and HEALTHCHECK are what an OCI configuration cannot hold; one layer is there twice.
RECIPE = """\
FROM scratch
COPY busybox /bin/sh
COPY busybox /bin/sh
SHELL ["/bin/sh", "-e", "-c"]
HEALTHCHECK CMD ["/bin/sh", "-c", "exit 0"]
LABEL text="two\\
 words, a colon: and 'quotes' ü"
VOLUME /data
"""


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman leaves its own where a disk is full; a step has a directory for them that it removes."""
    (tmp_path / "temporary files").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary files"))


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    require_tools("podman", "skopeo", "busybox")
    with own_storage() as (made, _):
        yield made


@pytest.fixture(scope="module")
def images(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Image]:
    """An image, and one that is built on it."""
    context = tmp_path_factory.mktemp("context")
    shutil.copy(BUSYBOX, context / "busybox")
    base = build(podman, context, RECIPE)
    return base, build(podman, context, f"FROM {base.id}\nCOPY Dockerfile /\nENTRYPOINT []\n")


def build(podman: Podman, context: Path, recipe: str) -> Image:
    (context / "Dockerfile").write_text(recipe)
    argv = ("build", "--quiet", "--isolation=chroot", "--format=docker", "--identity-label=false")
    done = command.capture(podman.command(*argv, str(context)))
    return podman.inspect(done.stdout.strip())


def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "it's: a store ü" / ".rc" / "store")


def files(of: Store) -> dict[str, tuple[int, int]]:
    """Every part with what changes when it is written anew."""
    paths = (*of.directory.glob("blobs/sha256/*"), *of.directory.glob("layers/*/layer.sqsh"))
    parts = {path.parent.name if path.name == "layer.sqsh" else path.name: path.stat() for path in paths}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in parts.items()}


def config(podman: Podman, image: str) -> object:
    return json.loads(command.capture(podman.command("image", "inspect", image)).stdout)[0]["Config"]


def put(kept: Store, podman: Podman, image: Image) -> None:
    save(podman, image, SquashedLayers(kept), Squash())


@pytest.fixture(params=["squashed", "blobs"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What layers are stored as: blobs where they cannot be squashed."""
    if request.param == "blobs":
        which = command.which
        monkeypatch.setattr(command, "which", lambda name: None if name == "mksquashfs" else which(name))
    return str(request.param)


def test_an_image_comes_back_as_it_was(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path, form: str
) -> None:
    kept = store(tmp_path)
    for image in images:
        assert not kept.has(image.id)
        put(kept, podman, image)
        assert kept.has(image.id)
    squashed = ["layers"] if form == "squashed" else []
    assert sorted(entry.name for entry in kept.directory.iterdir()) == ["blobs", "images", *squashed]
    with own_storage() as (empty, _):
        for image in reversed(images):
            assert load_images(kept, empty, image.id) == ()
            # The size of an image in a storage counts a layer that is there twice once or twice.
            assert replace(empty.inspect(image.id), size_bytes=image.size_bytes) == image
            assert config(empty, image.id) == config(podman, image.id)
        child = build(empty, directory_with(tmp_path, "Dockerfile"), f"FROM {images[0].id}\n")
        assert child.layers[: len(images[0].layers)] == images[0].layers
        listed = command.capture(empty.command("images", "--format", "{{.Repository}}")).stdout
        assert set(listed.split()) == {"<none>"}, "an image from the store has no name"


def test_both_forms_have_the_same_manifests(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    for image in images:
        put(one, podman, image)
    put(other, podman, images[0])
    monkeypatch.setattr(command, "which", lambda name: None if name == "mksquashfs" else name)
    put(other, podman, images[1])
    for image in images:
        views = [each.directory / "images" / image.id for each in (one, other)]
        first, second = (
            {path.name: path.is_symlink() or path.read_bytes() for path in view.iterdir()}
            for view in views
        )
        assert first == second


def directory_with(parent: Path, *names: str) -> Path:
    made = parent / "context"
    made.mkdir()
    for name in names:
        (made / name).touch()
    return made


@pytest.mark.usefixtures("form")
def test_layers_that_are_there_are_not_written_again(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    put(kept, podman, images[0])
    before = files(kept)
    put(kept, podman, images[0])
    assert files(kept) == before
    put(kept, podman, images[1])
    after = files(kept)
    assert {name: after[name] for name in before} == before
    assert {images[1].id, images[1].layers[-1].removeprefix("sha256:")} == after.keys() - before.keys()


@pytest.mark.usefixtures("form")
def test_everybody_who_may_enter_the_checkout_can_read_the_store(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    before = os.umask(0o022)
    try:
        put(kept, podman, images[0])
    finally:
        os.umask(before)
    # An image has links to where the blobs of squashed layers would be.
    for path in filter(Path.exists, kept.directory.rglob("*")):
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted, path


def test_what_is_nowhere_cannot_be_brought(podman: Podman, tmp_path: Path) -> None:
    nowhere = "0" * 64
    assert load_images(store(tmp_path), podman, nowhere) == (nowhere,)
    assert not (tmp_path / "it's: a store ü").exists()


def damage(blob: Path, how: str) -> None:
    """What a file system, or somebody, may do to a file; the time of its last change stays."""
    before = blob.stat()
    if how == "missing":
        blob.unlink()
        return
    if how == "short":
        os.truncate(blob, before.st_size - 30)
    else:
        text = bytearray(blob.read_bytes())
        # Two of eight bytes may be padding.
        for place in range(before.st_size // 2, before.st_size // 2 + 8):
            text[place] ^= 0xFF
        blob.write_bytes(text)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))


def part_of(kept: Store, image: Image, part: str) -> Path:
    if part == "config":
        return kept.blob(image.id)
    blob, files = kept.blob(image.layers[0]), kept.layer(image.layers[0])
    return files.recipe if part == "recipe" else files.file if files.exist else blob


@pytest.mark.parametrize("how", ["missing", "short", "changed"])
@pytest.mark.parametrize("part", ["layer", "blob", "recipe", "config"])
def test_what_is_damaged_is_told_and_gone(
    podman: Podman,
    images: tuple[Image, Image],
    tmp_path: Path,
    how: str,
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = store(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        if part == "blob":
            patched.setattr(command, "which", lambda name: None if name == "mksquashfs" else name)
        for image in images:
            put(kept, podman, image)
    damaged = part_of(kept, images[0], part)
    damage(damaged, how)
    capsys.readouterr()
    with own_storage() as (empty, _):
        # Both have the layer, and only one the configuration.
        alive = (images[1].id,) if part == "config" else ()
        gone = tuple(image.id for image in images if image.id not in alive)
        assert set(load_images(kept, empty, *(image.id for image in images))) == set(gone)
        assert [image.id for image in images if kept.has(image.id)] == list(alive)
        told = capsys.readouterr().out
        missing = how == "missing" and part != "recipe"
        # The layer stands for its recipe.
        shown = damaged.with_name("layer.sqsh") if part == "recipe" else damaged
        if how == "missing" and part == "layer":
            shown = kept.blob(images[0].layers[0])
        assert f"{shown} is {'missing' if missing else 'damaged'}" in told
        assert not damaged.exists()
        assert list(kept.directory.glob(".put.*")) == []
        for image in images:
            put(kept, podman, image)
        capsys.readouterr()
        assert load_images(kept, empty, *(image.id for image in images)) == ()
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize("how", ["missing", "short", "changed"])
def test_a_store_of_somebody_else_is_told_and_left_alone(
    podman: Podman,
    images: tuple[Image, Image],
    tmp_path: Path,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = store(tmp_path)
    put(kept, podman, images[0])
    damage(part_of(kept, images[0], "layer"), how)
    before = everything(kept)
    with own_storage() as (empty, _):
        theirs = replace(kept, read_only=True)
        assert load_images(theirs, empty, images[0].id) == (images[0].id,)
    assert "nothing is removed" in capsys.readouterr().out
    assert everything(kept) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": 1, "layers": []}'])
def test_a_manifest_that_cannot_be_read_is_told_and_gone(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path, text: str
) -> None:
    kept = store(tmp_path)
    put(kept, podman, images[0])
    (kept.directory / "images" / images[0].id / "manifest.json").write_text(text)
    with own_storage() as (empty, _):
        assert load_images(kept, empty, images[0].id) == (images[0].id,)
        assert not kept.has(images[0].id)
        put(kept, podman, images[0])
        assert load_images(kept, empty, images[0].id) == ()


def test_an_image_is_loaded_without_the_file_of_its_version(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    put(kept, podman, images[0])
    (kept.directory / "images" / images[0].id / "version").unlink()
    with own_storage() as (empty, _):
        assert load_images(kept, empty, images[0].id) == ()


def test_what_is_left_of_an_image_is_no_obstacle(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    left = kept.directory / "images" / images[0].id
    left.mkdir(parents=True)
    (left / "version").touch()
    put(kept, podman, images[0])
    with own_storage() as (empty, _):
        assert load_images(kept, empty, images[0].id) == ()


def everything(kept: Store) -> set[tuple[str, int]]:
    # The time of an image's directory says when it was last used, for `doit gc`.
    return {
        (str(path), path.lstat().st_mtime_ns if path.parent.name != "images" else 0)
        for path in kept.directory.rglob("*")
    }


PUT = """
import sys
from pathlib import Path
from rc_tasks.model.config.settings import Squash
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.store import Store
from rc_tasks.steps.save.image import save
from rc_tasks.tools.podman import Podman
root, runroot, driver, directory, image = sys.argv[1:]
podman = Podman(root=root, runroot=runroot, driver=driver)
save(podman, podman.inspect(image), SquashedLayers(Store(Path(directory))), Squash())
"""


def putting(podman: Podman, kept: Store, image: Image) -> "subprocess.Popen[bytes]":
    argv = (podman.root, podman.runroot, podman.driver, kept.directory, image.id)
    return subprocess.Popen((sys.executable, "-c", PUT, *argv), stderr=subprocess.PIPE)


def test_several_may_put_the_same_image_at_once(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    writers = [putting(podman, kept, image) for image in (*images, *images)]
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
    with own_storage() as (empty, _):
        assert load_images(kept, empty, *(image.id for image in images)) == ()


# More than can be written in a moment.
FILLER_BYTES = 60_000_000


@pytest.fixture(scope="module")
def large(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image that takes a while to write and to read."""
    context = tmp_path_factory.mktemp("large")
    (context / "filler").write_bytes(os.urandom(FILLER_BYTES))
    return build(podman, context, "FROM scratch\nCOPY filler /\n")


@pytest.mark.soak
def test_a_writer_that_is_killed_leaves_nothing_that_looks_whole(
    podman: Podman, large: Image, tmp_path: Path
) -> None:
    kept = store(tmp_path)
    chance = random.Random(SEED)
    killed = 0
    began = time.monotonic()
    with putting(podman, kept, large) as writing:
        writing.communicate()
    takes_s = time.monotonic() - began
    with own_storage() as (empty, _):
        for _ in range(1 + ROUNDS // 4):
            shutil.rmtree(kept.directory, ignore_errors=True)
            with putting(podman, kept, large) as writing:
                time.sleep(chance.uniform(0.3, 0.9) * takes_s)
                killed += writing.poll() is None
                writing.send_signal(signal.SIGKILL)
                writing.communicate()
            was_whole = kept.has(large.id)
            assert load_images(kept, empty, large.id) == (() if was_whole else (large.id,))
            # Who comes next finds what is there already, whole or not, no obstacle.
            put(kept, podman, large)
            assert load_images(kept, empty, large.id) == ()
            empty.remove_image(large.id)
    assert killed > 0


@pytest.mark.soak
def test_a_reader_that_is_killed_harms_neither_side(
    podman: Podman, large: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a step has podman's temporary files, and clears them.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    kept = store(tmp_path)
    put(kept, podman, large)
    before = everything(kept)
    chance = random.Random(SEED)
    with own_storage() as (empty, _):
        for _ in range(1 + ROUNDS // 4):
            wanted = empty.pull_directories([kept.directory / "images" / large.id])
            with subprocess.Popen(wanted.argv, stdout=subprocess.PIPE) as reading:
                time.sleep(chance.uniform(0.05, 0.5))
                reading.kill()
            assert load_images(kept, empty, large.id) == ()
            assert not empty.half_written()
            assert replace(empty.inspect(large.id), size_bytes=large.size_bytes) == large
            empty.remove_image(large.id)
    assert everything(kept) == before


@pytest.mark.usefixtures("form")
def test_a_full_disk_is_told_and_leaves_nothing(
    podman: Podman, images: tuple[Image, Image], large: Image, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small), check=True)
    try:
        kept = Store(small / "store")
        put(kept, podman, images[0])
        before = everything(kept)
        with pytest.raises(ArtifactError, match="no space left") as caught:
            put(kept, podman, large)
        assert str(kept.directory) in str(caught.value) and "quota" in str(caught.value)
        assert not kept.has(large.id)
        assert {path for path, _ in everything(kept)} == {path for path, _ in before}
        with own_storage() as (empty, _):
            assert load_images(kept, empty, images[0].id) == ()
    finally:
        subprocess.run(("umount", small), check=True)


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    kept = store(tmp_path)
    here = f"{os.uname().nodename}+{space()}"
    with subprocess.Popen(("true",)) as dead:
        pass
    living = {
        f".put.{here}.{os.getpid()}.a": 90_000,
        ".put.another-node.1.c": 3_600,
        # Not of our making, as an editor's `.env.toml.swp` is not.
        ".put.swp": 90_000,
    }
    gone = {
        f".put.{here}.{dead.pid}.b": 0,
        ".put.another-node.1.d": 90_000,
    }
    for name, age_s in (living | gone).items():
        left = kept.directory / name
        left.mkdir(parents=True)
        (left / "layer").touch()
        then = time.time() - age_s
        os.utime(left, (then, then))
    kept.sweep()
    assert {left.name for left in kept.directory.iterdir()} == living.keys()
