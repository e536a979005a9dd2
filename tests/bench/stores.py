"""What the store of many images on one base takes, beside an older version.

    python -m tests.bench.stores [--older DOIT] [IMAGES [MEGABYTES]]        (default: 40, 300), as root

Each image adds 5 MB of this machine's files to a base of that size. Each version builds all of them in a
checkout of its own. DOIT is another version's program `doit`.
"""

import argparse
import itertools
import subprocess
import tempfile
from pathlib import Path

from tests.bench.publish import copy_files, files
from tests.bench.rebuild import BASE, write_programs
from tests.support.versions import HERE, empty_node, older, tree_bytes

ADDED_BYTES = 5_000_000
CHILD = "FROM base\nCOPY content /added\n"


def main(images: int, size_mb: int, other: str | None) -> None:
    """Measure each version."""
    versions = (HERE, *([older(other)] if other else ()))
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch:
        contexts = Path(scratch, "contexts")
        sources = files()
        copy_files(sources, contexts / "base/content", size_mb * 1_000_000)
        write_programs(contexts / "base/programs")
        names = [f"projects/image{number}" for number in range(images)]
        # Larger ones would be an image's whole 5 MB, and more.
        small = (path for path in sources if path.stat().st_size < ADDED_BYTES // 10)
        for name in names:
            copy_files(small, contexts / name / "content", ADDED_BYTES)
        unpacked_bytes = tree_bytes(contexts)
        dockerfiles = {f"{name}/Dockerfile": CHILD for name in names} | {"base/Dockerfile": BASE}
        taken: dict[str, tuple[float, int, int]] = {}
        for version in versions:
            root = version.write_checkout(Path(scratch, version.name), dockerfiles)
            subprocess.run(("cp", "-al", f"{contexts}/.", root), check=True)
            with empty_node() as node:
                took_s = version.run(root, node).seconds
            published = itertools.chain(root.glob("*/image.sqsh"), root.glob("projects/*/image.sqsh"))
            published_bytes = sum(path.stat().st_size for path in published)
            taken[version.name] = took_s, tree_bytes(root / ".rc/store"), published_bytes
        unpacked_mb = unpacked_bytes / 1e6
        print(f"{images} images of 5 MB on a base of {size_mb} MB, {unpacked_mb:.0f} MB unpacked")
        ours_s, ours_bytes, _ = taken[HERE.name]
        for name, (took_s, store_bytes, published_bytes) in taken.items():
            print(
                f"  {name:6} {store_bytes / 1e6:.0f} MB stored, {published_bytes / 1e6:.0f} MB published"
                f" in {took_s:.0f} s; {HERE.name} takes {ours_bytes / store_bytes:.2f} of the store,"
                f" {ours_s / took_s:.2f} of the time"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--older", metavar="DOIT")
    parser.add_argument("images", type=int, nargs="?", default=40)
    parser.add_argument("megabytes", type=int, nargs="?", default=300)
    options = parser.parse_args()
    main(options.images, options.megabytes, options.older)
