"""How long `doit debug` takes to its prompt, on a node that has nothing, after a build that failed.

    python -m tests.bench.debug [--rounds N] [MEGABYTES…]   (default: 3, 900)

As root. The child of a base of that size fails in its third instruction. Then `doit debug child` runs
at a terminal, in turn with mounted layers and with an image that is loaded, each time on an empty node
and without Slurm. Prints the median seconds from the start to the prompt, and the bar.
"""

import argparse
import os
import pty
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.publish import copy_files, files
from tests.bench.rebuild import BASE, LOADED, write_programs
from tests.support.versions import HERE, Version, empty_node, tree_bytes

CHILD = "FROM base\nRUN echo one > /one\nRUN nosuch\n"
PROMPT = b" # "
MOST_S = 2.0


def main(sizes_mb: list[int], rounds: int) -> None:
    """Measure for each size."""
    for size_mb in sizes_mb:
        with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch:
            root = Path(scratch, "imgs")
            HERE.write_checkout(root, {"base/Dockerfile": BASE, "projects/child/Dockerfile": CHILD})
            write_programs(root / "base/programs")
            copy_files(files(), root / "base/content", size_mb * 1_000_000)
            with empty_node() as node:
                HERE.run(root, node, "podman:base")
                failed = run(HERE, root, node, "podman:child")
                assert b"doit debug child" in failed.stdout, failed.stdout
            took_s: dict[str, list[float]] = {version.name: [] for version in (HERE, LOADED)}
            for _ in range(rounds):
                for version in (HERE, LOADED):
                    with empty_node() as node:
                        took_s[version.name].append(prompt_s(version, root, node))
            ours_s, loaded_s = (statistics.median(took_s[version.name]) for version in (HERE, LOADED))
            print(
                f"base of {tree_bytes(root / 'base/content') / 1e6:.0f} MB: {ours_s:.2f} s to the prompt"
                f" (at most {MOST_S:.0f}), {loaded_s:.2f} s when the image is loaded",
                flush=True,
            )


def run(version: Version, root: Path, node: Path, *argv: str) -> "subprocess.CompletedProcess[bytes]":
    """Run doit, whatever its exit status."""
    return subprocess.run(
        (version.doit, *argv),
        cwd=root,
        env=version.environ_on(node),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def prompt_s(version: Version, root: Path, node: Path) -> float:
    """Return the seconds from the start of `doit debug child` to its prompt."""
    # What was written before is not what is measured.
    os.sync()
    started = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(root)
        os.execve(version.doit, ("doit", "debug", "child"), version.environ_on(node))
    seen = b""
    try:
        while PROMPT not in seen:
            seen += os.read(terminal, 1 << 16)
        took_s = time.monotonic() - started
        os.write(terminal, b"exit\n")
        while os.read(terminal, 1 << 16):
            pass
    except OSError:
        # What Linux says at the end of a terminal.
        if PROMPT not in seen:
            raise SystemExit(seen.decode(errors="replace")) from None
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return took_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("megabytes", type=int, nargs="*", default=[900])
    options = parser.parse_args()
    main(options.megabytes, options.rounds)
