"""How long publishing takes, beside bare mksquashfs on the same mounted image, and beside Enroot.

    python -m tests.bench.publish [MEGABYTES…]          (default: 900 2900), as root

Images are made of this machine's own programs and libraries, with a small last layer. Each way runs
three times in turn, with a new last layer each time, and the medians are compared: mksquashfs alone with
our options, a copy of its file, our whole way (prepare, squash and look for packages, check, digest,
publish) when the store has the layers below the last (`changed`), when it has none (`first`) and without
merging (`direct`), and `enroot import` with its defaults where Enroot is installed.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rc_tasks.model.config.settings import Squash, SquashMethod
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.store import Store
from rc_tasks.steps.publish import squash
from rc_tasks.steps.publish.contents import ContentsWalk
from rc_tasks.steps.publish.publish import checked
from rc_tasks.tools import command, squashfs
from rc_tasks.tools.podman import Image, Podman
from tests.support.publishing import squash_image
from tests.support.storage import own_storage

RUNS = 3
SOURCES = (Path(sys.base_prefix), Path("/usr"), Path("/opt"))


def main(sizes_mb: list[int]) -> None:
    """Measure for each size."""
    with own_storage() as (podman, environment), tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        os.environ.update(environment)
        for size_mb in sizes_mb:
            base = make_image(podman, Path(scratch), size_mb)
            print(f"image of {base.size_bytes / 1e6:.0f} MB")
            times_s: dict[str, list[float]] = {}
            sizes: dict[str, int] = {}
            stored = SquashedLayers(Store(Path(scratch, f"store{size_mb}")))
            publish(podman, base, Path(scratch), Squash(), stored).unlink()
            for _ in range(RUNS):
                image = with_new_layer(podman, base, Path(scratch))
                ways = dict(make_ways(podman, image, Path(scratch), stored))
                for name, way in ways.items():
                    times_s.setdefault(name, [])
                    os.sync()  # what the way before wrote is not this one's to wait for
                    started = time.monotonic()
                    made = way()
                    times_s[name].append(time.monotonic() - started)
                    sizes[name] = made.stat().st_size
                    if name != "bare":
                        made.unlink()
                Path(scratch, "bare.sqsh").unlink()
            changed_s = statistics.median(times_s["changed"])
            for name, found in times_s.items():
                took_s = statistics.median(found)
                print(
                    f"  {name:10} {took_s:6.1f} s  {sizes[name] / 1e6:6.0f} MB"
                    f"  a changed last layer takes {changed_s / took_s:.2f} of it"
                )


def make_image(podman: Podman, scratch: Path, size_mb: int) -> Image:
    """An image with about so much content, of many small files and some large ones."""
    archive = scratch / "content.tar"
    left = size_mb * 1_000_000
    with tarfile.open(archive, "w") as tar:
        for path in files():
            if left <= 0:
                break
            left -= path.stat().st_size
            tar.add(path, recursive=False)
    (scratch / "Dockerfile").write_text('FROM scratch\nADD content.tar /\nCMD ["/bin/true"]\n')
    iid = scratch / "iid"
    build = podman.command("build", "--quiet", "--format", "docker", "--iidfile", str(iid), str(scratch))
    command.capture(build)
    archive.unlink()
    return podman.inspect(iid.read_text())


def with_new_layer(podman: Podman, base: Image, scratch: Path) -> Image:
    """The image with a layer of 6 MB on it that no other has."""
    with tempfile.TemporaryDirectory(dir=scratch) as context:
        for number in range(300):
            Path(context, f"file{number}").write_bytes(os.urandom(10_000) + bytes(10_000))
        Path(context, "Dockerfile").write_text(f"FROM {base.id}\nCOPY file* /new/\n")
        iid = scratch / "iid"
        argv = ("--quiet", "--format", "docker", "--iidfile", str(iid), context)
        command.capture(podman.command("build", *argv))
    return podman.inspect(iid.read_text())


def files() -> Iterator[Path]:
    """Regular files of this machine, in a stable order."""
    for source in SOURCES:
        for directory, names, found in os.walk(source):
            names.sort()
            for name in sorted(found):
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def copy_files(sources: Iterator[Path], directory: Path, size_bytes: int) -> None:
    """Copy about so many bytes of files into directories of 500 files each."""
    left_bytes = size_bytes
    for number, path in enumerate(sources):
        target = directory / str(number // 500) / f"{number}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        left_bytes -= path.stat().st_size
        if left_bytes <= 0:
            break


def publish(
    podman: Podman, image: Image, scratch: Path, settings: Squash, layers: SquashedLayers | None
) -> Path:
    """Our whole way."""
    final = scratch / "image.sqsh"
    made = squash.temporary(final)
    with (scratch / "log").open("wb") as log:
        squash_image(
            podman,
            image,
            made,
            settings=settings,
            provenance=("bench",),
            log=log,
            walk=ContentsWalk(),
            layers=layers,
        )
    checked(made, final)
    squash.publish(made, final)
    return final


def make_ways(
    podman: Podman, image: Image, scratch: Path, stored: SquashedLayers
) -> Iterator[tuple[str, Callable[[], Path]]]:
    """The ways to publish, each returning the file that it made."""
    settings = Squash()

    def bare() -> Path:
        made = scratch / "bare.sqsh"
        with podman.mounted(image.id, name="bench") as root:
            bare = squashfs.mksquashfs(
                root,
                made,
                compression=squashfs.best(Compressor.ZSTD, squashfs.probe()),
                level=0,
                block_size_bytes=settings.block_size_bytes,
                processors=len(os.sched_getaffinity(0)),
                memory_bytes=1 << 30,
                exclude=(),
                actions=(),
            )
            command.capture(bare)
        return made

    def copy() -> Path:
        return Path(shutil.copy(scratch / "bare.sqsh", scratch / "copy.sqsh"))

    def changed() -> Path:
        return publish(podman, image, scratch, settings, stored)

    def first() -> Path:
        with tempfile.TemporaryDirectory(dir=scratch) as empty:
            return publish(podman, image, scratch, settings, SquashedLayers(Store(Path(empty))))

    def direct() -> Path:
        return publish(podman, image, scratch, Squash(method=SquashMethod.DIRECT), None)

    def enroot() -> Path:
        made = scratch / "enroot.sqsh"
        subprocess.run(
            ["enroot", "import", "-o", made, f"podman://{image.id}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,  # its exit status means nothing
        )
        return made

    yield "bare", bare
    yield "cp", copy
    yield "changed", changed
    yield "first", first
    yield "direct", direct
    if command.which("enroot"):
        yield "enroot", enroot


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [900, 2900])
