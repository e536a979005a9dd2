"""What doit is asked to do: of all that was selected, what is stale."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from doit.task import Task

from rc_tasks.engine.backend import step_of


@dataclass(frozen=True, slots=True)
class Selection:
    """Tasks for doit, bases first, and the images in which there is nothing to do."""

    tasks: tuple[str, ...]
    fresh: tuple[str, ...]


def selection(tasks: Mapping[str, Task], found: Collection[str], stale: Collection[str]) -> Selection:
    """Select what is stale of what `reach` has found.

    Tasks that are none of ours, and those that tell of broken projects, are left to doit to judge.
    `stale` are steps, bases first.
    """
    chosen = [task for task in stale if task in found]
    busy = {task.partition(":")[2] for task in chosen}
    others, fresh = list[str](), dict[str, None]()
    for name in found:
        step = step_of(name)
        if step is not None:
            if step[1] not in busy:
                fresh[step[1]] = None
        elif tasks[name].actions or not _is_group(name):
            others.append(name)
    return Selection((*chosen, *others), tuple(fresh))


def reach(tasks: Mapping[str, Task], names: Iterable[str]) -> dict[str, None]:
    """The named tasks with all that they depend on, once each, in the order in which they are named."""
    made = {target: task.name for task in tasks.values() for target in task.targets}
    found: dict[str, None] = {}
    todo = [*names][::-1]
    while todo:
        name = todo.pop()
        if name not in found and name in tasks:
            found[name] = None
            task = tasks[name]
            files = [made[file] for file in task.file_dep if file in made]
            todo += [*task.task_dep, *files][::-1]
    return found


def _is_group(name: str) -> bool:
    return name.partition(":")[0] == "build"
