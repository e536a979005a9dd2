"""Overviews for the report's tests, made of values: a team's checkout, and one of 500 images.

`python -m tests.support.overviews DIRECTORY` writes their pages, to be looked at.
"""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random

from rc_tasks.model.graph.pin import Pin
from rc_tasks.model.graph.view import Edge, EdgeKind, GraphNode, GraphView, NodeKind
from rc_tasks.model.manifest.diff import compared
from rc_tasks.model.manifest.manifest import Contents, Distribution, Manifest, Origin, Package
from rc_tasks.model.manifest.manifest import PackageKind as Keeper
from rc_tasks.state.bases.registry_bases import BaseKind as How
from rc_tasks.state.bases.registry_bases import RegistryBase
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.records import Passed, Step
from rc_tasks.state.records.status import State
from rc_tasks.views.report.manifest_summary import ManifestSummary
from rc_tasks.views.report.overview import FailedImage, ImageOverview, Overview, by_image

NIGHT = datetime(2026, 11, 21, 1, 0, tzinfo=UTC)
COMMIT = "8bddfbc71d0e4a1b9f0c2d3e4f5a6b7c8d9e0f1a"
EDF = """\
# Generated values are kept current; the rest is yours.
image = "/capstor/store/cscs/swissai/a06/reasoning/imgs/projects/{name}/image.sqsh"
mounts = [
    "/capstor:/capstor",
    "/iopsstor:/iopsstor",
    "/users:/users",
]
workdir = "/workspace"
entrypoint = true
writable = true

[annotations]
com.hooks.aws_ofi_nccl.enabled = "true"
com.hooks.aws_ofi_nccl.variant = "cuda12"

[env]
NCCL_DEBUG = "WARN"
"""
PYTORCH, VLLM = "nvcr.io/nvidia/pytorch:25.01-py3", "docker.io/vllm/vllm-openai:v0.8.4"
LOG = b"""\
STEP 7/11: RUN pip install --no-build-isolation flash-attn==2.7.4
Collecting flash-attn==2.7.4
  Downloading flash_attn-2.7.4.tar.gz (2.7 MB)
  Preparing metadata (pyproject.toml): finished with status 'done'
Building wheels for collected packages: flash-attn
  \x1b[31merror\x1b[0m: subprocess-exited-with-error
  RuntimeError: Error compiling objects for extension
  [end of output]
ERROR: Failed building wheel for flash-attn
Error: building at STEP "RUN pip install --no-build-isolation flash-attn==2.7.4": exit status 1"""
# Name, bases, state, reasons, published size.
TEAM: tuple[tuple[str, tuple[str, ...], State, tuple[str, ...], float], ...] = (
    ("reasoning_base", (PYTORCH,), State.FRESH, (), 9.82e9),
    ("reasoning:2024.4", ("reasoning_base",), State.FRESH, (), 11.4e9),
    ("reasoning:2025.1", ("reasoning_base",), State.STALE, ("Dockerfile changed",), 12.9e9),
    (
        "reasoning-eval:1.2",
        ("reasoning:2025.1",),
        State.STALE,
        ("base image reasoning:2025.1 is stale",),
        13.1e9,
    ),
    (
        "reasoning-train:0.9",
        ("reasoning:2025.1", "megatron:core-0.11"),
        State.STALE,
        ("base image reasoning:2025.1 is stale", "train.sh changed", "requirements.txt changed"),
        14.6e9,
    ),
    ("megatron:core-0.11", (PYTORCH,), State.FRESH, (), 12.2e9),
    (
        "verl:0.3",
        ("reasoning_base", "vllm:0.8.4"),
        State.FAILED,
        ("projects/verl:0.3/Dockerfile: RUN pip install --no-build-isolation flash-attn==2.7.4 failed",),
        0,
    ),
    ("vllm:0.8.4", (VLLM,), State.FRESH, (), 8.31e9),
    ("sglang:0.4", ("reasoning_base",), State.BUILDING, ("never built",), 0),
    ("data-tools:3", ("docker.io/library/debian:12",), State.FRESH, (), 412e6),
    ("viewer", ("data-tools:3",), State.MISSING, ("never built",), 0),
)
SITE = "/usr/local/lib/python3.12/dist-packages"
UBUNTU = Distribution("ubuntu", "24.04", "Ubuntu 24.04.1 LTS")
TESTS = (
    Passed(("python", "-c", "import torch; print(torch.__version__)"), "pyxis", 6.4),
    Passed(("nvcc", "--version"), "pyxis", 0.8),
)
ALIASES = {"reasoning:latest": "reasoning:2025.1", "vllm:latest": "vllm:0.8.4"}


