"""How long `doit` and `doit list` take with nothing to do, beside plain doit on as many tasks and files.

    python -m tests.bench.noop [IMAGES…]          (default: 10 1000)

Prints medians of 7 runs and their ratio, and the peak memory of `doit list`. The plain dodo.py has the
same tasks (three steps and their group) with the same inputs, outputs and bases, as a person would
write them for doit alone; its actions only write small files, and have nothing to do when measured.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.checkouts import pretend_built, write_checkout

RUNS = 7
CONTEXT_FILES = 4
DOIT = (str(Path(sys.executable).with_name("doit")),)
# doit as it is without our commands, which are entry points of this same environment.
PLAIN_DOIT = (
    sys.executable,
    "-c",
    "import sys, doit.plugin as p; p.entry_points_impl = lambda: lambda group: ();"
    " from doit.doit_cmd import DoitMain; sys.exit(DoitMain().run(sys.argv[1:]))",
)

PLAIN = """
import pathlib

def put(path):
    pathlib.Path(path).write_text(path)

def task_image():
    for number in range({images}):
        here = f"p{{number}}/"
        files = [f"{{here}}f{{file}}" for file in range({files})]
        made = [here + name for name in ("image.json", "image.sqsh", "env.toml")]
        base = [f"p{{number - 1}}/image.json"] if number % 10 else []
        yield {{"name": f"podman{{number}}", "file_dep": files + base, "targets": made[:1],
               "actions": [(put, [made[0]])]}}
        yield {{"name": f"enroot{{number}}", "file_dep": made[:1], "targets": made[1:2],
               "actions": [(put, [made[1]])]}}
        yield {{"name": f"env{{number}}", "file_dep": made[:1], "targets": made[2:],
               "actions": [(put, [made[2]])]}}
        yield {{"name": f"build{{number}}", "actions": None,
               "task_dep": [f"image:{{step}}{{number}}" for step in ("podman", "enroot", "env")]}}
"""


def main(counts: list[int]) -> None:
    """Measure for each number of images."""
    with tempfile.TemporaryDirectory() as directory:
        empty = Path(directory) / "empty"
        empty.mkdir()
        (empty / "dodo.py").write_text("DOIT_CONFIG = {}\n")
        floor_s = median_s(empty, command=PLAIN_DOIT)
        print(f"empty doit run: {floor_s * 1000:.0f} ms")
        for images in counts:
            ours, plain = Path(directory) / f"ours{images}", Path(directory) / f"plain{images}"
            make_ours(ours, images)
            make_plain(plain, images)
            plain_s = median_s(plain, command=PLAIN_DOIT)
            for arguments in ((), ("list",)):
                ours_s = median_s(ours, *arguments)
                print(
                    f"{images} images, {' '.join(('doit', *arguments))}: {ours_s * 1000:.0f} ms,"
                    f" plain doit {plain_s * 1000:.0f} ms, ratio {ours_s / plain_s:.2f},"
                    f" against an empty run {ours_s / floor_s:.2f}"
                )
            print(f"{images} images, doit list: peak memory {peak_mb(ours, 'list'):.0f} MB")


def make_ours(root: Path, images: int) -> None:
    """A checkout of fresh images in chains of ten."""
    files: dict[str, str] = {}
    for number in range(images):
        base = f"image{number - 1}:1" if number % 10 else "scratch"
        files[f"projects/image{number}:1/Dockerfile"] = f"FROM {base}\nCOPY . /x\nRUN true\nENV A=1\n"
        for file in range(CONTEXT_FILES - 1):
            files[f"projects/image{number}:1/f{file}"] = f"{number} {file}\n"
    write_checkout(root, files)
    pretend_built(root)
    time.sleep(2.1)  # younger files are not remembered by their time stamps yet
    run(root)


def make_plain(root: Path, images: int) -> None:
    """The same number of tasks and files for doit alone."""
    root.mkdir()
    (root / "dodo.py").write_text(PLAIN.format(images=images, files=CONTEXT_FILES))
    for number in range(images):
        (root / f"p{number}").mkdir()
        for file in range(CONTEXT_FILES):
            (root / f"p{number}" / f"f{file}").write_text(f"{number} {file}\n")
    run(root, command=PLAIN_DOIT)


def run(root: Path, *arguments: str, command: tuple[str, ...] = DOIT) -> float:
    """One run of doit; its time in seconds."""
    started = time.monotonic()
    subprocess.run([*command, *arguments], cwd=root, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def median_s(root: Path, *arguments: str, command: tuple[str, ...] = DOIT) -> float:
    """The median of several runs, in seconds."""
    return statistics.median(run(root, *arguments, command=command) for _ in range(RUNS))


def peak_mb(root: Path, *arguments: str) -> float:
    """The peak resident memory of one run, measured in a process of its own."""
    child = os.fork()
    if child == 0:
        run(root, *arguments)
        peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        (root / "peak").write_text(str(peak_kib * 1024 / 1e6))
        os._exit(0)
    os.waitpid(child, 0)
    return float((root / "peak").read_text())


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [10, 1000])
