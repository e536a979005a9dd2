"""Scheduling rules: which step starts next and on which node, without I/O so that tests can simulate."""

from bisect import insort
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from msgspec import Struct

# What is scheduled: the rules look at nothing of it.
T = TypeVar("T", bound=Hashable)


class ReadyStep(Struct, Generic[T], frozen=True):
    """A step that is ready to start.

    `priority_s` is its value in `critical_paths`; among equals the lower `turn` goes first. `near` are
    the nodes that have its base already. Steps of one `group` (not empty) all run on one node.
    """

    task: T
    cpus: int = 1
    priority_s: float = 0.0
    turn: int = 0
    near: frozenset[str] = frozenset()
    group: str = ""


class Scheduler(Generic[T]):
    """Gives the CPUs of some nodes to the steps that wait for them."""

    def __init__(self, cpus: Mapping[str, int]) -> None:
        self._cpus = dict(cpus)
        self._free = dict(cpus)
        # The waiting steps in the order of their start, and all known tasks, as hundreds of threads ask.
        self._waiting: list[ReadyStep[T]] = []
        self._known: set[T] = set()
        self._running: dict[T, tuple[ReadyStep[T], str]] = {}
        self._homes: dict[str, str] = {}

    @property
    def running(self) -> int:
        """How many steps run."""
        return len(self._running)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that have not failed."""
        return tuple(self._cpus)

    def queue(self, step: ReadyStep[T]) -> None:
        """Queue a step; a repeated call changes nothing."""
        if step.task in self._known:
            return
        self._known.add(step.task)
        # Start the step with the longest critical path first.
        insort(self._waiting, step, key=lambda other: (-other.priority_s, other.turn))

    def drop(self, task: T) -> None:
        """Remove a step, whether it waits or runs."""
        self._known.discard(task)
        self._waiting = [other for other in self._waiting if other.task != task]
        step, node = self._running.pop(task, (None, ""))
        if step is not None and node in self._free:
            self._free[node] += self._share(step, node)

    def start_next(self) -> tuple[ReadyStep[T], str] | None:
        """Start the next step that fits; return it with its node, or None when none fits."""
        if not any(self._free.values()):
            return None
        for position, step in enumerate(self._waiting):
            node = self._node(step)
            if node is not None:
                del self._waiting[position]
                self._running[step.task] = (step, node)
                self._free[node] -= self._share(step, node)
                if step.group:
                    self._homes[step.group] = node
                return step, node
        return None

    def drop_node(self, node: str) -> None:
        """Remove a failed node: no more steps start there."""
        self._cpus.pop(node, None)
        self._free.pop(node, None)
        self._homes = {group: home for group, home in self._homes.items() if home != node}

    def _node(self, step: ReadyStep[T]) -> str | None:
        home = self._homes.get(step.group)
        open_ = [
            node
            for node in ([home] if home else self._free)
            if self._free[node] >= self._share(step, node)
        ]
        return max(open_, key=lambda node: (node in step.near, self._free[node]), default=None)

    def _share(self, step: ReadyStep[T], node: str) -> int:
        # A step that asks for more than a node has gets all of it; Slurm reports its own error.
        return min(step.cpus, self._cpus[node])


def critical_paths(seconds: Mapping[T, float], before: Mapping[T, Iterable[T]]) -> dict[T, float]:
    """Return for each task the seconds from its start to the end of the longest chain that waits for it.

    `before` names for each task those that must end first; both maps list tasks in that order.
    """
    paths = dict.fromkeys(seconds, 0.0)
    for task in reversed(list(seconds)):
        paths[task] += seconds[task]
        for earlier in before.get(task, ()):
            if earlier in paths:
                paths[earlier] = max(paths[earlier], paths[task])
    return paths


def groups(links: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Map each name to the first of its group: names that are linked, directly or through others."""
    group = {name: name for name in links}

    def first(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for name, others in links.items():
        for other in others:
            group[first(name)] = first(other)
    return {name: first(name) for name in links}
