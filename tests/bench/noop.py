"""How much CPU `doit` and `doit list` take with nothing to do, beside plain doit.

    python -m tests.bench.noop [IMAGES…]          (default: 10 1000)

Three checkouts: images in chains of ten; images that all stand on one registry base; and a mixture of
what real repositories hold. Prints medians of 15 runs, taken in turns, and their ratio, which is to be
at most 1.5 for a thousand images, and the peak memory of `doit list`.

The plain dodo.py has as many tasks (three steps, their group, and that of the versions of a name) with
as many inputs, outputs and local bases, as a person would write them for doit alone; its actions only
write small files, and have nothing to do when measured.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.state.checkout import open_checkout
from tests.support.checkouts import pretend_built, write_checkout

RUNS = 15
MOST_TIMES_PLAIN = 1.5
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

# Of every project in turn: how many files it has, and how far above it its local base stands.
SHAPES = {shapes}

def put(path):
    pathlib.Path(path).write_text(path)

def task_image():
    for number in range({images}):
        count, above = SHAPES[number % len(SHAPES)]
        here = f"p{{number}}/"
        files = [f"{{here}}f{{file}}" for file in range(count)]
        made = [here + name for name in ("image.json", "image.sqsh", "env.toml")]
        base = [f"p{{number - above}}/image.json"] if above else []
        yield {{"name": f"podman{{number}}", "file_dep": files + base, "targets": made[:1],
               "actions": [(put, [made[0]])]}}
        yield {{"name": f"enroot{{number}}", "file_dep": made[:1], "targets": made[1:2],
               "actions": [(put, [made[1]])]}}
        yield {{"name": f"env{{number}}", "file_dep": made[:1], "targets": made[2:],
               "actions": [(put, [made[2]])]}}
        yield {{"name": f"build{{number}}", "actions": None,
               "task_dep": [f"image:{{step}}{{number}}" for step in ("podman", "enroot", "env")]}}
        yield {{"name": f"versions{{number}}", "actions": None, "task_dep": [f"image:build{{number}}"]}}
"""

ON_SCRATCH = "FROM scratch\nCOPY . /x\nRUN true\nENV A=1\n"
ON_IMAGE = "FROM image{below}:1\nCOPY . /x\nRUN true\nENV A=1\n"
ON_REGISTRY = """\
FROM nvcr.io/nvidia/pytorch:24.05-py3
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends \\
        git \\
        libaio-dev \\
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir -r /tmp/requirements.txt
WORKDIR /workspace
ENTRYPOINT ["/usr/bin/env", "bash"]
"""
STAGES = """\
# syntax=docker/dockerfile:1
ARG CUDA=12.{minor}
ARG SYSTEM=ubuntu22.04
ARG FLAVOUR=devel-${SYSTEM}
FROM nvcr.io/nvidia/cuda:${CUDA}.0-${FLAVOUR} AS build
ARG MAX_JOBS=16
ENV PATH="/opt/conda/bin:${PATH}" MAX_JOBS=$MAX_JOBS
RUN apt-get update \\
    # what the extensions are built with
    && apt-get install -y --no-install-recommends build-essential cmake ninja-build \\
    && rm -rf /var/lib/apt/lists/*
COPY src/ /src/
RUN --mount=type=cache,target=/root/.cache cmake -S /src -B /build && cmake --build /build

FROM nvcr.io/nvidia/cuda:${CUDA}.0-runtime-${SYSTEM} AS runtime
RUN <<EOF
set -e
apt-get update
apt-get install -y python3
EOF
COPY --from=build /build/lib /usr/local/lib
COPY --from=ghcr.io/astral-sh/uv:0.5.{minor} /uv /usr/local/bin/uv

FROM runtime AS tests
COPY tests/ /tests/
RUN python3 -m pytest /tests

FROM runtime
LABEL org.opencontainers.image.title="image {number}"
COPY --chown=1000:1000 config/ /etc/app/
WORKDIR /workspace
CMD ["python3", "-m", "app"]
"""
SHORT = """\
ARG PYTHON=3.{minor}
FROM python:${PYTHON}-slim
ENV PYTHONUNBUFFERED=1
COPY . /app
RUN python -m pip install --no-cache-dir /app
USER nobody
ENTRYPOINT ["python", "-m", "app"]
"""
IGNORED = "**/*.pyc\n.git\nbuild/\n*.md\n!README.md\ntests/**/data\n.venv\nout{number}/\n*.log{number}\n"
RECIPE = '[build_args]\nMAX_JOBS = "8"\n\n[edf.env]\nNCCL_DEBUG = "WARN"\n'


@dataclass(frozen=True, slots=True)
class Shape:
    """A project: its Dockerfile, how many files it has with that one, and what else is special.

    `above` is how far above it the local base stands, 0 for none; `extra` are some of the files, and
    `ignored` are files that no image can see.
    """

    dockerfile: str
    files: int
    above: int = 0
    extra: tuple[tuple[str, str], ...] = ()
    ignored: int = 0


