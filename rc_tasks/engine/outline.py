"""Outline of a checkout's tasks: what doit runs, and `doit info` shows without doit (30 ms)."""

from collections.abc import Iterator

from msgspec import Struct

from rc_tasks.engine.session import Session
from rc_tasks.errors import RcError
from rc_tasks.model.graph.graph import ImageGraph, ImageNode
from rc_tasks.model.graph.project import ARTIFACT, EDF, IMAGE_JSON
from rc_tasks.state.records.records import Step, Task
from rc_tasks.state.records.status import first_line, on_one_line


class Outline(Struct, frozen=True):
    """A task: a `step` of an image, a group of other tasks, or one that only reports `errors`.

    `targets` are the files that it publishes, relative to the checkout.
    """

    name: str
    doc: str
    task_dep: tuple[str, ...] = ()
    step: Task | None = None
    targets: tuple[str, ...] = ()
    errors: tuple[RcError, ...] = ()


def outlines(graph: ImageGraph) -> Iterator[Outline]:
    """Yield all tasks of a checkout: images bases first, each as its steps and their group."""
    groups: dict[str, list[str]] = {}
    for name, node in graph.images.items():
        yield from _of_image(graph, node)
        groups.setdefault(name.partition(":")[0], []).append(f"build:{name}")
    for name, broken in graph.broken.items():
        yield Outline(f"build:{name}", f"cannot be built: {first_line(broken)}", errors=(broken,))
        groups.setdefault(name.partition(":")[0], []).append(f"build:{name}")
    for alias, target in graph.aliases.items():
        yield Outline(f"build:{alias}", f"the same as build:{target}", (f"build:{target}",))
    everything = [task for tasks in groups.values() for task in tasks]
    if graph.problems:
        everything.append("_names")
        yield Outline("_names", "", errors=graph.problems)
    yield Outline("build", "every image that is stale", tuple(everything))
    taken = {*graph.images, *graph.broken, *graph.aliases}
    for group, tasks in groups.items():
        if group not in taken:
            yield Outline(f"build:{group}", f"every version of {group}", tuple(tasks))


def files(current: Session, step: Task) -> list[str]:
    """Return the files that a step depends on, relative to the checkout; none for a broken context."""
    if step.step is not Step.PODMAN:
        return []
    node = current.checkout.graph.images[step.name]
    try:
        return current.judge.listings.shown(node)
    except RcError:
        return []  # the judge will report what is wrong with the context


def reason(current: Session, step: Task) -> str:
    """Return why a step runs, on one line; empty when nothing is stale."""
    try:
        causes = current.judge.step(*step).causes
    except RcError:
        return "its inputs cannot be read"  # the step itself will report the error
    certain = [cause.words for cause in causes if not cause.upstream]
    return on_one_line(certain or [cause.words for cause in causes])


def _of_image(graph: ImageGraph, node: ImageNode) -> Iterator[Outline]:
    name = node.project.name
    after: tuple[str, ...] = ()
    for step in Step:
        task = Task(step, name)
        # Each step of a base ends before the same step of an image built on it begins.
        bases = (_of_base(graph, step, base) for base in node.bases if step is not Step.ENV)
        yield Outline(str(task), f"{_DOCS[step]} {name}", (*after, *bases), task, _targets(node, step))
        after = (str(task),)
    steps = (str(Task(step, name)) for step in Step)
    yield Outline(
        f"build:{name}", node.project.path, (*steps, *(f"build:{base}" for base in node.bases))
    )


_DOCS = {
    Step.PODMAN: "build the image of",
    Step.ENROOT: "publish image.sqsh of",
    Step.ENV: "write env.toml of",
}


def _targets(node: ImageNode, step: Step) -> tuple[str, ...]:
    match step:
        case Step.PODMAN:
            return ()
        case Step.ENROOT:
            return node.project.shown(ARTIFACT), node.project.shown(IMAGE_JSON)
        case Step.ENV:
            return (node.project.shown(EDF),)


def _of_base(graph: ImageGraph, step: Step, name: str) -> str:
    return f"build:{name}" if name in graph.broken else str(Task(step, name))
