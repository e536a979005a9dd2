"""doit tasks of the image graph: a group `build:NAME` of the steps of each image."""

from collections.abc import Iterator
from functools import partial
from inspect import Signature

from doit.exceptions import InvalidDodoFile, TaskFailed
from doit.task import Task as DoitTask

from rc_tasks.engine.run.dispatcher import reason
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import ARTIFACT, EDF, IMAGE_JSON
from rc_tasks.state.records.records import Step, Task
from rc_tasks.state.records.status import first_line


class Fresh:
    """A doit `uptodate` callable that asks the judge whether a step is fresh."""

    # Without it, doit inspects the signature at every call, which takes longer than most answers.
    __signature__ = Signature()

    def __init__(self, current: Session, task: Task) -> None:
        self._session = current
        self._task = task

    def __call__(self) -> bool:
        """Return whether the step has nothing to do."""
        try:
            return self._session.judge.step(*self._task).fresh
        except RcError:
            return False  # the step itself will report the error

    def __repr__(self) -> str:
        """Return why the step has to run, for `doit info`."""
        return reason(self._session, self._task) or "fresh"


def task_images() -> Iterator[DoitTask]:
    """Yield all tasks of a checkout. Raise InvalidDodoFile when it cannot be opened."""
    try:
        current = session()
    except RcError as error:
        raise InvalidDodoFile(str(error)) from None
    graph = current.checkout.graph
    groups: dict[str, list[str]] = {}
    for name, node in graph.images.items():
        yield from _image_tasks(current, node)
        groups.setdefault(name.partition(":")[0], []).append(f"build:{name}")
    for name, broken in graph.broken.items():
        yield DoitTask(
            f"build:{name}",
            [partial(_refuse, (broken,))],
            io={"capture": False},
            doc=f"cannot be built: {first_line(broken)}",
        )
        groups.setdefault(name.partition(":")[0], []).append(f"build:{name}")
    for alias, target in graph.aliases.items():
        yield DoitTask(
            f"build:{alias}", None, task_dep=[f"build:{target}"], doc=f"the same as build:{target}"
        )
    everything = [task for tasks in groups.values() for task in tasks]
    if graph.problems:
        everything.append("_names")
        yield DoitTask("_names", [partial(_refuse, graph.problems)], io={"capture": False})
    yield DoitTask("build", None, task_dep=everything, doc="every image that is stale")
    taken = {*graph.images, *graph.broken, *graph.aliases}
    for group, tasks in groups.items():
        if group not in taken:
            yield DoitTask(f"build:{group}", None, task_dep=tasks, doc=f"every version of {group}")


def _image_tasks(current: Session, node: ImageNode) -> Iterator[DoitTask]:
    project, group = node.project, f"build:{node.project.name}"
    bases = node.bases
    after: list[str] = []
    for step in Step:
        task = Task(step, project.name)
        yield DoitTask(
            str(task),
            [partial(_run, current, task)],
            file_dep=_files(current, node) if step is Step.PODMAN else (),
            targets=_targets(node, step),
            # Each step of a base ends before the same step of an image built on it begins.
            task_dep=[
                *after,
                *(_task_of(current, step, base) for base in bases if step is not Step.ENV),
            ],
            uptodate=[Fresh(current, task)],
            clean=True if step is Step.ENROOT else (),
            subtask_of=group,
            # Output goes to the step's own log; doit's capture would swap sys.stdout under threads.
            io={"capture": False},
            doc=f"{_DOCS[step]} {project.name}",
        )
        after = [str(task)]
    steps = [str(Task(step, project.name)) for step in Step]
    yield DoitTask(
        group,
        None,
        task_dep=[*steps, *(f"build:{base}" for base in bases)],
        has_subtask=True,
        doc=project.path,
    )


_DOCS = {
    Step.PODMAN: "build the image of",
    Step.ENROOT: "publish image.sqsh of",
    Step.ENV: "write env.toml of",
}


def _files(current: Session, node: ImageNode) -> list[str]:
    try:
        prefix = node.project.shown("")
        return [prefix + path for path in current.judge.files(node)]
    except RcError:
        return []  # the judge will report what is wrong with the context


def _targets(node: ImageNode, step: Step) -> list[str]:
    match step:
        case Step.PODMAN:
            return []
        case Step.ENROOT:
            return [node.project.shown(ARTIFACT), node.project.shown(IMAGE_JSON)]
        case Step.ENV:
            return [node.project.shown(EDF)]


def _task_of(current: Session, step: Step, name: str) -> str:
    return f"build:{name}" if name in current.checkout.graph.broken else str(Task(step, name))


def _run(current: Session, task: Task) -> TaskFailed | None:
    return current.run_step(task)


def _refuse(errors: tuple[RcError, ...]) -> TaskFailed:
    return TaskFailed("\n".join(map(str, errors)))
