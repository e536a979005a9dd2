"""Images published by merging their layers, beside the same images squashed whole."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rc_tasks.model.config.settings import Compression, Squash, SquashMethod
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.state.store import layers
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.store import Store
from rc_tasks.steps.publish import squash
from rc_tasks.tools import command, squashfs
from rc_tasks.tools.podman import Podman
from tests.support.containers import ulimits
from tests.support.images import BUSYBOX
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
WORKDIR /work/here
"""
ENTRY = re.compile(r"(?m)^(d\S+) (\S+) +\d+ (.*)$")


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
            squash.squash(
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


def listing(path: Path) -> list[str]:
    """All entries but for the times of what publishing itself writes, and the sizes of directories."""
    text = command.capture(squashfs.listing(path)).stdout
    lines = ENTRY.sub(r"\1 \2 \3", text[text.index("drwx") :]).splitlines()
    own = re.compile(r" squashfs-root(/etc(/(fstab|environment|rc|rc\.local))?|/work(/here)?)?$")
    date = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")
    return [date.sub("now", line) if own.search(line) else line for line in lines]


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
    assert re.search(r"merged \d+ layers, [12] of them new: ", log), log
    assert not [name for name in os.listdir(place.store.directory) if name.startswith(".put")]


def test_a_damaged_layer_is_told_and_made_again(place: Place) -> None:
    image_id = place.build(DOCKERFILE)
    place.publish(image_id)
    path = max(squashed_layers(place.store), key=lambda file: file.stat().st_size)
    record = layers.layer_record(path)
    assert record is not None and record.size_bytes == path.stat().st_size
    os.truncate(path, record.size_bytes // 2)
    merged, log = place.publish(image_id)
    assert f"{path}: not a whole SquashFS image: it is " in log
    assert "; this layer is squashed again\n" in log
    assert path.stat().st_size == record.size_bytes
    whole, _ = place.publish(image_id, Squash(method=SquashMethod.DIRECT))
    assert listing(merged) == listing(whole)


def test_layers_of_other_settings_are_squashed_again(place: Place) -> None:
    image_id = place.build(DOCKERFILE)
    place.publish(image_id, Squash(compression=Compression.GZIP))
    merged, log = place.publish(image_id, Squash(compression=Compression.XZ, block_size_bytes=65536))
    assert "has gzip and blocks of 131072 bytes, the settings say xz and 65536; this layer is" in log
    whole, _ = place.publish(image_id, Squash(SquashMethod.DIRECT, Compression.XZ, 0, 65536))
    assert listing(merged) == listing(whole)
    _, log = place.publish(image_id, Squash(compression=Compression.XZ, block_size_bytes=65536))
    assert ", 0 of them new: " in log


def test_what_cannot_be_merged_is_squashed_whole(place: Place) -> None:
    if Compressor.LZO not in squashfs.probe():
        pytest.skip("mksquashfs has no lzo")
    made, log = place.publish(place.build(DOCKERFILE), Squash(compression=Compression.LZO))
    assert "the image is squashed whole: " in log
    assert subprocess.run(["unsquashfs", "-ll", made], check=False, capture_output=True).returncode == 0
