"""How long it takes when the last instruction of a child changed, on a node that has nothing.

    python -m tests.bench.rebuild [MEGABYTES] [INSTRUCTIONS]       (default: 800, and 10), as root

The child has so many instructions of 20 MB each on a base of that size. Prints the time of `doit` on an
empty node with the store and without it, beside what has to be in any case: the base and the child
loaded from the store, the instruction itself, and the squash.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.records.records import Step
from rc_tasks.tools import command
from rc_tasks.tools.podman import Podman
from tests.bench.publish import files
from tests.support.checkouts import write_checkout
from tests.support.doit import doit_process
from tests.support.images import BUSYBOX
from tests.support.storage import remove_storage

# A RUN of some length and size, as installing packages is.
RUN = "RUN sleep 1; head -c 20000000 /dev/urandom > /file{number}\n"
LAST = "RUN sleep 1; echo {text} > /last\n"


def main(size_mb: int, instructions: int) -> None:
    """Measure once: each part takes seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch,
        # Where diskless nodes keep podman's images.
        tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as memory,
    ):
        root = write_checkout(
            Path(scratch) / "imgs",
            {
                "base/Dockerfile": "FROM scratch\nCOPY programs /bin\nCOPY content /content\n",
                "projects/child/Dockerfile": child(instructions, "first"),
            },
        )
        programs = root / "base/programs"
        programs.mkdir()
        programs.joinpath("busybox").write_bytes(BUSYBOX.read_bytes())
        programs.joinpath("busybox").chmod(0o755)
        for applet in ("sh", "sleep", "head"):
            programs.joinpath(applet).symlink_to("busybox")
        left = size_mb * 1_000_000
        for number, path in enumerate(files()):
            if left <= 0:
                break
            left -= path.stat().st_size
            target = root / "base/content" / str(number // 500) / f"{number}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        # Isolation that works in a container too.
        os.environ.update(RC_RUNNER="local", RC_PODMAN_DRIVER="overlay", RC_PODMAN_ISOLATION="chroot")
        try:
            measure(root, Path(memory), instructions)
        finally:
            for name in ("first", "empty", "loading", "storeless"):
                remove_storage(Path(memory) / name)


def measure(root: Path, scratch: Path, instructions: int) -> None:
    """Build, change the last instruction, and rebuild on nodes that have nothing."""
    timed("first build of both", root, scratch / "first")
    dockerfile = root / "projects/child/Dockerfile"
    dockerfile.write_text(child(instructions, "second"))
    changed_s = timed("with the store, on an empty node", root, scratch / "empty")
    load_s = loading(root, scratch / "loading")
    print(f"the base and the child loaded from the store alone: {load_s:.1f} s", flush=True)
    squash_s = timed(
        "the squash of the child alone", root, scratch / "empty", "-a", "-s", "enroot:child"
    )
    dockerfile.write_text(child(instructions, "third"))
    os.environ["RC_STORE_ENABLED"] = "false"
    plain_s = timed(
        "without the store, on an empty node", root, scratch / "storeless", "-a", "build:child"
    )
    ideal_s = load_s + 1 + squash_s
    print(
        f"ideal (loading, the instruction of 1 s, the squash): {ideal_s:.1f} s;"
        f" with the store {changed_s / ideal_s:.2f} times that, without {plain_s / ideal_s:.2f} times"
    )


def child(instructions: int, text: str) -> str:
    """A Dockerfile whose last instruction differs."""
    runs = (RUN.format(number=number) for number in range(instructions))
    return "".join(("FROM base\n", *runs, LAST.format(text=text)))


def loading(root: Path, storage: Path) -> float:
    """The seconds that podman takes to read the base and the child as it is from the store."""
    checkout = open_checkout(root, {})
    podman = Podman(str(storage / "root"), str(storage / "run"), "overlay")
    os.sync()
    started = time.monotonic()
    for name in ("base", "child"):
        record = checkout.records.get(Step.PODMAN, name)
        if record is None or record.facts is None:
            raise SystemExit(f"{name} was not built")
        view = checkout.store.directory / "images" / record.facts.image_id
        command.capture(podman.pull_directories([view]))
    return time.monotonic() - started


def timed(what: str, root: Path, storage: Path, *argv: str) -> float:
    """Run doit on a node with this storage, and print what ran and how long it took."""
    # What was written before is not what is measured.
    os.sync()
    started = time.monotonic()
    ran = doit_process(root, *argv, environ={"RC_PODMAN_STORAGE": str(storage)})
    took_s = time.monotonic() - started
    if ran.status != 0:
        raise SystemExit(ran.text)
    print(f"{what}: {took_s:.1f} s ({', '.join(ran.started)})", flush=True)
    return took_s


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*numbers, *(800, 10)[len(numbers) :])
