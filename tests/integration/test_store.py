"""The store: an image comes back on an empty node with the same ID, whole or not at all."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rc_tasks.errors import ArtifactError
from rc_tasks.state.store import Store
from rc_tasks.tools import command
from rc_tasks.tools.podman import Image, Podman
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

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
    """Every blob with what changes when it is written anew."""
    blobs = (of.directory / "blobs/sha256").iterdir()
    return {blob.name: (blob.stat().st_ino, blob.stat().st_mtime_ns) for blob in blobs}


def config(podman: Podman, image: str) -> object:
    return json.loads(command.capture(podman.command("image", "inspect", image)).stdout)[0]["Config"]


def test_an_image_comes_back_as_it_was(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    for image in images:
        assert not kept.has(image.id)
        kept.put(podman, image)
        assert kept.has(image.id)
    assert sorted(entry.name for entry in kept.directory.iterdir()) == ["blobs", "images"]
    with own_storage() as (empty, _):
        for image in reversed(images):
            assert kept.bring(empty, image.id)
            # The size of an image in a storage counts a layer that is there twice once or twice.
            assert replace(empty.inspect(image.id), size_bytes=image.size_bytes) == image
            assert config(empty, image.id) == config(podman, image.id)
        child = build(empty, directory_with(tmp_path, "Dockerfile"), f"FROM {images[0].id}\n")
        assert child.layers[: len(images[0].layers)] == images[0].layers


def directory_with(parent: Path, *names: str) -> Path:
    made = parent / "context"
    made.mkdir()
    for name in names:
        (made / name).touch()
    return made


def test_layers_that_are_there_are_not_written_again(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    kept.put(podman, images[0])
    before = files(kept)
    kept.put(podman, images[0])
    assert files(kept) == before
    kept.put(podman, images[1])
    after = files(kept)
    assert {name: after[name] for name in before} == before
    # Its own layer and its configuration; what skopeo itself writes of a manifest is small.
    assert {images[1].id, images[1].layers[-1].removeprefix("sha256:")} <= after.keys() - before.keys()


def test_everybody_who_may_enter_the_checkout_can_read_the_store(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    before = os.umask(0o022)
    try:
        kept.put(podman, images[0])
    finally:
        os.umask(before)
    for path in kept.directory.rglob("*"):
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted, path


def test_what_is_nowhere_cannot_be_brought(podman: Podman, tmp_path: Path) -> None:
    assert not store(tmp_path).bring(podman, "0" * 64)
    assert not (tmp_path / "it's: a store ü").exists()


@pytest.mark.parametrize("damage", ["missing", "short"])
@pytest.mark.parametrize("part", ["layer", "config"])
def test_a_damaged_image_is_told_and_counts_as_gone(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path, damage: str, part: str
) -> None:
    kept = store(tmp_path)
    for image in images:
        kept.put(podman, image)
    digest = images[0].id if part == "config" else images[0].layers[0].removeprefix("sha256:")
    blob = kept.directory / "blobs/sha256" / digest
    if damage == "missing":
        blob.unlink()
    else:
        os.truncate(blob, blob.stat().st_size - 1)
    with own_storage() as (empty, _):
        with pytest.raises(ArtifactError, match="lacks a part") as caught:
            kept.bring(empty, images[0].id)
        assert "run the same command again" in str(caught.value)
        assert not kept.has(images[0].id)
        kept.put(podman, images[0])
        assert kept.bring(empty, images[0].id)


PUT = """
import sys
from pathlib import Path
from rc_tasks.state.store import Store
from rc_tasks.tools.podman import Podman
root, runroot, driver, directory, image = sys.argv[1:]
podman = Podman(root=root, runroot=runroot, driver=driver)
Store(Path(directory)).put(podman, podman.inspect(image))
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
        assert all(kept.bring(empty, image.id) for image in images)


def test_a_writer_that_is_killed_leaves_nothing_that_looks_whole(
    podman: Podman, images: tuple[Image, Image], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    with own_storage() as (empty, _):
        for delay_s in (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
            shutil.rmtree(kept.directory, ignore_errors=True)
            with putting(podman, kept, images[1]) as writer:
                time.sleep(delay_s)
                writer.send_signal(signal.SIGKILL)
                writer.communicate()
            if kept.has(images[1].id):
                assert kept.bring(empty, images[1].id)
                command.capture(empty.command("image", "rm", "--force", images[1].id))
            # Who comes next finds what is there already, whole or not, no obstacle.
            kept.put(podman, images[1])
            assert kept.bring(empty, images[1].id)
            command.capture(empty.command("image", "rm", "--force", images[1].id))


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path: Path) -> None:
    kept = store(tmp_path)
    for name, age_s in (("old", 90_000), ("new", 3_600)):
        left = kept.directory / f".put.{name}"
        left.mkdir(parents=True)
        (left / "layer").touch()
        then = time.time() - age_s
        os.utime(left, (then, then))
    kept.sweep()
    assert [left.name for left in kept.directory.iterdir()] == [".put.new"]