def team(root: Path = Path("/capstor/store/cscs/swissai/a06/reasoning/imgs")) -> Overview:
    """Eleven images after a night on three nodes."""
    random = Random(3)
    entries: list[HistoryEntry] = []
    for night in range(14, -1, -1):
        order = [each for each in TEAM if each[4] or each[2] is State.FAILED]
        # Not everything changes every night.
        picked = order if night in (0, 14) else [each for each in order if random.random() < 0.6]
        entries += _night(random, NIGHT - timedelta(days=night), [(e[0], e[4], e[2]) for e in picked], 5)
    failed = TEAM[6]
    log = ".rc/logs/verl:0.3/podman/2026-11-21T01-22-41.118Z.20114.log"
    failure = FailedImage(
        failed[0], State.FAILED, failed[3][0], Step.PODMAN, "2026-11-21T01:41:09+00:00", log,
        tuple(LOG.split(b"\n")),
    )  # fmt: skip
    rows = [(name, bases, state, reasons, size) for name, bases, state, reasons, size in TEAM]
    return _overview(root, rows, ALIASES, entries, (failure,))


def crowd(count: int = 500, runs: int = 20, root: Path = Path("/imgs")) -> Overview:
    """So many images, each with so many runs; one in twelve failed in the last one."""
    random = Random(5)
    rows: list[tuple[str, tuple[str, ...], State, tuple[str, ...], float]] = []
    for number in range(count):
        name = f"team-{number % 9}-image:{number // 9}.{number % 7}"
        bases: tuple[str, ...] = (f"nvcr.io/nvidia/pytorch:25.{number:02}-py3",)
        if number >= 6:
            bases = (rows[number // 6][0],)
        if number % 10 == 9:
            bases = (*bases, rows[number // 9][0])
        states = (State.FRESH, State.FRESH, State.STALE, State.FRESH, State.MISSING, State.FRESH)
        state = State.FAILED if number % 12 == 11 else states[number % 6]
        stale = (f"base image {bases[0]} is stale", "Dockerfile changed")
        reasons = () if state is State.FRESH else stale
        rows.append((name, bases, state, reasons, random.uniform(0.3e9, 15e9)))
    entries: list[HistoryEntry] = []
    for night in range(runs - 1, -1, -1):
        wanted = [(name, size, state if night == 0 else State.FRESH) for name, _, state, _, size in rows]
        entries += _night(random, NIGHT - timedelta(days=night), wanted, 16)
    aliases = {f"{name.partition(':')[0]}:latest": name for name, *_ in rows}
    failures = tuple(
        FailedImage(
            name, state, f"projects/{name}/Dockerfile: RUN make failed with exit status 2", Step.PODMAN,
            "2026-11-21T01:41:09+00:00", f".rc/logs/{name}/podman/x.log", tuple(LOG.split(b"\n")),
        )
        for name, _, state, _, _ in rows
        if state is State.FAILED
    )  # fmt: skip
    return _overview(root, rows, aliases, entries, failures)


def inside_of(name: str, size: float, random: Random, most: int = 40) -> ManifestSummary:
    """A manifest's summary, after a rebuild that changed up to so many packages."""
    dpkgs, pythons = random.sample(range(900), most // 2), random.sample(range(400), most // 2)

    def build(number: int) -> Manifest:
        packages = [
            Package(
                Keeper.DPKG,
                f"libsomething{at}-dev",
                f"{at}.4.{number + at % 2}-2ubuntu{at % 7}",
                "/",
                "arm64",
            )
            for at in dpkgs[: random.randint(1, most // 2)]
        ]
        packages += [
            Package(Keeper.PYTHON, f"some-package-{at}", f"{at % 9}.{number}.{at % 5}", SITE)
            for at in pythons[: random.randint(1, most // 2)]
        ]
        sizes = {
            "/usr": round(size * 1.6) + number * 21_300_000,
            "/opt": round(size / 2),
            "/root": 5_120 * number,
        }
        instruction = f"RUN pip install some-package-{pythons[0]}=={number}.0"
        return Manifest(
            name,
            f"{random.getrandbits(256):064x}",
            "arm64",
            (NIGHT + timedelta(days=number - 2)).isoformat(),
            round(size * (1 + number / 90)),
            round(size * 2.2),
            Contents(UBUNTU, tuple(packages), sizes, 91_000),
            Origin(
                f"FROM {PYTORCH}\nWORKDIR /workspace\n{instruction}\nCOPY train.sh /\n", {}, "",
                {PYTORCH: f"sha256:{sha256(bytes(number)).hexdigest()}"}, {"train.sh": str(number)},
                NIGHT.isoformat(), "ada", "nid006400", COMMIT,
            ),
        )  # fmt: skip

    changes = compared(build(1), build(2))
    counts = {Keeper.DPKG: 712, Keeper.PYTHON: 298}
    largest = sorted(changes.new.contents.sizes_bytes.items(), key=lambda each: -each[1])
    return ManifestSummary(changes.new.contents.distribution.title, counts, tuple(largest), changes)


def _registry_bases(rows: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[RegistryBase, ...]:
    """The bases that are no images, each pinned."""
    images = dict(rows)
    found = []
    for number, base in enumerate(
        sorted({each for bases in images.values() for each in bases} - {*images})
    ):
        users = tuple(name for name, bases in images.items() if base in bases)
        reached = set(users)
        above = []
        for name, bases in images.items():
            if name not in reached and reached.intersection(bases):
                reached.add(name)
                above.append(name)
        digest = sha256(base.encode()).hexdigest()
        pin = Pin(f"sha256:{digest}", (NIGHT - timedelta(days=9 * number + 4)).isoformat())
        found.append(RegistryBase(base, How.PINNED, pin, users, tuple(above)))
    return tuple(found)


def _overview(
    root: Path,
    rows: Iterable[tuple[str, tuple[str, ...], State, tuple[str, ...], float]],
    aliases: dict[str, str],
    entries: list[HistoryEntry],
    failures: tuple[FailedImage, ...],
) -> Overview:
    rows, random = list(rows), Random(7)
    newest = sorted(entries, key=lambda entry: entry.began, reverse=True)
    built = by_image(newest)
    nodes = [GraphNode(name, NodeKind.IMAGE, state, reasons) for name, _, state, reasons, _ in rows]
    bases = _registry_bases((name, each) for name, each, *_ in rows)
    nodes += [GraphNode(base.reference, NodeKind.REGISTRY) for base in bases]
    nodes += [GraphNode(alias, NodeKind.ALIAS) for alias in aliases]
    edges = [Edge(base, name) for name, each, *_ in rows for base in each]
    edges += [Edge(target, alias, EdgeKind.ALIAS) for alias, target in aliases.items()]
    images = tuple(
        ImageOverview(
            name,
            state,
            reasons,
            round(size) if size else None,
            newest[0].started_at if size else "",
            COMMIT if size else "",
            size > 14e9,
            each,
            tuple(alias for alias, target in aliases.items() if target == name),
            f"projects/{name}/env.toml" if size else "",
            EDF.format(name=name) if size else "",
            built.get(name, ()),
            TESTS if size else (),
            manifest_summary=inside_of(name, size, random) if size else None,
        )
        for name, each, state, reasons, size in rows
    )
    last = tuple(entry for entry in reversed(newest) if entry.run == newest[0].run)
    return Overview(
        root,
        datetime(2026, 11, 21, 6, 30, tzinfo=UTC).astimezone(),
        images,
        GraphView(tuple(sorted(nodes, key=lambda node: node.name)), tuple(edges)),
        last,
        failures,
        bases,
        (),
        "main",
        COMMIT,
    )


def _night(
    random: Random, begin: datetime, wanted: list[tuple[str, float, State]], slots: int
) -> list[HistoryEntry]:
    """Every image through its steps, each where first something is free."""
    free = [0.0] * slots
    entries = []
    run = begin.strftime("%Y-%m-%dT%H-%M-%S.000Z.77")
    for name, size, state in wanted:
        slot = min(range(slots), key=free.__getitem__)
        ready = random.uniform(0.2, 1) * free[slot]
        for step in Step:
            start = max(free[slot], ready)
            took = {
                Step.PODMAN: 60 + max(size, 4e9) / 1.5e7 * random.uniform(0.7, 1.4),
                Step.ENROOT: 12 + size / 5.5e7 * random.uniform(0.9, 1.1),
                Step.ENV: random.uniform(2, 9),
            }[step]
            failed = state is State.FAILED
            outcome = Outcome.FAILED if failed else Outcome.DONE
            grown = round(size * random.uniform(0.93, 1.01)) if step is Step.ENROOT else None
            started = (begin + timedelta(seconds=start)).isoformat(timespec="milliseconds")
            node = f"nid{6400 + slot // 2 * 7:06}"
            entries.append(
                HistoryEntry(
                    run, name, step, outcome, started, round(took, 3), round(start - ready, 3), node,
                    "4711", size_bytes=grown, commit=COMMIT, reason="Dockerfile changed",
                )
            )  # fmt: skip
            free[slot] = start + took
            ready = start + took + 0.4
            if failed:
                break
    return entries


def main(directory: Path) -> None:
    """Write a page of each."""
    from rc_tasks.views.report.page import render
    from tests.support.checkouts import SOURCE

    empty = Overview(Path("/imgs"), datetime.now().astimezone())
    for name, shown in {"team": team(), "crowd": crowd(), "empty": empty}.items():
        path = directory / f"{name}.html"
        path.write_text(render(shown, SOURCE))
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
