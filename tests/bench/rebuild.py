"""How long a child takes whose last instruction changed, on a node that has nothing.

    python -m tests.bench.rebuild [--older DOIT] [--rounds N] [MEGABYTES…]   (default: 3, 800 3000)

As root. The child has ten instructions of 20 MB each on a base of that size. Each way runs in turn, each
time on an empty node and with another last instruction: this version, which mounts base and cache, and
another one, by its program DOIT such as /var/tmp/old/.venv/bin/doit. Without DOIT this version is
compared with itself, when it loads base and cache and when it has no store. Prints medians: the times,
the most that was on the node, and the most memory of the steps' processes, of which shared pages count
once. Then the publishing step runs once more, by itself, for the times of its parts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.publish import copy_files, files
from tests.support.checkouts import SOURCE
from tests.support.images import BUSYBOX
from tests.support.versions import HERE, Usage, Version, empty_node, older, step_s, tree_bytes

INSTRUCTIONS = 10
# A RUN of some length and size, as installing packages is.
RUN = "RUN sleep 1; head -c 20000000 /dev/urandom > /file{number}\n"
LAST = "RUN sleep 1; echo {text} > /last\n"
BASE = "FROM scratch\nCOPY programs /bin\nCOPY content /content\n"
LOADED = Version("loaded", environ={"RC_STORE_MOUNT": "never"})
STORELESS = Version("no store", environ={"RC_STORE_ENABLED": "false"})
# Of the base's unpacked size.
MOST_MEMORY = 1 / 20


def main(sizes_mb: list[int], rounds: int, other: str | None) -> None:
    """Measure for each size."""
    versions = (HERE, older(other)) if other else (HERE, LOADED, STORELESS)
    for size_mb in sizes_mb:
        with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch:
            content = Path(scratch, "content")
            copy_files(files(), content, size_mb * 1_000_000)
            unpacked_bytes = tree_bytes(content)
            print(f"base of {unpacked_bytes / 1e6:.0f} MB", flush=True)
            roots = {
                version.name: write_root(version, Path(scratch, version.name), content)
                for version in versions
            }
            for version in versions:
                with empty_node() as node:
                    version.run(roots[version.name], node)
            runs: dict[str, list[Rebuild]] = {version.name: [] for version in versions}
            for number in range(rounds):
                for version in versions:
                    runs[version.name].append(rebuild(version, roots[version.name], str(number)))
            show(runs, unpacked_bytes)
            show_parts(roots[HERE.name])


def write_root(version: Version, root: Path, content: Path) -> Path:
    """Write a checkout with this content in its base, and a child. Write all before the first build.

    Links that are made later change the files' times, so that a build reads all of them again.
    """
    version.write_checkout(root, {"base/Dockerfile": BASE, "projects/child/Dockerfile": child("first")})
    write_programs(root / "base/programs")
    # Both versions only read it.
    subprocess.run(("cp", "-al", content, root / "base/content"), check=True)
    return root


def write_programs(directory: Path) -> None:
    """Write a busybox, and what the instructions call."""
    directory.mkdir(parents=True)
    (directory / "busybox").write_bytes(BUSYBOX.read_bytes())
    (directory / "busybox").chmod(0o755)
    for applet in ("sh", "sleep", "head"):
        (directory / applet).symlink_to("busybox")


def child(text: str) -> str:
    """Return a Dockerfile whose last instruction differs."""
    runs = (RUN.format(number=number) for number in range(INSTRUCTIONS))
    return "".join(("FROM base\n", *runs, LAST.format(text=text)))


@dataclass(frozen=True)
class Rebuild:
    """A rebuild: its usage, and the seconds of its steps."""

    usage: Usage
    podman_s: float
    enroot_s: float

    @property
    def rest_s(self) -> float:
        """What doit and the start of the steps take."""
        return self.usage.seconds - self.podman_s - self.enroot_s


def rebuild(version: Version, root: Path, text: str) -> Rebuild:
    """Change the last instruction, and build on an empty node."""
    (root / "projects/child/Dockerfile").write_text(child(text))
    os.sync()  # what the version before wrote is not this one's to wait for
    with empty_node() as node:
        usage = version.run(root, node)
    return Rebuild(usage, step_s(root, "podman", "child"), step_s(root, "enroot", "child"))


def show(runs: dict[str, list[Rebuild]], unpacked_bytes: int) -> None:
    """Print the medians of each way; those of this version come first."""

    def median(name: str, value: Callable[[Rebuild], float]) -> float:
        return statistics.median(map(value, runs[name]))

    ours_s = median(HERE.name, lambda run: run.usage.seconds)
    for name in runs:
        took_s = median(name, lambda run: run.usage.seconds)
        podman_s = median(name, lambda run: run.podman_s)
        enroot_s = median(name, lambda run: run.enroot_s)
        rest_s = median(name, lambda run: run.rest_s)
        stored = median(name, lambda run: run.usage.stored_bytes)
        resident = median(name, lambda run: run.usage.resident_bytes)
        print(
            f"  {name:8} {took_s:5.1f} s (podman step {podman_s:.1f}, enroot step {enroot_s:.1f}, rest"
            f" {rest_s:.1f}); {HERE.name} takes {ours_s / took_s:.2f} of it\n"
            f"    {stored / 1e6:.0f} MB on the node and {resident / 1e6:.0f} MB of memory:"
            f" {stored / unpacked_bytes:.3f} and {resident / unpacked_bytes:.3f} of the base"
            f" (at most {MOST_MEMORY})",
            flush=True,
        )


def show_parts(root: Path) -> None:
    """Print what the parts of the publishing step take."""
    with empty_node() as node:
        environ = {**HERE.environ_on(node), "PYTHONPATH": str(SOURCE)}
        argv = (sys.executable, "-m", "tests.support.step_parts", "child")
        subprocess.run(argv, cwd=root, env=environ, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--older", metavar="DOIT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("megabytes", type=int, nargs="*", default=[800, 3000])
    options = parser.parse_args()
    main(options.megabytes, options.rounds, options.older)
