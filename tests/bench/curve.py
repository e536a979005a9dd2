"""How a rebuild grows with its base, beside `cp` of the published image.

    python -m tests.bench.curve [--rounds N] [MEGABYTES…]     (default: 3, 500 1000 2000 4000), as root

The child and its node are those of `rebuild`: its last instruction of a second changes, and the node has
nothing. Prints for each base the medians of `doit` and of the copy, and what each gigabyte adds.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.publish import copy_files, files
from tests.bench.rebuild import rebuild, write_root
from tests.support.versions import HERE, empty_node, tree_bytes


def main(sizes_mb: list[int], rounds: int) -> None:
    """Measure for each size."""
    print("base, unpacked  image.sqsh    doit      cp", flush=True)
    sizes_gb, times_s, copies_s = [], [], []
    for size_mb in sizes_mb:
        with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch:
            content = Path(scratch, "content")
            copy_files(files(), content, size_mb * 1_000_000)
            root = write_root(HERE, Path(scratch, "checkout"), content)
            with empty_node() as node:
                HERE.run(root, node)
            image = root / "projects/child/image.sqsh"
            both_s = [
                (rebuild(HERE, root, str(number)).usage.seconds, copy_s(image))
                for number in range(rounds)
            ]
            doit_s, cp_s = (statistics.median(column) for column in zip(*both_s, strict=True))
            unpacked_bytes, image_bytes = tree_bytes(content), image.stat().st_size
        print(
            f"{unpacked_bytes / 1e6:11.0f} MB {image_bytes / 1e6:8.0f} MB {doit_s:5.1f} s {cp_s:5.1f} s",
            flush=True,
        )
        sizes_gb.append(unpacked_bytes / 1e9)
        times_s.append(doit_s)
        copies_s.append(cp_s)
    if len(sizes_gb) > 1:
        doit_slope, cp_slope = (
            statistics.linear_regression(sizes_gb, column).slope for column in (times_s, copies_s)
        )
        print(f"each GB of the base adds {doit_slope:.2f} s, and {cp_slope:.2f} s to cp")


def copy_s(image: Path) -> float:
    """Return the seconds that `cp` takes beside an image."""
    copy = image.with_name("copy.sqsh")
    copy.unlink(missing_ok=True)
    started = time.monotonic()
    subprocess.run(("cp", image, copy), check=True)
    took_s = time.monotonic() - started
    copy.unlink()
    return took_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("megabytes", type=int, nargs="*", default=[500, 1000, 2000, 4000])
    options = parser.parse_args()
    main(options.megabytes, options.rounds)
