"""What a run expects of its steps: how long each takes, and how much waits for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from rc_tasks.engine.schedule import Wanted, critical_paths, groups
from rc_tasks.errors import RcError
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records import Step

# What a step is taken for while none of its kind has ever run here.
_GUESS_S = {Step.PODMAN: 120.0, Step.ENROOT: 30.0, Step.ENV: 1.0}


@dataclass(frozen=True, slots=True)
class Order:
    """What is known of a run's steps before it begins, by task such as `podman:reasoning:2025.1`.

    `last_s` holds the steps that have run before; `paths_s` what `critical_paths` says of each,
    and `turns` counts them, bases first; `images` and `stale_images` count.
    """

    images: int
    stale_images: int

    last_s: Mapping[str, float]
    paths_s: Mapping[str, float]
    turns: Mapping[str, int]
    groups: Mapping[str, str]

    def wanted(self, checkout: Checkout, step: Step, name: str) -> Wanted:
        """A step as one that is ready to start."""
        task = f"{step}:{name}"
        # Its image, or what that is built on, is still in podman where it was made.
        made = [name] if step is Step.ENROOT else checkout.graph.images[name].bases
        records = (checkout.records.get(Step.PODMAN, each) for each in made)
        near = frozenset(record.node for record in records if record is not None)
        return Wanted(
            task,
            priority_s=self.paths_s.get(task, 0.0),
            turn=self.turns.get(task, 0),
            near=near if step is not Step.ENV else frozenset(),
            group=self.groups.get(name, ""),
        )


def order(checkout: Checkout, judge: Judge, names: Iterable[str]) -> Order:
    """What is to be expected of a run that makes these images and all that they are built on."""
    graph = checkout.graph
    last_s: dict[str, float] = {}
    before: dict[str, list[str]] = {}
    stale: dict[str, Step] = {}
    kinds: dict[Step, list[float]] = {step: [] for step in Step}
    for name in graph.above(names):
        earlier: list[str] = []
        for step in Step:
            task = f"{step}:{name}"
            bases = () if step is Step.ENV else graph.images[name].bases
            before[task] = [*earlier, *(f"{step}:{base}" for base in bases)]
            earlier = [task]
            record = checkout.records.get(step, name)
            if record is not None:
                last_s[task] = record.duration_s
                kinds[step].append(record.duration_s)
            if not _fresh(judge, step, name):
                stale[task] = step
    usual = {step: median(kinds[step]) if kinds[step] else _GUESS_S[step] for step in Step}
    seconds = {task: last_s.get(task, usual[stale[task]]) if task in stale else 0.0 for task in before}
    # Without the store, an image is only where it was built: those that share bases stay together.
    kept = not checkout.settings.store.enabled
    together = groups({name: node.bases for name, node in graph.images.items()}) if kept else {}
    return Order(
        images=len(before) // len(Step),
        stale_images=len({task.partition(":")[2] for task in stale}),
        last_s=last_s,
        paths_s=critical_paths(seconds, before),
        turns={task: turn for turn, task in enumerate(before)},
        groups=together,
    )


def _fresh(judge: Judge, step: Step, name: str) -> bool:
    try:
        return judge.step(step, name).fresh
    except RcError:
        return False  # the step itself will say what is wrong
