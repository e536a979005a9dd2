"""Images published by merging their layers, beside the same images squashed whole."""

import errno
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_fields

from rc_tasks.errors import ArtifactError
from rc_tasks.model.config.settings import Compression, Squash, SquashMethod
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.squashfs.write import Written, write
from rc_tasks.state.store import garbage
from rc_tasks.state.store.layer_files import LayerFiles
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.loading import load_images
from rc_tasks.state.store.store import Store
from rc_tasks.steps.publish import squash
from rc_tasks.steps.save.image import save
from rc_tasks.tools import command, squashfs
from rc_tasks.tools.podman import Podman
from rc_tasks.util.json_decode import encode
from tests.support.containers import ulimits
from tests.support.images import BUSYBOX
from tests.support.layers import listing
from tests.support.publishing import squash_image
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = [
    pytest.mark.podman,
    pytest.mark.skipif(os.geteuid() != 0, reason="compares files of other owners"),
]

# Each line is a layer; the second half changes what the first half made.
DOCKERFILE = """\
FROM scratch
COPY busybox /bin/busybox
COPY busybox /bin/sh
ENV PATH=/bin
SHELL ["/bin/sh", "-c"]
RUN busybox --install -s /bin; mkdir -p /etc /a/b/c /gone/deep /opaque/old /dir-to-link/x /dir-to-file/x
RUN seq 1 20000 > /a/big; for i in $(seq 300); do echo $i > /a/b/$i; done; ln /a/big /a/big-too
RUN echo one > /file-to-dir; ln -s a /link-to-dir; mkfifo /fifo; chmod 0500 /a/b/c; echo x > /a/b/c/x
RUN rm -r /gone /a/b/1 /a/b/c/x; rm -r /opaque; mkdir /opaque; echo new > /opaque/new
RUN rm -r /dir-to-link /dir-to-file; ln -s a /dir-to-link; echo file > /dir-to-file
RUN rm /file-to-dir /link-to-dir; mkdir /file-to-dir /link-to-dir; echo y > /file-to-dir/y
RUN chmod 0711 /a; chown 12:34 /a/b/2; echo more >> /a/big-too; touch -d '1999-12-31 23:59' /a/b/3
RUN rm -r /a/b/c; mkdir /a/b/c; dd if=/dev/zero of=/a/zeros bs=1M count=3 2>/dev/null; : > /a/empty
WORKDIR /srv/here
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A podman storage, a store, and a directory for the results."""

    podman: Podman
    store: Store
    directory: Path

    def build(self, dockerfile: str) -> str:
        context = self.directory / "context"
        context.mkdir(exist_ok=True)
        shutil.copy(BUSYBOX, context / "busybox")
        (context / "Dockerfile").write_text(dockerfile)
        iid = self.directory / "iid"
        argv = ("build", "--isolation=chroot", "--layers", "--format=docker", *ulimits())
        command.capture(self.podman.command(*argv, "--iidfile", str(iid), str(context)))
        return iid.read_text().removeprefix("sha256:")

    def publish(self, image_id: str, settings: Squash | None = None) -> tuple[Path, str]:
        """The image.sqsh of an image, and the log."""
        made = squash.temporary(self.directory / "image.sqsh")
        log = self.directory / "log"
        with log.open("wb") as written:
            squash_image(
                self.podman,
                self.podman.inspect(image_id),
                made,
                settings=settings or Squash(),
                provenance=("who: me",),
                log=written,
                layers=SquashedLayers(self.store),
            )
        squash.check(made)
        return made, log.read_text()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require_tools("podman", "mksquashfs", "unsquashfs")
    with own_storage() as (podman, _):
        if podman.driver != "overlay":
            pytest.skip("no overlay here")
        yield Place(podman, Store(tmp_path / "store"), tmp_path)


def squashed_layers(store: Store) -> list[Path]:
    return list(store.directory.glob("layers/*/layer.sqsh"))


def contents(path: Path, directory: Path) -> dict[str, tuple[object, ...]]:
    """Each file's bytes, and which files are one inode."""
    command.capture(command.Command(("unsquashfs", "-q", "-n", "-d", str(directory), str(path))))
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for parent, _, names in os.walk(directory):
        for name in sorted(names):
            file = Path(parent, name)
            status = file.lstat()
            key = str(file.relative_to(directory))
            data = file.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[key] = (data, status.st_nlink, first.setdefault(status.st_ino, key))
    return found


def test_a_merged_image_is_the_one_that_is_squashed_whole(place: Place) -> None:
    image_id = place.build(DOCKERFILE)
    merged, log = place.publish(image_id)
    assert f"merged {len(place.podman.inspect(image_id).layers)} layers" in log
    whole, _ = place.publish(image_id, Squash(method=SquashMethod.DIRECT))
    assert listing(merged) == listing(whole)
    found = contents(merged, place.directory / "merged")
    assert found == contents(whole, place.directory / "whole")
    assert found["opaque/new"][0] == b"new\n" and "opaque/old" not in found
    assert not [name for name in found if "/.wh." in name or name.startswith("gone")]


