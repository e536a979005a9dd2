"""Selection of doit tasks: the stale steps of the tasks that the user named."""

from collections.abc import Collection, Iterable, Mapping

from doit.task import Task as DoitTask
from msgspec import Struct

from rc_tasks.state.records.records import Task


class Selection(Struct, frozen=True):
    """Tasks for doit, bases first, and the images that have nothing to do."""

    tasks: tuple[str, ...]
    fresh: tuple[str, ...]


def selection(
    tasks: Mapping[str, DoitTask], reachable: Collection[str], stale: Collection[Task]
) -> Selection:
    """Select the stale steps of the tasks that `reach` returned.

    Tasks that a dodo.py adds, and those that report broken projects, are left to doit's judgement.
    `stale` are steps, bases first.
    """
    chosen = [task for task in stale if str(task) in reachable]
    busy = {task.name for task in chosen}
    others, fresh = list[str](), dict[str, None]()
    for name in reachable:
        task = Task.parse(name)
        if task is not None:
            if task.name not in busy:
                fresh[task.name] = None
        elif tasks[name].actions or not _is_group(name):
            others.append(name)
    return Selection((*map(str, chosen), *others), tuple(fresh))


def reach(tasks: Mapping[str, DoitTask], names: Iterable[str]) -> dict[str, None]:
    """Return the named tasks with all their dependencies, once each, in the order of `names`."""
    by_target = {target: task.name for task in tasks.values() for target in task.targets}
    reached: dict[str, None] = {}
    todo = [*names][::-1]
    while todo:
        name = todo.pop()
        if name not in reached and name in tasks:
            reached[name] = None
            task = tasks[name]
            files = [by_target[file] for file in task.file_dep if file in by_target]
            todo += [*task.task_dep, *files][::-1]
    return reached


def always_run(tasks: Mapping[str, DoitTask], names: Iterable[str]) -> dict[str, None]:
    """Return the tasks that names mean, without what those depend on: a group stands for its steps."""
    meant: dict[str, None] = {}
    todo = [*names][::-1]
    while todo:
        task = tasks.get(todo.pop())
        if task is None or task.actions:
            meant |= {task.name: None} if task is not None else {}
            continue
        steps = [name for name in task.task_dep if tasks[name].subtask_of == task.name]
        todo += [*(steps or task.task_dep)][::-1]
    return meant


def _is_group(name: str) -> bool:
    return name.partition(":")[0] == "build"
