"""What doit is asked to do: of all that was selected, what is stale."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from doit.task import Task as DoitTask

from rc_tasks.state.records.records import Task


@dataclass(frozen=True, slots=True)
class Selection:
    """Tasks for doit, bases first, and the images in which there is nothing to do."""

    tasks: tuple[str, ...]
    fresh: tuple[str, ...]


def selection(
    tasks: Mapping[str, DoitTask], found: Collection[str], stale: Collection[Task]
) -> Selection:
    """Select what is stale of what `reach` has found.

    Tasks that are none of ours, and those that tell of broken projects, are left to doit to judge.
    `stale` are steps, bases first.
    """
    chosen = [task for task in stale if str(task) in found]
    busy = {task.name for task in chosen}
    others, fresh = list[str](), dict[str, None]()
    for name in found:
        task = Task.parse(name)
        if task is not None:
            if task.name not in busy:
                fresh[task.name] = None
        elif tasks[name].actions or not _is_group(name):
            others.append(name)
    return Selection((*map(str, chosen), *others), tuple(fresh))


def reach(tasks: Mapping[str, DoitTask], names: Iterable[str]) -> dict[str, None]:
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
