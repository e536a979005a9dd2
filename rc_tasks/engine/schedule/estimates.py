"""Estimates of a run: how long each step takes, and how long the steps that wait for it take."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from rc_tasks.engine.schedule.scheduler import ReadyStep, critical_paths, groups
from rc_tasks.errors import RcError
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step, Task

# The estimate of a step while no step of its kind has run here.
_GUESS_S = {Step.PODMAN: 120.0, Step.ENROOT: 30.0, Step.ENV: 1.0}


class Order(Struct, frozen=True):
    """The order and the estimates of a run's steps, by task.

    `last_s` holds the last duration of each step that has run before. `stale_s` holds the estimate of
    each stale step. `guesses` are the kinds of step that have never run. `before` names the steps that
    must end first. `paths_s` is the result of `critical_paths`. `turns` numbers the steps, bases first.
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
        """How many images have stale steps."""
        return len({task.name for task in self.stale_s})

    def ready_step(self, checkout: Checkout, task: Task) -> ReadyStep[Task]:
        """Return a step that is ready to start."""
        step, name = task
        # The node that built the image, or its bases, still has them in podman.
        images = [name] if step is Step.ENROOT else checkout.graph.images[name].bases
        records = (checkout.records.get(Step.PODMAN, image) for image in images)
        near = frozenset(record.node for record in records if record is not None)
        return ReadyStep(
            task,
            priority_s=self.paths_s.get(task, 0.0),
            turn=self.turns.get(task, 0),
            near=near if step is not Step.ENV else frozenset(),
            group=self.groups.get(name, ""),
        )

    def left_s(self, left: Collection[Task], since_s: Mapping[Task, float], slots: int) -> float | None:
        """Estimate how long the remaining steps take; None when a kind of step has never run.

        `since_s` is how long each running step has run. `slots` is how many run at a time.
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


def order(
    checkout: Checkout, judge: Judge, names: Iterable[str], *, always: Collection[str] = ()
) -> Order:
    """Return the order of a run that makes these images and all their bases.

    The tasks in `always` run even if they are fresh.
    """
    graph = checkout.graph
    last_s: dict[Task, float] = {}
    before: dict[Task, list[Task]] = {}
    stale: set[Task] = set()
    kinds: dict[Step, list[float]] = {step: [] for step in Step}
    for name in graph.with_bases(names):
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
            if str(task) in always or not _fresh(judge, task):
                stale.add(task)
    from statistics import median  # commands that only look do not need it

    usual = {step: median(kinds[step]) if kinds[step] else _GUESS_S[step] for step in Step}
    seconds = {task: last_s.get(task, usual[task.step]) if task in stale else 0.0 for task in before}
    # Without the store, an image is only on the node that built it: images that share bases stay there.
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


def ignored_for(before: Mapping[Task, Sequence[Task]], marked: Collection[str]) -> dict[Task, Task]:
    """Return the steps that no run takes, each with the ignored step that is the reason.

    doit also leaves out what comes after an ignored step, even if that step is fresh. `before` has bases
    first, `marked` are the tasks that `doit ignore` was given.
    """
    reasons: dict[Task, Task] = {}
    for task, earlier in before.items():
        if str(task) in marked:
            reasons[task] = task
        elif (reason := next((reasons[step] for step in earlier if step in reasons), None)) is not None:
            reasons[task] = reason
    return reasons


def _fresh(judge: Judge, task: Task) -> bool:
    try:
        return judge.step(*task).fresh
    except RcError:
        return False  # the step itself will report the error
