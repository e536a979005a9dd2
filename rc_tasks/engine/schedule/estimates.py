"""What a run expects of its steps: how long each takes, and how much waits for it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rc_tasks.engine.schedule.slots import Wanted, critical_paths, groups
from rc_tasks.errors import RcError
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step, Task

# What a step is taken for while none of its kind has ever run here.
_GUESS_S = {Step.PODMAN: 120.0, Step.ENROOT: 30.0, Step.ENV: 1.0}


@dataclass(frozen=True, slots=True)
class Order:
    """What is known of a run's steps before it begins, by task.

    `last_s` holds the steps that have run before; `stale_s` what each is taken for that is stale, and
    `guesses` the kinds of which none has ever run; `before` names what must end first; `paths_s` is
    what `critical_paths` says of each, and `turns` counts them, bases first.
    """

    last_s: Mapping[Task, float]
    stale_s: Mapping[Task, float]
    guesses: frozenset[Step]
    before: Mapping[Task, Sequence[Task]]
    paths_s: Mapping[Task, float]
    turns: Mapping[Task, int]
    groups: Mapping[str, str]

    @property
    def stale_images(self) -> int:
        """How many images have something to do."""
        return len({task.name for task in self.stale_s})

    def wanted(self, checkout: Checkout, task: Task) -> Wanted[Task]:
        """A step as one that is ready to start."""
        step, name = task
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

    def left_s(self, left: Collection[Task], since_s: Mapping[Task, float], slots: int) -> float | None:
        """How long the steps that are left will take; None when nothing is known of their kind.

        `since_s` says how long ago those that run were started, `slots` how many run at a time.
        """
        if any(task.step in self.guesses for task in left):
            return None
        seconds = {
            task: max(0.0, taken_s - since_s.get(task, 0.0))
            for task, taken_s in self.stale_s.items()
            if task in left
        }
        longest_s = max(critical_paths(seconds, self.before).values(), default=0.0)
        return max(longest_s, sum(seconds.values()) / max(1, slots))


def order(checkout: Checkout, judge: Judge, names: Iterable[str], *, everything: bool = False) -> Order:
    """What is to be expected of a run that makes these images and all that they are built on.

    `everything`: also what is fresh is done again.
    """
    graph = checkout.graph
    last_s: dict[Task, float] = {}
    before: dict[Task, list[Task]] = {}
    stale: set[Task] = set()
    kinds: dict[Step, list[float]] = {step: [] for step in Step}
    for name in graph.above(names):
        earlier: list[Task] = []
        for step in Step:
            task = Task(step, name)
            bases = () if step is Step.ENV else graph.images[name].bases
            before[task] = [*earlier, *(Task(step, base) for base in bases)]
            earlier = [task]
            record = checkout.records.get(step, name)
            if record is not None:
                last_s[task] = record.duration_s
                kinds[step].append(record.duration_s)
            if everything or not _fresh(judge, task):
                stale.add(task)
    usual = {step: median(kinds[step]) if kinds[step] else _GUESS_S[step] for step in Step}
    seconds = {task: last_s.get(task, usual[task.step]) if task in stale else 0.0 for task in before}
    # Without the store, an image is only where it was built: those that share bases stay together.
    kept = not checkout.settings.store.enabled
    together = groups({name: node.bases for name, node in graph.images.items()}) if kept else {}
    return Order(
        last_s=last_s,
        stale_s={task: seconds[task] for task in before if task in stale},
        guesses=frozenset(step for step in Step if not kinds[step]),
        before=before,
        paths_s=critical_paths(seconds, before),
        turns={task: turn for turn, task in enumerate(before)},
        groups=together,
    )


def _fresh(judge: Judge, task: Task) -> bool:
    try:
        return judge.step(*task).fresh
    except RcError:
        return False  # the step itself will say what is wrong