CHAINS = (Shape(ON_SCRATCH, 4), *[Shape(ON_IMAGE, 4, above=1)] * 9)
REGISTRY = (Shape(ON_REGISTRY, 4),)
IGNORING = ((".dockerignore", IGNORED),)
MIXTURE = (
    Shape(ON_REGISTRY, 4),
    Shape(STAGES, 50, extra=(*IGNORING, ("project.toml", RECIPE)), ignored=10),
    Shape(ON_IMAGE, 4, above=1),
    Shape(SHORT, 50, extra=IGNORING, ignored=10),
    Shape(SHORT, 12),
)


def main(counts: list[int]) -> None:
    """Measure for each number of images."""
    kinds = {"in chains": CHAINS, "on one registry base": REGISTRY, "of a mixture": MIXTURE}
    with tempfile.TemporaryDirectory() as directory:
        empty = Path(directory) / "empty"
        empty.mkdir()
        (empty / "dodo.py").write_text("DOIT_CONFIG = {}\n")
        floor_s = alternating_s([lambda: run(empty, command=PLAIN_DOIT)])[0]
        print(f"empty doit run: {floor_s * 1000:.0f} ms")
        for images in counts:
            for kind, shapes in kinds.items():
                ours, plain = (Path(directory) / f"{who}{images}{kind}" for who in ("ours", "plain"))
                make_ours(ours, images, shapes)
                make_plain(plain, images, shapes)
                measure(f"{images} images {kind}", ours, plain, floor_s)


def measure(what: str, ours: Path, plain: Path, floor_s: float) -> None:
    """Print the times of both, run in turns so that a busy machine slows both."""
    plain_s, doit_s, list_s = alternating_s(
        [
            lambda: run(plain, command=PLAIN_DOIT),
            lambda: run(ours),
            lambda: run(ours, "list"),
        ]
    )
    for arguments, ours_s in (("doit", doit_s), ("doit list", list_s)):
        print(
            f"{what}, {arguments}: {ours_s * 1000:.0f} ms, plain doit {plain_s * 1000:.0f} ms,"
            f" ratio {ours_s / plain_s:.2f} (at most {MOST_TIMES_PLAIN}),"
            f" against an empty run {ours_s / floor_s:.2f}",
            flush=True,
        )
    print(f"{what}, doit list: peak memory {peak_mb(ours, 'list'):.0f} MB")


def make_ours(root: Path, images: int, shapes: tuple[Shape, ...]) -> None:
    """A checkout of fresh images, the registry bases pinned."""
    # Else a host with srun is asked whether it belongs to a cluster.
    write_checkout(root, files_of(images, shapes), 'runner = "local"')
    (root / "bases.lock").write_text(pins(root))
    pretend_built(root)
    time.sleep(2.1)  # younger files are not remembered by their time stamps yet
    run(root)


def files_of(images: int, shapes: tuple[Shape, ...]) -> dict[str, str]:
    """All files of a checkout whose projects have these shapes in turn."""
    files: dict[str, str] = {}
    for number in range(images):
        shape, here = shapes[number % len(shapes)], f"projects/image{number}:1"
        # No two of them are the same, nor are the patterns that they ignore.
        values = {
            "{number}": str(number),
            "{below}": str(number - shape.above),
            "{minor}": str(number // len(shapes) % 10),
        }
        files |= {
            f"{here}/{name}": replaced(text, values)
            for name, text in (("Dockerfile", shape.dockerfile), *shape.extra)
        }
        for file in range(shape.files - len(shape.extra) - 1):
            # As real contexts have them: a few files at the top, or more in a few directories.
            where = here if shape.files < 20 else f"{here}/{('src', 'config', 'tests')[file % 3]}"
            files[f"{where}/f{file}"] = f"{number} {file}\n"
        files |= {f"{here}/build/o{file}": f"{file}\n" for file in range(shape.ignored)}
    return files


def replaced(text: str, values: dict[str, str]) -> str:
    """A text with all of these in place of others."""
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def pins(root: Path) -> str:
    """A bases.lock with a pin for each registry base."""
    images = open_checkout(root, {}).graph.images.values()
    bases = sorted({base for node in images for base in node.pinned})
    return "".join(
        f'["{base}"]\ndigest = "sha256:{number:064x}"\npinned_at = "2026-01-02T03:04:05+00:00"\n\n'
        for number, base in enumerate(bases)
    )


def make_plain(root: Path, images: int, shapes: tuple[Shape, ...]) -> None:
    """The same number of tasks and files for doit alone."""
    root.mkdir()
    counts = [(shape.files, shape.above) for shape in shapes]
    (root / "dodo.py").write_text(PLAIN.format(images=images, shapes=counts))
    for number in range(images):
        (root / f"p{number}").mkdir()
        for file in range(shapes[number % len(shapes)].files):
            (root / f"p{number}" / f"f{file}").write_text(f"{number} {file}\n")
    run(root, command=PLAIN_DOIT)


def run(root: Path, *arguments: str, command: tuple[str, ...] = DOIT) -> float:
    """One run of doit; the CPU time that it took in seconds, which other programs change little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What an installation compiles once is no part of a run.
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([*command, *arguments], cwd=root, env=environ, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def alternating_s(programs: list[Callable[[], float]]) -> list[float]:
    """The median of several runs of each, in seconds."""
    rounds = [[program() for program in programs] for _ in range(RUNS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


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
