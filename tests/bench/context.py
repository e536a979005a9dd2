"""How much CPU `doit list` takes with one large build context, beside a bare walk over it.

    python -m tests.bench.context [FILES [MEGABYTES]]          (default: 243000 969)

The walk lists every directory with os.scandir and takes `stat` of all that is in it, in a Python of its
own. Prints the first `list`, which reads every file, and medians of 15 later ones and 15 walks, taken in
turns, with their ratio, which is to be at most 2.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.bench.noop import DOIT, alternating_s, peak_mb, run
from tests.support.checkouts import pretend_built, write_checkout

MOST_TIMES_WALK = 2.0
PER_DIRECTORY = 100
DIRECTORIES = 50
WALK = """
import os

todo = ["projects/image:1"]
while todo:
    with os.scandir(todo.pop()) as items:
        for item in items:
            item.stat(follow_symlinks=False)
            if item.is_dir(follow_symlinks=False):
                todo.append(item.path)
"""


def main(files: int, megabytes: int) -> None:
    """Measure one tree."""
    with tempfile.TemporaryDirectory() as directory:
        root = write_checkout(
            Path(directory) / "checkout",
            {"projects/image:1/Dockerfile": "FROM scratch\nCOPY . /x\n"},
            'runner = "local"',
        )
        write_tree(root / "projects/image:1/tree", files, megabytes * 1_000_000 // files)
        pretend_built(root)
        time.sleep(2.1)  # younger files are not remembered by their time stamps yet
        first_s = run(root, "list")
        walk_s, list_s, doit_s = alternating_s(
            [
                lambda: run(root, command=(sys.executable, "-c", WALK)),
                lambda: run(root, "list"),
                lambda: run(root, command=DOIT),
            ]
        )
        print(f"{files} files, {megabytes} MB: first doit list {first_s:.2f} s, a walk {walk_s:.2f} s")
        for what, ours_s in (("doit list", list_s), ("doit", doit_s)):
            print(
                f"later {what} {ours_s:.2f} s, ratio {ours_s / walk_s:.2f} (at most {MOST_TIMES_WALK})"
            )
        print(f"doit list: peak memory {peak_mb(root, 'list'):.0f} MB")


def write_tree(top: Path, files: int, size_bytes: int) -> None:
    """Files of one size, a hundred in each directory, the directories two deep."""
    for number in range(files):
        group = number // PER_DIRECTORY
        directory = top / f"d{group % DIRECTORIES}" / f"s{group}"
        if number % PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"file{number}.py").write_bytes(b"%d\n" % number + b"x" * size_bytes)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*given, *(243_000, 969)[len(given) :])
