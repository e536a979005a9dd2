"""The first build on a registry base, and what the store takes then, beside an older version.

    python -m tests.bench.registry [--older DOIT] [--rounds N] [MEGABYTES [LAYERS]]
                                                            (default: 1, 3000 and 20), as root

The base, of this machine's own files in layers of one size, comes compressed from a registry on this
machine. Each version builds a child of one instruction in a checkout of its own and on an empty node: it
pulls the base, stores it, builds and publishes. DOIT is another version's program `doit`.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.publish import files
from tests.support.images import Layer
from tests.support.registry import Registry, serving
from tests.support.versions import HERE, Version, empty_node, older, step_s, tree_bytes

# Of the bytes of an older store.
MOST_STORE = 0.6


def main(size_mb: int, layers: int, rounds: int, other: str | None) -> None:
    """Measure each version in turn."""
    versions = (HERE, *([older(other)] if other else ()))
    with (
        tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch,
        serving(Path(scratch, "registry")) as registry,
    ):
        contents = archives(layers, size_mb * 1_000_000 // layers)
        registry.archives("base", "1", contents, compressed=True)
        pulled_bytes = tree_bytes(Path(scratch, "registry"))
        print(
            f"base of {size_mb} MB in {layers} layers, {pulled_bytes / 1e6:.0f} MB to pull", flush=True
        )
        builds: dict[str, list[FirstBuild]] = {version.name: [] for version in versions}
        for _ in range(rounds):
            for version in versions:
                builds[version.name].append(first_build(version, registry, Path(scratch)))
    ours = builds[HERE.name]
    ours_s = statistics.median(build.seconds for build in ours)
    for name, theirs in builds.items():
        took_s = statistics.median(build.seconds for build in theirs)
        podman_s = statistics.median(build.podman_s for build in theirs)
        enroot_s = statistics.median(build.enroot_s for build in theirs)
        print(
            f"  {name:6} {took_s:6.1f} s (podman step {podman_s:.1f} s, enroot step {enroot_s:.1f} s),"
            f" {theirs[0].store_bytes / 1e6:.0f} MB of store; {HERE.name} takes {ours_s / took_s:.2f} of"
            f" the time (at most 1), {ours[0].store_bytes / theirs[0].store_bytes:.2f} of the store"
            f" (at most {MOST_STORE})"
        )


def archives(layers: int, layer_bytes: int) -> Iterator[bytes]:
    """Yield the archives of a base: a small one with a shell, and layers of this machine's files."""
    yield Layer().busybox().tar()
    sources = files()
    for _ in range(layers - 1):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            while buffer.tell() < layer_bytes and (path := next(sources, None)):
                archive.add(path, recursive=False)
        yield buffer.getvalue()


@dataclass(frozen=True)
class FirstBuild:
    """What the first build of a checkout took: of time, and of its store."""

    seconds: float
    podman_s: float
    enroot_s: float
    store_bytes: int


def first_build(version: Version, registry: Registry, scratch: Path) -> FirstBuild:
    """Build a child of the registry's base in a new checkout."""
    text = f"FROM {registry}/base:1\nRUN echo a > /new\n"
    with tempfile.TemporaryDirectory(prefix="rc-", dir=scratch) as directory, empty_node() as node:
        root = version.write_checkout(Path(directory, "imgs"), {"projects/child/Dockerfile": text})
        usage = version.run(root, node, environ=registry.environ(scratch))
        podman_s, enroot_s = (step_s(root, step, "child") for step in ("podman", "enroot"))
        return FirstBuild(usage.seconds, podman_s, enroot_s, tree_bytes(root / ".rc/store"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--older", metavar="DOIT")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("megabytes", type=int, nargs="?", default=3000)
    parser.add_argument("layers", type=int, nargs="?", default=20)
    options = parser.parse_args()
    main(options.megabytes, options.layers, options.rounds, options.older)
