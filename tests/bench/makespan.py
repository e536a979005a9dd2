"""How close a run of a large graph comes to what its critical path and its slots allow.

    python -m tests.bench.makespan                 (a simulation of 1,000 images on 64 slots, seconds)
    python -m tests.bench.makespan slurm           (40 images in 4 levels on 4 nodes of a real cluster)

The simulation plays the rules of `engine/schedule/slots.py` with durations drawn from recorded ones. The
real run is made with `doit`, and with `doit -n 1` beside it.
"""

import heapq
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rc_tasks.engine.schedule.scheduler import ReadyStep, Scheduler, critical_paths
from rc_tasks.state.records.records import Step
from tests.support.checkouts import write_checkout
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.doit import doit_process
from tests.support.storage import remove_storage

# Seconds of podman, enroot and env steps of the shipped images and the demo, on a busy machine with two
# CPUs: from a few lines of shell to a base of 3 GB.
RECORDED_S = {
    Step.PODMAN: (1.1, 1.8, 2.4, 6.0, 14.0, 48.0, 95.0, 310.0),
    Step.ENROOT: (0.6, 1.1, 3.5, 4.4, 9.0, 22.0, 41.0),
    Step.ENV: (0.3, 0.3, 0.4),
}


# Of unequal length: equal steps end in waves, which no order of theirs can fill.
WAITS_S = (10, 20, 30, 40)


def graph(images: int, levels: int, chance: random.Random) -> dict[str, list[str]]:
    """Images by name, each with its bases: a few at the top, most of them at the bottom."""
    sizes = [max(1, round(images * 2**level / (2**levels - 1))) for level in range(levels)]
    sizes[-1] += images - sum(sizes)
    found: dict[str, list[str]] = {}
    above: list[str] = []
    for level, size in enumerate(sizes):
        here = [f"l{level}n{number}:1" for number in range(size)]
        for name in here:
            found[name] = chance.sample(above, min(len(above), 1 + (chance.random() < 0.15)))
        above = here
    return found


def simulate(
    seconds: Mapping[str, float],
    before: Mapping[str, Sequence[str]],
    slots: int,
    nodes: int,
    order: Mapping[str, float],
) -> float:
    """The makespan of a run in which ready steps start by `order`, the highest first."""
    left = {task: len(before[task]) for task in seconds}
    after: dict[str, list[str]] = {task: [] for task in seconds}
    for task, earlier in before.items():
        for each in earlier:
            after[each].append(task)
    free = Scheduler[str]({f"node{number}": slots // nodes for number in range(nodes)})
    for task in seconds:
        if not left[task]:
            free.queue(ReadyStep(task, priority_s=order[task]))
    ends: list[tuple[float, str]] = []
    now = 0.0
    while True:
        while (found := free.start_next()) is not None:
            heapq.heappush(ends, (now + seconds[found[0].task], found[0].task))
        if not ends:
            return now
        now, ended = heapq.heappop(ends)
        free.drop(ended)
        for task in after[ended]:
            left[task] -= 1
            if not left[task]:
                free.queue(ReadyStep(task, priority_s=order[task]))


def steps(bases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The steps of images by task, each with those that must end first."""
    before = {}
    for name, above in bases.items():
        podman, enroot, env = (f"{step}:{name}" for step in Step)
        before[podman] = [f"podman:{base}" for base in above]
        before[enroot] = [podman, *(f"enroot:{base}" for base in above)]
        before[env] = [enroot]
    return before


def simulated(
    images: int = 1000, slots: int = 64, nodes: int = 16, seed: int = 1
) -> tuple[float, float]:
    """The makespan of a simulated night, and the bound: critical path or work by slots."""
    chance = random.Random(seed)
    before = steps(graph(images, 4, chance))
    seconds = {task: chance.choice(RECORDED_S[Step(task.partition(":")[0])]) for task in before}
    paths = critical_paths(seconds, before)
    bound = max(*paths.values(), sum(seconds.values()) / slots)
    return simulate(seconds, before, slots, nodes, paths), bound


def on_slurm() -> None:
    """Build 40 images on 4 nodes with two slots each, then all of them again one after the other."""
    chance = random.Random(2)
    bases = graph(40, 4, chance)
    with (
        tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage,
        tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch,
        tempfile.TemporaryDirectory(prefix="slurm-") as conf,
        Cluster(Path(conf), nodes=4, cpus_per_node=2) as cluster,
    ):
        files = {"rootfs/Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n"}
        for name, above in bases.items():
            # Waiting, as for downloads, takes the time: the nodes share this machine's CPUs.
            wait = f'RUN ["/bin/busybox", "sleep", "{chance.choice(WAITS_S)}"]\n'
            copies = "".join(f"COPY --from={base} /bin/busybox /bin/again\n" for base in above[1:])
            base = above[0] if above else "rootfs"
            files[f"projects/{name}/Dockerfile"] = f"FROM {base}\n{copies}ARG TURN\n{wait}"
        root = write_checkout(Path(scratch) / "imgs", files)
        shutil.copy("/bin/busybox", root / "rootfs/busybox")
        environ = {
            **cluster.environment,
            "RC_RUNNER": "slurm",
            "RC_SLURM_ACCOUNT": ACCOUNT,
            "RC_SLURM_NODES": "4",
            # Works in a container too.
            "RC_PODMAN_ISOLATION": "chroot",
            "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
        }
        try:
            for turn, options in enumerate(((), ("-n", "1"))):
                for name in bases:
                    text = f'[build_args]\nTURN = "{turn}"\n'
                    (root / f"projects/{name}/project.toml").write_text(text)
                began = time.monotonic()
                ran = doit_process(root, *options, environ=environ, timeout_s=7200)
                took_s = time.monotonic() - began
                if ran.status:
                    raise SystemExit(ran.text)
                bound_s = bound_of(root, steps({"rootfs": [], **bases}), slots=8)
                print(
                    f"doit {' '.join(options):5} {took_s:6.1f} s; at best {bound_s:.1f} s on 8 slots by"
                    f" their own times: {took_s / bound_s:.2f}",
                    flush=True,
                )
        finally:
            for node in cluster.node_names:
                remove_storage(Path(storage) / node)


def bound_of(root: Path, before: Mapping[str, Sequence[str]], slots: int) -> float:
    """The larger of the critical path and the work by slots, from what the steps recorded."""
    seconds = {
        task: float(json.loads((root / f".rc/state/{task}.json").read_text())["duration_s"])
        for task in before
    }
    paths = critical_paths(seconds, before)
    return max(*paths.values(), sum(seconds.values()) / slots)


if __name__ == "__main__":
    if sys.argv[1:] == ["slurm"]:
        on_slurm()
    else:
        for seed in range(3):
            took_s, bound_s = simulated(seed=seed)
            print(
                f"1,000 images, 64 slots: {took_s:.0f} s, bound {bound_s:.0f} s: {took_s / bound_s:.3f}"
            )
