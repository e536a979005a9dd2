"""How long a merge of SquashFS layers takes, beside mksquashfs of the merged tree and `cp`.

    python -m tests.bench.merge [MEGABYTES [ENTRIES]]      (default: 1000 30000)

The base is made of this machine's own programs and libraries; the layer on it has 6 MB. All three write
to the same file system, three times in turn, and the medians are compared. What the merge takes beyond
`cp` is also given for each inode.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rc_tasks.squashfs.merge import merge
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.squashfs.write import write
from rc_tasks.tools import command, squashfs
from tests.bench.publish import RUNS, files

LAYER_BYTES = 6_000_000
LARGE_BYTES = 1_000_000


def main(size_mb: int = 1000, entries: int = 30_000) -> None:
    """Measure once."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        scratch = Path(name)
        base, layer, together = (scratch / each for each in ("base", "layer", "together"))
        make_base(base, size_mb, entries)
        (layer / "opt").mkdir(parents=True)
        for number in range(60):
            (layer / "opt" / f"{number}").write_bytes(os.urandom(LAYER_BYTES // 60))
        layers = [mksquashfs(each, each.with_suffix(".sqsh")) for each in (base, layer)]
        for each in (base, layer):
            subprocess.run(("cp", "-a", "--reflink=auto", f"{each}/.", together), check=True)
        measure(scratch, layers, together)


def make_base(base: Path, size_mb: int, entries: int) -> None:
    """Copy files of this machine: large ones for two thirds of the megabytes, then small ones."""
    left_bytes = size_mb * 1_000_000
    count = 0
    for large, keep_bytes in ((True, left_bytes // 3), (False, 0)):
        for path in files():
            size_bytes = path.stat().st_size
            if left_bytes <= keep_bytes or count == entries:
                break
            if (size_bytes >= LARGE_BYTES) is large:
                target = base / path.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
                left_bytes -= size_bytes
                count += 1


def mksquashfs(source: Path, target: Path) -> Path:
    """A SquashFS with the options of a published image."""
    squash = squashfs.mksquashfs(
        source,
        target,
        compression=squashfs.best(Compressor.ZSTD, squashfs.probe()),
        level=0,
        block_size_bytes=131072,
        processors=len(os.sched_getaffinity(0)),
        memory_bytes=1 << 30,
    )
    command.capture(squash)
    return target


def measure(scratch: Path, layers: list[Path], together: Path) -> None:
    """Print what each way takes."""
    merged, other = scratch / "merged.sqsh", scratch / "other.sqsh"
    parts_s: list[tuple[float, float, float]] = []

    def merging() -> None:
        merged.unlink(missing_ok=True)
        begun = time.perf_counter()
        images = [read_layer(layer) for layer in layers]
        read = time.perf_counter()
        tree = merge(images)
        stacked = time.perf_counter()
        write(tree, merged, made_at=0)
        parts_s.append((read - begun, stacked - read, time.perf_counter() - stacked))

    ways: dict[str, Callable[[], object]] = {
        "merge": merging,
        "cp": lambda: subprocess.run(("cp", merged, other), check=True),
        "mksquashfs": lambda: mksquashfs(together, other),
    }
    times_s: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            other.unlink(missing_ok=True)
            os.sync()  # what the way before wrote is not this one's to wait for
            started = time.perf_counter()
            way()
            times_s[name].append(time.perf_counter() - started)
    inodes = read_layer(merged).source.superblock.inodes
    took_s = {name: statistics.median(times) for name, times in times_s.items()}
    print(f"{inodes} inodes, {merged.stat().st_size / 1e6:.0f} MB of SquashFS")
    for name, seconds in took_s.items():
        print(f"  {name:10} {seconds:6.2f} s  merge takes {took_s['merge'] / seconds:.2f} of it")
    read_s, merge_s, write_s = (statistics.median(part) for part in zip(*parts_s, strict=True))
    beyond_us = (took_s["merge"] - took_s["cp"]) / inodes * 1e6
    print(f"  read {read_s:.2f} s, merge {merge_s:.2f} s, write {write_s:.2f} s")
    print(f"  {beyond_us:.1f} us an inode beyond cp")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
