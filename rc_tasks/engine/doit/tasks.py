"""doit tasks of the image graph: a group `build:NAME` of the steps of each image."""

from collections.abc import Iterator
from functools import partial
from inspect import Signature

from doit.exceptions import InvalidDodoFile, TaskFailed
from doit.task import Task as DoitTask

from rc_tasks.engine.outline import Outline, files, outlines, reason
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError
from rc_tasks.state.records.records import Step, Task


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
    for outline in outlines(current.checkout.graph):
        yield _task(current, outline)


def _task(current: Session, outline: Outline) -> DoitTask:
    # Output of a step goes to its own log; doit's capture would swap sys.stdout under threads.
    io = {"capture": False}
    doc = outline.doc or None
    if outline.errors:
        return DoitTask(outline.name, [partial(_refuse, outline.errors)], io=io, doc=doc)
    task = outline.step
    if task is None:
        is_image = outline.name.partition(":")[2] in current.checkout.graph.images
        return DoitTask(outline.name, None, task_dep=outline.task_dep, has_subtask=is_image, doc=doc)
    return DoitTask(
        outline.name,
        [partial(_run, current, task)],
        file_dep=files(current, task),
        targets=outline.targets,
        task_dep=outline.task_dep,
        uptodate=[Fresh(current, task)],
        clean=True if task.step is Step.ENROOT else (),
        subtask_of=f"build:{task.name}",
        io=io,
        doc=doc,
    )


def _run(current: Session, task: Task) -> TaskFailed | None:
    return current.run_step(task)


def _refuse(errors: tuple[RcError, ...]) -> TaskFailed:
    return TaskFailed("\n".join(map(str, errors)))
