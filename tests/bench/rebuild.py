"""How long it takes when one line of a child changes, on a base of 800 MB.

    python -m tests.bench.rebuild [MEGABYTES]          (default: 800), as root

Prints the time of the whole first build, and of `doit` after the entrypoint of the child changed, beside
what the new image needs in any case: its squash alone (`doit -a -s enroot:child`).
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.publish import files
from tests.support.checkouts import write_checkout
from tests.support.doit import doit
from tests.support.storage import remove_storage


def main(size_mb: int) -> None:
    """Measure once: each part takes seconds."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch:
        root = write_checkout(
            Path(scratch) / "imgs",
            {
                "base/Dockerfile": "FROM scratch\nCOPY content /content\n",
                "projects/child/Dockerfile": "FROM base\nCOPY entrypoint.sh /\n",
                "projects/child/entrypoint.sh": "#!/bin/sh\n",
            },
        )
        left = size_mb * 1_000_000
        for number, path in enumerate(files()):
            if left <= 0:
                break
            left -= path.stat().st_size
            target = root / "base/content" / str(number // 500) / f"{number}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        os.environ.update(
            RC_RUNNER="local", RC_PODMAN_STORAGE=f"{scratch}/storage", RC_PODMAN_DRIVER="overlay"
        )
        try:
            timed("first build of both", root)
            (root / "projects/child/entrypoint.sh").write_text('#!/bin/sh\nexec "$@"\n')
            changed_s = timed("entrypoint of the child changed", root)
            squash_s = timed("the squash of the child alone", root, "-a", "-s", "enroot:child")
            print(f"the change took {changed_s / squash_s:.2f} times its squash alone")
        finally:
            remove_storage(Path(scratch) / "storage")


def timed(what: str, root: Path, *argv: str) -> float:
    """Run doit and print what ran and how long it took."""
    started = time.monotonic()
    ran = doit(root, *argv)
    took_s = time.monotonic() - started
    if ran.status != 0:
        raise SystemExit(ran.text)
    print(f"{what}: {took_s:.1f} s ({', '.join(ran.started)})", flush=True)
    return took_s


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 800)
