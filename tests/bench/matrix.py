"""How much CPU `doit list` takes with the images of matrices, beside as many projects.

    python -m tests.bench.matrix [MATRICES [IMAGES]]           (default: 20 50)

Each matrix has IMAGES images. Prints medians of 15 runs of each, taken in turns, and their ratio.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.bench.noop import alternating_s, run
from tests.support.checkouts import pretend_built, write_checkout

DOCKERFILE = "ARG A\nFROM scratch\nCOPY . /x\nLABEL a=$A\n"
SETTINGS = 'runner = "local"'


def main(matrices: int, images: int) -> None:
    """Measure one number of images."""
    values = [str(value) for value in range(images)]
    with tempfile.TemporaryDirectory() as directory:
        files, others = {}, {}
        for number in range(matrices):
            files[f"projects/m{number}/Dockerfile"] = DOCKERFILE
            files[f"projects/m{number}/data"] = f"{number}\n"
            files[f"projects/m{number}/project.toml"] = (
                f'build_args = {{ A = "{{a}}" }}\n[matrix]\na = {values}\n'
            )
            for value in values:
                others[f"projects/m{number}:{value}/Dockerfile"] = DOCKERFILE
                others[f"projects/m{number}:{value}/data"] = f"{number}\n"
                others[f"projects/m{number}:{value}/project.toml"] = (
                    f'build_args = {{ A = "{value}" }}\n'
                )
        ours = write_checkout(Path(directory) / "matrices", files, SETTINGS)
        single = write_checkout(Path(directory) / "projects", others, SETTINGS)
        for root in (ours, single):
            pretend_built(root)
        time.sleep(2.1)  # younger files are not remembered by their time stamps yet
        for root in (ours, single):
            run(root, "list")
        ours_s, single_s = alternating_s([lambda: run(ours, "list"), lambda: run(single, "list")])
        print(
            f"{matrices * images} images: of {matrices} matrices {ours_s:.3f} s, of as many projects"
            f" {single_s:.3f} s, ratio {ours_s / single_s:.2f}"
        )


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*given, *(20, 50)[len(given) :])