def test_a_rebuild_squashes_only_its_new_layers(place: Place) -> None:
    first = place.build(DOCKERFILE)
    place.publish(first)
    count = len(squashed_layers(place.store))
    changed = place.build(DOCKERFILE.replace("WORKDIR", "RUN echo changed > /last\nWORKDIR"))
    merged, log = place.publish(changed)
    whole, _ = place.publish(changed, Squash(method=SquashMethod.DIRECT))
    assert listing(merged) == listing(whole)
    # That of the RUN, and that of the WORKDIR on it where it makes a layer.
    assert 1 <= len(squashed_layers(place.store)) - count <= 2
    assert re.search(r"merged \d+ layers, [12] of them squashed now: ", log), log
    assert not [name for name in os.listdir(place.store.directory) if name.startswith(".put")]


def test_a_damaged_layer_is_told_and_made_again(place: Place) -> None:
    image_id = place.build(DOCKERFILE)
    place.publish(image_id)
    path = max(squashed_layers(place.store), key=lambda file: file.stat().st_size)
    record = LayerFiles(path.parent).record
    assert record is not None and record.size_bytes == path.stat().st_size
    os.truncate(path, record.size_bytes // 2)
    merged, log = place.publish(image_id)
    assert f"{path}: not a whole SquashFS image: it is " in log
    assert "; this layer is squashed again\n" in log
    assert path.stat().st_size == record.size_bytes
    whole, _ = place.publish(image_id, Squash(method=SquashMethod.DIRECT))
    assert listing(merged) == listing(whole)


@pytest.mark.parametrize("damaged", ["block", "block, earlier version", "record"])
def test_damaged_bytes_are_not_published(place: Place, damaged: str) -> None:
    image_id = place.build(DOCKERFILE)
    good, _ = place.publish(image_id)
    path = max(squashed_layers(place.store), key=lambda file: file.stat().st_size)
    if damaged != "record":
        record = LayerFiles(path.parent).record
        assert record is not None and len(record.fast_digest) == 32
        if damaged == "block, earlier version":
            path.with_name("layer.json").write_text(encode(replace_fields(record, fast_digest="")))
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 3)
            file.write(b"damage")
    else:
        path.with_name("layer.json").write_text("{")
    merged, log = place.publish(image_id)
    record_says = (
        "not a whole SquashFS image: its record is missing or damaged; this layer is squashed again"
    )
    block_says = "its bytes have changed since it was written; the layers are read again"
    assert f"{path}: {record_says if damaged == 'record' else block_says}\n" in log
    assert re.search(r"merged \d+ layers, 1 of them squashed now: ", log), log
    assert contents(merged, place.directory / "now") == contents(good, place.directory / "before")
    _, log = place.publish(image_id)
    assert " layers: " in log


def test_a_layer_that_is_taken_away_is_squashed_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = place.build(DOCKERFILE)
    place.publish(image_id)
    path = max(squashed_layers(place.store), key=lambda file: file.stat().st_size)
    times = 0

    def taken_away(*arguments: Any, **options: Any) -> Written:
        nonlocal times
        times += 1
        if times == 1:
            shutil.rmtree(path.parent)
        return write(*arguments, **options)

    monkeypatch.setattr("rc_tasks.steps.publish.merge.write", taken_away)
    merged, log = place.publish(image_id)
    assert f"{path}: the layer cannot be opened again: No such file or directory; the layers are" in log
    assert re.search(r"merged \d+ layers, 1 of them squashed now: ", log), log
    whole, _ = place.publish(image_id, Squash(method=SquashMethod.DIRECT))
    assert listing(merged) == listing(whole)


def test_layers_that_change_again_and_again_are_not_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = place.build(DOCKERFILE)

    def taken_away(*arguments: Any, **options: Any) -> Written:
        shutil.rmtree(place.store.directory / "layers")
        return write(*arguments, **options)

    monkeypatch.setattr("rc_tasks.steps.publish.merge.write", taken_away)
    made, log = place.publish(image_id)
    assert "the image is squashed whole: its layers changed 3 times while they were merged\n" in log
    whole, _ = place.publish(image_id, Squash(method=SquashMethod.DIRECT))
    assert listing(made) == listing(whole)


