"""How much CPU `doit list` takes with many images on one build context, beside a walk over it and doit.

    python -m tests.bench.shared [IMAGES [FILES]]              (default: 60 20000)

The context is `src`, and each image has a Dockerfile of its own beside it. The walk lists every
directory with os.scandir and takes `stat` of all that is in it, in a Python of its own; plain doit has
as many tasks, each with its Dockerfile as its only input. Prints the first `list`, which reads every
file, and medians of 15 runs of each, taken in turns, with the ratio of `list` to both together, which
is to be at most 1.3.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.bench.context import WALK, write_tree
from tests.bench.noop import PLAIN_DOIT, Shape, alternating_s, make_plain, peak_mb, run
from tests.support.checkouts import pretend_built, write_checkout

MOST_TIMES = 1.3


def main(images: int, files: int) -> None:
    """Measure one checkout."""
    with tempfile.TemporaryDirectory() as directory:
        root, plain = Path(directory) / "ours", Path(directory) / "plain"
        texts = {}
        for number in range(images):
            texts[f"docker/Dockerfile.{number}"] = f"FROM scratch\nCOPY d1 /x\nLABEL number={number}\n"
            texts[f"projects/image{number}:1/project.toml"] = (
                f'dockerfile = "../../docker/Dockerfile.{number}"\ncontext = "../../src"\n'
            )
        write_checkout(root, texts, 'runner = "local"')
        write_tree(root / "src", files, 100)
        make_plain(plain, images, (Shape("", 1),))
        pretend_built(root)
        time.sleep(2.1)  # younger files are not remembered by their time stamps yet
        first_s = run(root, "list")
        walk = WALK.replace("projects/image:1", "src")
        walk_s, doit_s, list_s = alternating_s(
            [
                lambda: run(root, command=(sys.executable, "-c", walk)),
                lambda: run(plain, command=PLAIN_DOIT),
                lambda: run(root, "list"),
            ]
        )
        print(
            f"{images} images on {files} files: first list {first_s:.2f} s, later {list_s:.3f} s;"
            f" a walk {walk_s:.3f} s, plain doit {doit_s:.3f} s;"
            f" ratio {list_s / (walk_s + doit_s):.2f} (at most {MOST_TIMES});"
            f" peak memory {peak_mb(root, 'list'):.0f} MB"
        )


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*given, *(60, 20_000)[len(given) :])
