"""How much CPU the first `doit` takes in a clone of an unchanged checkout, beside a later one.

    python -m tests.bench.clone [IMAGES]          (default: 100)

Prints medians of 5 runs and their ratio. All files of a clone are new, so that its first run has to
digest them, too. podman, skopeo, srun and salloc on PATH fail loudly.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.noop import CHAINS, files_of, run
from tests.support.checkouts import pretend_built, write_checkout

RUNS = 5


def main(images: int) -> None:
    """Measure for one number of images."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        without_podman(top / "bin")
        make_official(top / "official", images)
        first = [run(clone) for clone in clones(top, images)]
        time.sleep(2.1)  # younger files are not remembered by their time stamps yet
        for clone in top.glob("clone*"):
            run(clone)
        nothing = [run(clone) for clone in top.glob("clone*")]
        first_s, nothing_s = statistics.median(first), statistics.median(nothing)
        print(
            f"{images} images: first doit in a clone {first_s * 1000:.0f} ms, with nothing to do"
            f" {nothing_s * 1000:.0f} ms, ratio {first_s / nothing_s:.2f}"
        )


def make_official(root: Path, images: int) -> None:
    """A checkout of fresh images in chains of ten, which is the official one."""
    write_checkout(root, files_of(images, CHAINS), f'images_root = "{root}"\nrunner = "local"')
    pretend_built(root)


def clones(top: Path, images: int) -> Iterator[Path]:
    """What git would bring of the official checkout, once for each run."""
    generated = shutil.ignore_patterns(".rc", "image.sqsh", "image.json")
    for number in range(RUNS):
        clone = top / f"clone{number}"
        shutil.copytree(top / "official", clone, ignore=generated, copy_function=shutil.copyfile)
        yield clone
        adopted = sum(path.is_symlink() for path in clone.glob("projects/*/image.sqsh"))
        assert adopted == images, f"{adopted} of {images} images were adopted"


def without_podman(directory: Path) -> None:
    """Put a podman on PATH that fails, and srun and skopeo with it."""
    directory.mkdir()
    for tool in ("podman", "skopeo", "srun", "salloc"):
        program = directory / tool
        program.write_text(f'#!/bin/sh\necho "{tool} was called: $*" >&2\nexit 99\n')
        program.chmod(0o755)
    os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