def test_gc_keeps_the_layers_of_a_running_merge(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = place.build(DOCKERFILE)
    place.publish(image_id)

    def collect() -> list[Path]:
        # Nothing refers to these layers, and all of them are old.
        return garbage.remove(place.store, garbage.unneeded(place.store, {}, (), time.time() + 10))

    def collected(*arguments: Any, **options: Any) -> Written:
        assert collect() == []
        return write(*arguments, **options)

    monkeypatch.setattr("rc_tasks.steps.publish.merge.write", collected)
    _, log = place.publish(image_id)
    assert " layers: " in log
    assert {path.parent for path in squashed_layers(place.store)} == set(collect())


def test_archives_of_earlier_versions_are_converted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = place.build(DOCKERFILE)
    image = place.podman.inspect(image_id)
    with monkeypatch.context() as patched:
        patched.setattr(command, "which", lambda name: None if name == "mksquashfs" else name)
        save(place.podman, image, SquashedLayers(place.store), Squash())
    assert squashed_layers(place.store) == []
    before_bytes = place.store.size_bytes()
    place.publish(image_id)
    collected = garbage.unneeded(place.store, {}, {image_id}, time.time() + 10)
    assert {path.name for path in garbage.remove(place.store, collected)} == {
        digest.removeprefix("sha256:") for digest in image.layers
    }
    assert place.store.size_bytes() < 0.7 * before_bytes
    with own_storage() as (empty, _):
        assert load_images(place.store, empty, image_id) == ()
        assert empty.inspect(image_id).layers == image.layers


def test_two_writers_share_a_base(place: Place) -> None:
    images = [place.build(f"{DOCKERFILE}RUN echo {word} > /{word}\n") for word in ("one", "two")]
    places = [replace(place, directory=place.directory / image_id) for image_id in images]
    for each in places:
        each.directory.mkdir()
    with ThreadPoolExecutor() as pool:
        published = list(pool.map(Place.publish, places, images))
    for each, image_id, (merged, log) in zip(places, images, published, strict=True):
        assert "merged " in log
        whole, _ = each.publish(image_id, Squash(method=SquashMethod.DIRECT))
        assert listing(merged) == listing(whole)
        _, again = each.publish(image_id)
        assert " layers: " in again
    assert not [name for name in os.listdir(place.store.directory) if name.startswith(".put")]


def test_layers_of_other_settings_are_squashed_again(place: Place) -> None:
    image_id = place.build(DOCKERFILE)
    place.publish(image_id, Squash(compression=Compression.GZIP))
    merged, log = place.publish(image_id, Squash(compression=Compression.XZ, block_size_bytes=65536))
    assert "has gzip and blocks of 131072 bytes, the settings say xz and 65536; this layer is" in log
    whole, _ = place.publish(image_id, Squash(SquashMethod.DIRECT, Compression.XZ, 0, 65536))
    assert listing(merged) == listing(whole)
    _, log = place.publish(image_id, Squash(compression=Compression.XZ, block_size_bytes=65536))
    assert " layers: " in log


def test_layers_that_only_mounts_could_read_do_not_replace_others(place: Place) -> None:
    """lz4 is too slow to read here, so that no node could load such a layer."""
    image_id = place.build(DOCKERFILE)
    save(place.podman, place.podman.inspect(image_id), SquashedLayers(place.store), Squash())
    before = {path: path.stat().st_ino for path in squashed_layers(place.store)}
    merged, log = place.publish(image_id, Squash(compression=Compression.LZ4))
    assert "the settings say lz4 and 131072; this layer is squashed again" in log
    whole, _ = place.publish(image_id, Squash(SquashMethod.DIRECT, Compression.LZ4))
    assert listing(merged) == listing(whole)
    assert {path: path.stat().st_ino for path in squashed_layers(place.store)} == before
    with own_storage() as (empty, _):
        assert load_images(place.store, empty, image_id) == ()


def test_a_full_disk_ends_a_merge(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """To squash the image whole would take as much space, and much more time."""
    image_id = place.build(DOCKERFILE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rc_tasks.squashfs.write.copy", full)
    with pytest.raises(ArtifactError, match="cannot be written: No space left on device") as caught:
        place.publish(image_id)
    assert caught.value.where == place.directory
    assert "squashed whole" not in (place.directory / "log").read_text()
    assert list(place.directory.glob("**/*.tmp.sqsh")) == []


def test_layers_with_lzo_are_stored_as_archives(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    if Compressor.LZO not in squashfs.probe():
        pytest.skip("mksquashfs has no lzo")
    image = place.podman.inspect(place.build(DOCKERFILE))
    save(place.podman, image, SquashedLayers(place.store), Squash(compression=Compression.LZO))
    assert "layers are stored as archives: " in capsys.readouterr().out
    assert squashed_layers(place.store) == []
    with own_storage() as (empty, _):
        assert load_images(place.store, empty, image.id) == ()
    made, log = place.publish(image.id, Squash(compression=Compression.LZO))
    assert "the image is squashed whole: " in log and made.exists()


def test_what_cannot_be_merged_is_squashed_whole(place: Place) -> None:
    if Compressor.LZO not in squashfs.probe():
        pytest.skip("mksquashfs has no lzo")
    made, log = place.publish(place.build(DOCKERFILE), Squash(compression=Compression.LZO))
    assert "the image is squashed whole: " in log
    assert subprocess.run(["unsquashfs", "-ll", made], check=False, capture_output=True).returncode == 0
